"""One run, whole: its curves, metrics, findings, config and environment, a tab each."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import ContentSwitcher

from registry.views import RunDetail
from tsx.chart import Frame
from tsx.curve_groups import group_keys, make_curves
from tsx.dashboard.messages import Focus, FocusMoved, Snapshot
from tsx.dashboard.widgets.curve_chart import CurveChart
from tsx.dashboard.widgets.lines import Lines, Page
from tsx.dashboard.wording import make_keys, make_title
from tsx.ink import Line, Piece
from tsx.pages import (
    list_artifact_lines,
    list_config_lines,
    list_environment_lines,
    list_finding_lines,
    list_head_lines,
    list_histogram_lines,
    list_metric_lines,
)

TABS = ("curves", "metrics", "findings", "config", "about")
KEYS = (("←→", "tab"), ("↑↓", "scroll"), ("esc", "back"), ("?", "help"), ("q", "quit"))


class RunScreen(Screen[None]):
    """Everything of one run; Escape goes back to the list."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace", "app.pop_screen", "Back"),
        Binding("q", "app.quit", "Quit"),
        Binding("question_mark", "app.help", "Help"),
        Binding("right,tab,l", "turn(1)", "Next tab", priority=True),
        Binding("left,shift+tab,h", "turn(-1)", "Previous tab", priority=True),
        *(Binding(str(n), f"open('{tab}')", tab, show=False) for n, tab in enumerate(TABS, 1)),
    ]

    def __init__(self, run_id: str, place: str) -> None:
        super().__init__(id="run")
        self._place = place
        self._focus = Focus(run_id, full=True)
        self._snapshot: Snapshot | None = None
        self._now = 0.0
        self._titles: tuple[str, ...] = ()

    @property
    def focus_wanted(self) -> Focus:
        """What the poller should read for this screen."""
        return self._focus

    def compose(self) -> ComposeResult:
        """Lay out the head, the tabs and one page each."""
        yield Lines([make_title(None, self._place)], id="title", classes="bar")
        yield Lines(id="head")
        yield Lines(id="tabs")
        with ContentSwitcher(initial="curves", id="pages"):
            yield VerticalScroll(id="curves")
            for tab in TABS[1:]:
                yield Page(id=tab)
        yield Lines([make_keys(KEYS, "")], id="keys", classes="bar")

    def on_mount(self) -> None:
        """Ask for the run's details, and mark the open tab."""
        self.post_message(FocusMoved())
        self.action_open("curves")

    def on_screen_resume(self) -> None:
        """Ask again after another screen had the poller."""
        self.post_message(FocusMoved())

    def on_resize(self, event: Resize) -> None:
        """Wrap the texts anew."""
        if self._snapshot is not None:
            self.call_after_refresh(self.show, self._snapshot, self._now)

    def show(self, snapshot: Snapshot, now: float) -> None:
        """Show a snapshot; one that was taken for another run only changes the head."""
        if not self.query("#keys"):
            return  # closing, or not laid out yet
        self._snapshot, self._now = snapshot, now
        self.query_one("#title", Lines).show([make_title(snapshot, self._place)])
        self.query_one("#keys", Lines).show([make_keys(KEYS, snapshot.trouble)])
        run = snapshot.find_run(self._focus.run_id)
        head = self.query_one("#head", Lines)
        if run is None:
            head.show([Line((Piece("This run is no longer in the registry.", "warning"),))])
            return
        head.show(list_head_lines(run, now))
        if snapshot.detail is None or snapshot.detail.run.id != run.id:
            return
        self._show_curves(snapshot)
        self._show_pages(snapshot.detail)

    def action_turn(self, by: int) -> None:
        """Open the next or the previous tab."""
        current = self.query_one("#pages", ContentSwitcher).current or TABS[0]
        self.action_open(TABS[(TABS.index(current) + by) % len(TABS)])

    def action_open(self, tab: str) -> None:
        """Open a tab."""
        self.query_one("#pages", ContentSwitcher).current = tab
        self.query_one(f"#{tab}").focus()
        self._show_tabs()

    def _show_tabs(self) -> None:
        """Write the line of tabs."""
        current = self.query_one("#pages", ContentSwitcher).current
        detail = self._snapshot.detail if self._snapshot else None
        count = len(detail.findings) if detail else 0
        pieces = []
        for number, tab in enumerate(TABS, 1):
            kind = "accent" if tab == current else "muted"
            name = f"{tab} {count}" if tab == "findings" and count else tab
            if tab == "curves" and detail and self._snapshot:
                drawn, held = len(self._snapshot.curves), len(detail.metrics)
                name = f"{tab} {drawn} of {held}" if drawn < held else tab
            pieces += [Piece(f"{number} ", "faint"), Piece(name, kind), Piece("   ")]
        self.query_one("#tabs", Lines).show([Line(tuple(pieces))])

    def _show_curves(self, snapshot: Snapshot) -> None:
        """Hand each group of curves to its chart; mount the charts of new groups."""
        groups = group_keys(snapshot.curves)
        page = self.query_one("#curves", VerticalScroll)
        titles = tuple(group.title for group in groups)
        if titles != self._titles:
            self._titles = titles
            with self.app.batch_update():
                page.remove_children()
                page.mount_all([CurveChart(group.title) for group in groups])
        charts = [child for child in page.children if isinstance(child, CurveChart)]
        charts = charts[-len(groups) :] if groups else []
        for chart, group in zip(charts, groups, strict=True):
            chart.show(make_curves(group, snapshot.curves), Frame(title=group.title))

    def _show_pages(self, detail: RunDetail) -> None:
        """Fill the pages of text."""
        width = max(self.size.width - 6, 20)
        self._show_tabs()
        metrics = list_metric_lines(detail.metrics, width)
        if detail.histograms:
            metrics += [Line(), Line((Piece("histograms", "strong"),))]
            metrics += list_histogram_lines(detail.histograms.values())
        self.query_one("#metrics", Page).show(metrics)
        findings = list_finding_lines(detail.findings, width, detail.run.id)
        self.query_one("#findings", Page).show(findings)
        self.query_one("#config", Page).show(list_config_lines(detail.config))
        about = [*list_environment_lines(detail.environment), Line()]
        files = [Line((Piece("files", "strong"),)), *list_artifact_lines(detail.artifacts)]
        self.query_one("#about", Page).show([*about, *files])
