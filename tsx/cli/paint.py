"""Lines of `tsx.ink` onto stdout, colored on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tsx.cli import output
from tsx.cli.output import Style
from tsx.ink import Line, Piece
from tsx.text import count_cells

_STYLES: dict[str, Style] = {
    "strong": "strong",
    "muted": "dim",
    "faint": "dim",
    "grid": "dim",
    "head": "dim",
    "accent": "accent",
    "hint": "accent",
    "fault": "bad",
    "running": "accent",
    "completed": "good",
    "failed": "bad",
    "diverged": "bad",
    "oom": "bad",
    "killed": "bad",
    "interrupted": "warning",
    "info": "dim",
    "warning": "warning",
    "error": "bad",
    "better": "good",
    "worse": "bad",
}
CURVE_STYLES: tuple[Style, ...] = ("accent", "warning", "good", "curve 4", "curve 5")


def is_for_person() -> bool:
    """Return whether stdout is a terminal."""
    return output.is_terminal(sys.stdout)


def find_width() -> int:
    """Return the cells of a line on stdout; 100 where it is no terminal."""
    return output.terminal_size()[0] if is_for_person() else 100


def find_style(kind: str) -> Style:
    """Return the terminal style of a kind of text."""
    if kind.startswith("curve-"):
        return CURVE_STYLES[int(kind.removeprefix("curve-")) % len(CURVE_STYLES)]
    return _STYLES.get(kind, "")


def show_lines(lines: Iterable[Line]) -> None:
    """Write lines whole, whatever their length; the right end of each at the edge of the screen."""
    width = find_width()
    for line in lines:
        output.pieces([(piece.text, find_style(piece.kind)) for piece in _join(line, width)])


def show_heading(text: str) -> None:
    """Write an empty line and a heading."""
    output.data("")
    output.data(text, style="strong")


def _join(line: Line, width: int) -> list[Piece]:
    """Return the pieces of a line from left to right."""
    if not line.right:
        return list(line.left)
    used = sum(count_cells(piece.text) for piece in (*line.left, *line.right))
    return [*line.left, Piece(" " * max(width - used, 2)), *line.right]
