"""Curves as braille in exactly width x height character cells. Pure; standard library only.

Owns the raster, the frame and the legend of a chart. Every column of dots shows the smallest and
the largest value that fall into it, so no spike is lost however many points there are, and every
point lies within one dot of its true place. A value that is not finite breaks its curve and is
marked on the baseline (x NaN, up +inf, down -inf); where a curve stops being finite, a line rises.

Does not know colours or terminals: a chart is rows of (text, series) segments, and whoever shows it
gives each series its colour. Names are shown as they are, unprintable characters aside.
"""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tsx.axis import Axis, make_position_axis, make_value_axis
from tsx.raster import NAN_MARK, Raster, split_finite
from tsx.text import count_cells, count_char_cells, fit

# What a segment is when it is not curve number 0, 1, 2 ...
AXIS = -1  # frame and tick marks
LABEL = -2  # tick labels, axis name, "no points yet"
TITLE = -3
FAULT = -4  # marks of values that are not finite
GRID = -5  # faint lines through the ticks

_BLOCKS = "▁▂▃▄▅▆▇█"


class Segment(NamedTuple):
    """A stretch of one row: its text, and the index of its curve or one of the codes above."""

    text: str
    series: int


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve to draw. `xs` ascend; `ys` may hold NaN and infinities."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Chart:
    """A finished chart: `height` rows, each exactly `width` cells."""

    width: int
    height: int
    rows: tuple[tuple[Segment, ...], ...]
    left: int  # first column of the plot
    top: int  # first row of the plot
    x_axis: Axis | None  # None where there is nothing to draw
    y_axis: Axis | None

    def to_text(self) -> str:
        """Return the chart as plain lines, without the grid."""
        lines = (
            "".join(" " * len(text) if series == GRID else text for text, series in row)
            for row in self.rows
        )
        return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds the curves."""

    title: str = ""
    x_label: str = "step"
    log_y: bool = False
    legend: bool = True
    empty_text: str = "no points yet"
    x_range: tuple[float, float] | None = None  # instead of the curves' own
    y_range: tuple[float, float] | None = None


def draw(curves: Sequence[Curve], width: int, height: int, frame: Frame | None = None) -> Chart:
    """Draw curves over one another into width x height cells.

    Where two curves meet in a cell both keep their dots; the cell has the colour of the curve with
    more of them. Small sizes lose first the legend, then the labels, then the baseline.

    Raises:
        ValueError: a curve whose xs descend, or whose xs and ys differ in length.
    """
    frame = frame or Frame()
    width, height = max(width, 0), max(height, 0)
    for curve in curves:
        _check(curve)
    x_range = frame.x_range or _find_x_range(curves)
    y_range = frame.y_range or _find_y_range(curves, x_range, frame.log_y)
    has_header = height >= 4 and bool(frame.title or (frame.legend and curves))
    canvas = _Canvas(width, height, top=int(has_header))
    if width == 0 or height == 0:
        return canvas.finish(None, None)
    if has_header:
        canvas.write_header(frame.title, [curve.name for curve in curves] if frame.legend else [])
    if x_range is None:
        canvas.write_centred(frame.empty_text)
        return canvas.finish(None, None)
    y_axis = make_value_axis(*(y_range or (0.0, 1.0)), canvas.rows, log=frame.log_y)
    if y_range is None:
        y_axis = _without_ticks(y_axis)
    canvas.write_value_axis(y_axis)
    x_axis = make_position_axis(*x_range, canvas.columns)
    canvas.write_position_axis(x_axis, frame.x_label)
    rasters = [Raster(canvas.columns, canvas.rows) for _ in curves]
    for raster, curve in zip(rasters, curves, strict=True):
        raster.add(curve.xs, curve.ys, x_axis, y_axis)
    canvas.write_curves(rasters, y_axis)
    return canvas.finish(x_axis, y_axis)


def share_ranges(curves: Sequence[Curve], frame: Frame) -> Frame:
    """Return the frame with the ranges of all curves, for charts that are read side by side."""
    x_range = frame.x_range or _find_x_range(curves)
    y_range = frame.y_range or _find_y_range(curves, x_range, frame.log_y)
    return replace(frame, x_range=x_range, y_range=y_range)


def draw_sparkline(values: Sequence[float], width: int) -> str:
    """Return `width` cells of blocks, each the last value of its part; a cross where one is NaN."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width <= 0:
        return (NAN_MARK if values else "").ljust(max(width, 0))[: max(width, 0)]
    low, high = min(finite), max(finite)
    span = (high / 2 - low / 2) or 1.0  # halves: the span of two huge values would overflow
    cells = []
    count = min(width, len(values))
    for cell in range(count):
        part = values[cell * len(values) // count : (cell + 1) * len(values) // count]
        shown = [value for value in part if math.isfinite(value)]
        if len(shown) < len(part):
            cells.append(NAN_MARK)
        else:
            share = (shown[-1] / 2 - low / 2) / span
            cells.append(_BLOCKS[min(int(share * len(_BLOCKS)), len(_BLOCKS) - 1)])
    return "".join(cells).ljust(width)


def draw_bars(counts: Sequence[int], width: int) -> str:
    """Return at most `width` cells of blocks, each as high as the counts that fall into it."""
    cells = max(min(width, len(counts)), 0)
    places = [cell * len(counts) // cells for cell in range(cells)] + [len(counts)]
    sums = [sum(counts[start:stop]) for start, stop in itertools.pairwise(places)]
    most = max(sums, default=0)
    # Whole numbers: a count may be larger than any float. Nothing is blank, little is not.
    return "".join(
        _BLOCKS[min(len(_BLOCKS) * held // most, len(_BLOCKS) - 1)] if held > 0 else " "
        for held in sums
    )


def _check(curve: Curve) -> None:
    """Raise ValueError for a curve that cannot be drawn."""
    if len(curve.xs) != len(curve.ys):
        raise ValueError(f"curve '{curve.name}' has {len(curve.xs)} xs and {len(curve.ys)} ys")
    if any(map(operator.gt, curve.xs, curve.xs[1:])):
        raise ValueError(f"curve '{curve.name}' has xs that descend; sort its points first")


def _find_x_range(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Return the positions of the first and the last point of all curves."""
    drawn = [curve.xs for curve in curves if len(curve.xs)]
    if not drawn:
        return None
    return min(xs[0] for xs in drawn), max(xs[-1] for xs in drawn)


def _find_y_range(
    curves: Sequence[Curve], x_range: tuple[float, float] | None, log: bool
) -> tuple[float, float] | None:
    """Return the extremes of what can be drawn inside x_range, or None when that is nothing."""
    if x_range is None:
        return None
    lows, highs = [], []
    for curve in curves:
        start, stop = bisect_left(curve.xs, x_range[0]), bisect_right(curve.xs, x_range[1])
        for run in split_finite(curve.ys[start:stop], log):
            if not isinstance(run, str):
                lows.append(min(run))
                highs.append(max(run))
    return (min(lows), max(highs)) if lows else None


def _without_ticks(axis: Axis) -> Axis:
    """Return the axis with no labels, for a chart on which no value can be placed."""
    return Axis(axis.low, axis.high, axis.dots, axis.log, axis.scale, ())


@dataclass(slots=True)
class _Canvas:
    """Cells under construction: a grid of (character, series), and where the plot lies in it."""

    width: int
    height: int
    top: int
    cells: list[list[tuple[str, int]]] = field(init=False)
    left: int = 0
    bottom: int = field(init=False)  # rows under the plot: baseline and labels

    def __post_init__(self) -> None:
        """Clear the cells and reserve the rows under the plot."""
        self.cells = [[(" ", LABEL)] * self.width for _ in range(self.height)]
        self.bottom = 2 if self.height >= 5 else int(self.height >= 2)

    @property
    def rows(self) -> int:
        """Rows of the plot."""
        return self.height - self.top - self.bottom

    @property
    def columns(self) -> int:
        """Columns of the plot."""
        return self.width - self.left

    def write(self, row: int, column: int, text: str, series: int) -> None:
        """Put printable text into a row; what does not fit is cut."""
        for char in text:
            size = count_char_cells(char)
            if size == 0 or column + size > self.width:
                continue
            self.cells[row][column] = (char, series)
            if size == 2:
                self.cells[row][column + 1] = ("", series)
            column += size

    def write_header(self, title: str, names: list[str]) -> None:
        """Write the title on the left and a coloured name per curve after it."""
        column = 0
        if title:
            title = fit(title, self.width)
            self.write(0, 0, title, TITLE)
            column = count_cells(title) + 2
        for series, name in enumerate(names):
            room = self.width - column
            name = fit(name, room - 2)
            if room < 4 or not name:
                return
            self.write(0, column, "━ " + name, series)
            column += count_cells(name) + 4

    def write_centred(self, text: str) -> None:
        """Write one line in the middle of the chart."""
        text = fit(text, self.width)
        self.write(self.height // 2, (self.width - count_cells(text)) // 2, text, LABEL)

    def write_value_axis(self, axis: Axis) -> None:
        """Write tick labels and the upright, where a third of the width is left for the curves."""
        widest = max((len(tick.label) for tick in axis.ticks), default=0)
        if self.width < 12 or widest + 2 > self.width * 2 // 3:
            return
        self.left = widest + 2
        for row in range(self.rows):
            self.write(self.top + row, self.left - 1, "│", AXIS)
        for tick in axis.ticks:
            row = self.top + tick.cell
            self.write(row, 0, tick.label.rjust(widest), LABEL)
            self.write(row, self.left - 1, "┤", AXIS)
            self.write(row, self.left, "┈" * self.columns, GRID)

    def write_position_axis(self, axis: Axis, name: str) -> None:
        """Write the baseline with its ticks, and under it their labels and the name of the axis."""
        row = self.top + self.rows
        if self.bottom == 0:
            return
        self.write(row, self.left, "─" * self.columns, AXIS)
        if self.left:
            self.write(row, self.left - 1, "└", AXIS)
        for tick in axis.ticks:
            self.write(row, self.left + tick.cell, "┬", AXIS)
        if self.bottom < 2:
            return
        taken = -1
        if self.left and count_cells(name) < self.left:
            self.write(row + 1, self.left - 1 - count_cells(name), name, LABEL)
            taken = self.left - 1
        for tick in axis.ticks:
            start = self.left + tick.cell - len(tick.label) // 2
            start = max(min(start, self.width - len(tick.label)), 0)
            if start > taken:
                self.write(row + 1, start, tick.label, LABEL)
                taken = start + len(tick.label)

    def write_curves(self, rasters: list[Raster], axis: Axis) -> None:
        """Merge the curves into the plot and put their marks on the baseline."""
        for row in range(self.rows):
            for column in range(self.columns):
                merged, owner, most = 0, 0, 0
                for series, raster in enumerate(rasters):
                    mask = raster.masks[row][column]
                    merged |= mask
                    if mask.bit_count() >= most and mask:
                        owner, most = series, mask.bit_count()
                if merged:
                    cell = (chr(0x2800 + merged), owner)
                    self.cells[self.top + row][self.left + column] = cell
        for raster in rasters:
            self._write_marks(raster)

    def _write_marks(self, raster: Raster) -> None:
        """Write one curve's marks, and a line above each place where it stops being finite."""
        for column, mark in raster.marks.items():
            self.write(min(self.top + self.rows, self.height - 1), self.left + column, mark, FAULT)
        for column in raster.onsets:
            for row in range(self.top, self.top + self.rows):
                if self.cells[row][self.left + column][1] in (GRID, LABEL):
                    self.write(row, self.left + column, "╎", FAULT)

    def finish(self, x_axis: Axis | None, y_axis: Axis | None) -> Chart:
        """Join equal neighbours into segments."""
        rows = tuple(_join_cells(row) for row in self.cells)
        return Chart(self.width, self.height, rows, self.left, self.top, x_axis, y_axis)


def _join_cells(cells: list[tuple[str, int]]) -> tuple[Segment, ...]:
    """Return the segments of one row."""
    segments: list[Segment] = []
    for char, series in cells:
        if segments and segments[-1].series == series:
            segments[-1] = Segment(segments[-1].text + char, series)
        else:
            segments.append(Segment(char, series))
    return tuple(segments)
