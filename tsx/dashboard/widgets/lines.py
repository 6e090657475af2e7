"""Lines of coloured text that scroll when there are more than fit. Never reads markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tsx.ink import INK_CLASSES, Line, Piece
from tsx.text import count_cells, fit


class Lines(ScrollView, can_focus=False):
    """Shows the lines it was last handed; where both ends do not fit, the right one gives way."""

    COMPONENT_CLASSES: ClassVar[set[str]] = INK_CLASSES

    def __init__(
        self, lines: Sequence[Line] = (), *, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes)
        self._lines = tuple(lines)

    def show(self, lines: Sequence[Line]) -> None:
        """Show these lines; what is in view stays in view."""
        if tuple(lines) == self._lines:
            return
        self._lines = tuple(lines)
        self._measure()
        self.refresh()

    def on_resize(self, event: Resize) -> None:
        """Tell the scroll bar the new width."""
        self._measure()

    def render_line(self, y: int) -> Strip:
        """Return the line at this row of the view."""
        width, index = self.size.width, y + self.scroll_offset.y
        if index >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        line = self._lines[index]
        left = _cut(line.left, width)
        used = sum(count_cells(piece.text) for piece in left)
        right = _cut(line.right, max(width - used - 2, 0))
        gap = width - used - sum(count_cells(piece.text) for piece in right)
        pieces = [*left, Piece(" " * gap), *right]
        segments = [
            Segment(piece.text, self.get_component_rich_style(f"ink--{piece.kind}"))
            for piece in pieces
        ]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _measure(self) -> None:
        """Tell the scroll bar how many lines there are."""
        self.virtual_size = Size(self.size.width, len(self._lines))


class Page(Lines, can_focus=True):
    """Lines that take the keys of a pager."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False),
        Binding("k", "scroll_up", "Up", show=False),
        Binding("g", "scroll_home", "Top", show=False),
        Binding("G", "scroll_end", "End", show=False),
    ]


def _cut(pieces: Sequence[Piece], width: int) -> list[Piece]:
    """Return the pieces that fit `width` cells, the last one cut."""
    kept = []
    for piece in pieces:
        text = fit(piece.text, width)
        if not text:
            break
        kept.append(piece._replace(text=text))
        width -= count_cells(text)
    return kept
