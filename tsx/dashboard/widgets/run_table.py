"""The list of runs, newest first; the cursor stays on its run while others arrive."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from registry.views import RunRow
from tsx.dashboard.messages import PAGE_RUNS
from tsx.dashboard.wording import list_cells, list_columns
from tsx.ink import INK_CLASSES
from tsx.text import pad

_HEAD = 1  # rows above the first run
_STRIDE = PAGE_RUNS // 3  # the cursor stays in the middle third of the page that is asked for


class RunTable(ScrollView, can_focus=True):
    """Draws only the lines in view and holds only a page, so any number of runs costs the same.

    Where the page that it holds does not reach, lines are blank until the next one comes.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "move_page(-1)", "Page up", show=False),
        Binding("pagedown", "move_page(1)", "Page down", show=False),
        Binding("home,g", "move(-1000000000)", "First", show=False),
        Binding("end,G", "move(1000000000)", "Last", show=False),
        Binding("enter", "open", "Open"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = INK_CLASSES

    class Selected(Message):
        """The cursor stands on another run."""

        def __init__(self, run_id: str) -> None:
            super().__init__()
            self.run_id = run_id

    class Opened(Message):
        """A run was asked for."""

        def __init__(self, run_id: str) -> None:
            super().__init__()
            self.run_id = run_id

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._runs: tuple[RunRow, ...] = ()
        self._first = 0  # place of the first of them in the list
        self._num_runs = 0  # in the list
        self._now = 0.0
        self._cursor = 0  # a place in the list

    @property
    def run_id(self) -> str:
        """The id of the run under the cursor, empty when there is none or it is yet to come."""
        run = self._find_run(self._cursor)
        return run.id if run else ""

    @property
    def first_wanted(self) -> int:
        """The place of the list from which on runs are needed."""
        return max(self._cursor // _STRIDE - 1, 0) * _STRIDE

    def show(self, runs: tuple[RunRow, ...], now: float, *, first: int, num_runs: int) -> None:
        """Show a page of the runs; the cursor follows its run, and so does what is in view."""
        before, selected, num_before = self._cursor, self.run_id, self._num_runs
        self._runs, self._now = runs, now
        self._first, self._num_runs = first, num_runs
        places = {run.id: place for place, run in enumerate(runs, first)}
        last = max(num_runs - 1, 0)
        self._cursor = places.get(selected, min(before, last))
        self._measure()
        if num_runs != num_before:
            self.refresh(layout=True)
        if self.scroll_offset.y > 0 and selected in places:
            self.scroll_to(y=self.scroll_offset.y + self._cursor - before, animate=False)
        self._reveal()
        self.refresh()
        if self.run_id != selected:
            self.post_message(self.Selected(self.run_id))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the lines that show every run."""
        return self._num_runs + _HEAD

    def on_resize(self, event: Resize) -> None:
        """Keep the cursor in view."""
        self._measure()
        self.call_after_refresh(self._reveal)

    def on_click(self, event: Click) -> None:
        """Put the cursor on a run; a second click opens it."""
        index = event.y - _HEAD + self.scroll_offset.y
        if event.y < _HEAD or index >= self._num_runs:
            return
        self._go(index)
        if event.chain == 2:
            self.action_open()

    def action_move(self, by: int) -> None:
        """Move the cursor by a number of runs."""
        self._go(self._cursor + by)

    def action_move_page(self, by: int) -> None:
        """Move the cursor by a screenful."""
        self._go(self._cursor + by * max(self.size.height - _HEAD - 1, 1))

    def action_open(self) -> None:
        """Ask for the run under the cursor."""
        if self.run_id:
            self.post_message(self.Opened(self.run_id))

    def render_line(self, y: int) -> Strip:
        """Return the head, or the run at this line of the view."""
        width = self.size.width
        columns = list_columns(width)
        if y < _HEAD:
            text = "".join(pad(c.title, c.width, right=c.right) + "  " for c in columns)
            return self._strip([Segment("  " + text, self._style("head"))], Style.null())
        index = y - _HEAD + self.scroll_offset.y
        run = self._find_run(index)
        if run is None:
            return Strip.blank(width, self.rich_style)
        is_cursor = index == self._cursor
        back = self._find_back() if is_cursor else Style.null()
        mark = Segment("▌ " if is_cursor else "  ", self._style("accent") + back)
        cells = zip(columns, list_cells(run, columns, self._now), strict=True)
        segments = [mark]
        for column, cell in cells:
            text = pad(cell.text, column.width, right=column.right) + "  "
            segments.append(Segment(text, self._style(cell.kind) + back))
        return self._strip(segments, back)

    def _strip(self, segments: list[Segment], back: Style) -> Strip:
        """Return the segments as one line of the widget's width."""
        return Strip(segments).adjust_cell_length(self.size.width, self.rich_style + back)

    def _style(self, kind: str) -> Style:
        """Return the style of a kind of text."""
        return self.get_component_rich_style(f"ink--{kind}")

    def _find_back(self) -> Style:
        """Return the background of the line under the cursor."""
        return self.get_component_rich_style("ink--cursor", partial=True)

    def _measure(self) -> None:
        """Tell the scroll bar how many lines there are."""
        self.virtual_size = Size(self.size.width, self._num_runs + _HEAD)

    def _find_run(self, place: int) -> RunRow | None:
        """Return the run at a place of the list, or None where the page does not reach."""
        index = place - self._first
        return self._runs[index] if 0 <= index < len(self._runs) else None

    def _go(self, index: int) -> None:
        """Put the cursor on the run at `index`, or the nearest there is."""
        if not self._num_runs:
            return
        before = self._cursor
        self._cursor = min(max(index, 0), self._num_runs - 1)
        self._reveal()
        self.refresh()
        if self._cursor != before:
            self.post_message(self.Selected(self.run_id))

    def _reveal(self) -> None:
        """Scroll so that the cursor is in view, under the head."""
        top = self.scroll_offset.y
        rows = max(self.size.height - _HEAD, 1)
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False)
        elif self._cursor >= top + rows:
            self.scroll_to(y=self._cursor - rows + 1, animate=False)
