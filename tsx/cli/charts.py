"""Charts of `tsx.chart` onto stdout, colored on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tsx import chart
from tsx.chart import Chart, Curve, Frame
from tsx.cli import output
from tsx.cli.output import Style
from tsx.cli.paint import CURVE_STYLES, find_width

_PARTS: dict[int, Style] = {
    chart.AXIS: "dim",
    chart.LABEL: "dim",
    chart.TITLE: "strong",
    chart.FAULT: "bad",
    chart.GRID: "dim",
}
_MAX_CHART = 110  # cells: wider ones only stretch the curve
_CHART_ROWS = 14
MAX_COLUMNS = 2 * _MAX_CHART  # of dots: what an outline has to fill


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
    return CURVE_STYLES[series % len(CURVE_STYLES)] if series >= 0 else _PARTS[series]
