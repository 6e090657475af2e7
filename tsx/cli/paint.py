"""Lines of `tsx.ink` and charts of `tsx.chart` onto stdout, colored on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from tsx import chart
from tsx.chart import Chart, Curve, Frame
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
_CURVES: tuple[Style, ...] = ("accent", "warning", "good", "curve 4", "curve 5")
_PARTS: dict[int, Style] = {
    chart.AXIS: "dim",
    chart.LABEL: "dim",
    chart.TITLE: "strong",
    chart.FAULT: "bad",
    chart.GRID: "dim",
}
_MAX_CHART = 110  # cells: wider ones only stretch the curve
_CHART_ROWS = 14


def is_for_person() -> bool:
    """Return whether stdout is a terminal."""
    return output.is_terminal(sys.stdout)


def find_width() -> int:
    """Return the cells of a line on stdout; 100 where it is no terminal."""
    return output.terminal_size()[0] if is_for_person() else 100


def find_style(kind: str) -> Style:
    """Return the terminal style of a kind of text."""
    if kind.startswith("curve-"):
        return _CURVES[int(kind.removeprefix("curve-")) % len(_CURVES)]
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


def show_curves(curves: Sequence[Curve], frame: Frame, rows: int = _CHART_ROWS) -> None:
    """Draw curves. Without color each gets a chart of its own over the same ranges."""
    width = min(find_width(), _MAX_CHART)
    if len(curves) <= 1 or output.use_color(sys.stdout):
        _show_chart(chart.draw(curves, width, rows, frame))
        return
    shared = chart.share_ranges(curves, frame)
    for curve in curves:
        _show_chart(chart.draw([curve], width, rows, shared))


def _show_chart(drawn: Chart) -> None:
    """Write a chart; its grid only where color can make it faint."""
    colored = output.use_color(sys.stdout)
    for row in drawn.rows:
        parts = [
            (" " * len(text) if series == chart.GRID and not colored else text, _style_of(series))
            for text, series in row
        ]
        while parts and not parts[-1][0].strip():
            parts.pop()
        output.pieces(parts)


def _style_of(series: int) -> Style:
    """Return the style of a curve or a part of the frame."""
    return _CURVES[series % len(_CURVES)] if series >= 0 else _PARTS[series]


def _join(line: Line, width: int) -> list[Piece]:
    """Return the pieces of a line from left to right."""
    if not line.right:
        return list(line.left)
    used = sum(count_cells(piece.text) for piece in (*line.left, *line.right))
    return [*line.left, Piece(" " * max(width - used, 2)), *line.right]
