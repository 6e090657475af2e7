"""The first screen: all runs, and the loss, balance and speed of the one under the cursor."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import Screen

from tsx.chart import Frame
from tsx.curve_groups import list_overview_groups, make_curves
from tsx.dashboard.messages import Focus, FocusMoved, Snapshot
from tsx.dashboard.widgets.curve_chart import CurveChart
from tsx.dashboard.widgets.lines import Lines
from tsx.dashboard.widgets.run_table import RunTable
from tsx.dashboard.wording import list_empty_lines, make_keys, make_title
from tsx.pages import list_head_lines

KEYS = (("↑↓", "select"), ("enter", "open"), ("?", "help"), ("q", "quit"))


class OverviewScreen(Screen[None]):
    """Run table and three charts; on a wide terminal side by side, on a small one the loss only."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "app.quit", "Quit"),
        Binding("question_mark", "app.help", "Help"),
    ]

    def __init__(self, place: str) -> None:
        super().__init__(id="overview")
        self._place = place
        self._focus = Focus()

    @property
    def focus_wanted(self) -> Focus:
        """What the poller should read for this screen."""
        return self._focus

    def compose(self) -> ComposeResult:
        """Lay out the widgets; the style sheet decides where each stands."""
        yield Lines([make_title(None, self._place)], id="title", classes="bar")
        with Container(id="body"):
            yield RunTable(id="runs")
            with Container(id="selected"):
                yield Lines(id="head")
                with Container(id="charts"):
                    yield CurveChart("loss", id="loss")
                    with Container(id="side"):
                        yield CurveChart("aux", id="aux")
                        yield CurveChart("mfu %", id="speed")
        yield Lines(id="empty")
        yield Lines([make_keys(KEYS, "")], id="keys", classes="bar")

    def show(self, snapshot: Snapshot, now: float) -> None:
        """Show a snapshot."""
        if not self.query("#keys"):
            return  # closing, or not laid out yet
        self.query_one("#title", Lines).show([make_title(snapshot, self._place)])
        self.query_one("#keys", Lines).show([make_keys(KEYS, snapshot.trouble)])
        self.set_class(not snapshot.num_runs, "-empty")
        if not snapshot.num_runs:
            self.query_one("#empty", Lines).show(list_empty_lines(snapshot.trouble))
            return
        table = self.query_one(RunTable)
        table.show(snapshot.runs, now, first=snapshot.first, num_runs=snapshot.num_runs)
        self._follow(table)
        run = snapshot.find_run(table.run_id)
        if run is not None:
            self.query_one("#head", Lines).show(list_head_lines(run, now))
        if snapshot.run_id == table.run_id:
            self._show_curves(snapshot)

    def on_run_table_selected(self, event: RunTable.Selected) -> None:
        """Read what belongs to the place where the cursor is now."""
        self._follow(self.query_one(RunTable))

    def _follow(self, table: RunTable) -> None:
        """Ask for the curves of the run under the cursor, and for the runs around it."""
        focus = Focus(table.run_id or self._focus.run_id, first=table.first_wanted)
        if focus != self._focus:
            self._focus = focus
            self.post_message(FocusMoved())

    def _show_curves(self, snapshot: Snapshot) -> None:
        """Hand the curves to the charts."""
        groups = list_overview_groups(snapshot.curves)
        for name, group in zip(("loss", "aux", "speed"), groups, strict=True):
            curves = make_curves(group, snapshot.curves)
            self.query_one(f"#{name}", CurveChart).show(curves, Frame(title=group.title))
