"""Points to braille dots: one curve on a grid of cells, two dots wide and four dots high each.

Owns which dots a curve sets and where it is marked as not finite. Knows neither labels nor other
curves. Standard library only.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from tsx.axis import Axis

NAN_MARK, UP_MARK, DOWN_MARK = "\N{MULTIPLICATION SIGN}", "▲", "▼"
_DOTS = ((0x40, 0x80), (0x04, 0x20), (0x02, 0x10), (0x01, 0x08))  # [dot row from below][column]


def split_finite(ys: Sequence[float], log: bool) -> Iterator[Sequence[float] | str]:
    """Yield the stretches of values that can be drawn, and the mark of each one that cannot."""
    if not len(ys):
        return
    # NaN and infinities survive a sum, so one pass at C speed clears the common case.
    if math.isfinite(sum(ys)) and not (log and min(ys) <= 0):
        yield ys
        return
    run: list[float] = []
    for value in ys:
        mark = _find_mark(value, log)
        if not mark:
            run.append(value)
            continue
        if run:
            yield run
            run = []
        yield mark
    if run:
        yield run


def _find_mark(value: float, log: bool) -> str:
    """Return the mark of a value that has no place on the axis, or nothing for one that has."""
    if math.isnan(value) or (log and value < 0):
        return NAN_MARK
    if value == math.inf:
        return UP_MARK
    return DOWN_MARK if value == -math.inf or (log and value == 0) else ""


class Raster:
    """The dots and marks of one curve. Dot rows count from below."""

    def __init__(self, columns: int, rows: int) -> None:
        self.rows = rows
        self.masks = [bytearray(columns) for _ in range(rows)]  # [row from the top][column]
        self.marks: dict[int, str] = {}  # column -> mark
        self.onsets: set[int] = set()  # columns where the curve stops being finite

    def add(self, xs: Sequence[float], ys: Sequence[float], x_axis: Axis, y_axis: Axis) -> None:
        """Draw a curve: one vertical stretch per dot column, lines from each to the next."""
        pen: tuple[int, int] | None = None  # last dot of an unbroken line
        is_alone = False  # whether the pen stands on a dot without a neighbour
        was_finite = True
        index = bisect_left(xs, x_axis.edge(0))
        for column in range(x_axis.dots):
            is_last = column == x_axis.dots - 1
            end = bisect_left(xs, x_axis.edge(column + 1), index)
            if is_last:
                end = bisect_right(xs, x_axis.edge(column + 1), index)
            for run in split_finite(ys[index:end], y_axis.log):
                if isinstance(run, str):
                    self._mark(column // 2, run, is_onset=was_finite)
                    self._thicken(pen, is_alone)
                    pen, was_finite = None, False
                    continue
                first, last = y_axis.place(run[0]), y_axis.place(run[-1])
                low, high = y_axis.place(min(run)), y_axis.place(max(run))
                if pen is not None:
                    self._join(pen, (column, first))
                self._fill(column, low, high)
                is_alone = pen is None and low == high
                pen, was_finite = (column, last), True
            index = end
        self._thicken(pen, is_alone)

    def _dot(self, column: int, dot: int) -> None:
        """Set one dot."""
        self.masks[self.rows - 1 - dot // 4][column // 2] |= _DOTS[dot % 4][column % 2]

    def _fill(self, column: int, low: int, high: int) -> None:
        """Set the dots low..high of a column."""
        for dot in range(low, high + 1):
            self._dot(column, dot)

    def _join(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Set the dots of the straight line between two dots (Bresenham)."""
        (column, dot), (last_column, last_dot) = start, end
        run, rise = last_column - column, abs(last_dot - dot)
        toward = 1 if last_dot > dot else -1
        error = run - rise
        while (column, dot) != end:
            self._dot(column, dot)
            twice = 2 * error
            if twice > -rise:
                error -= rise
                column += 1
            if twice < run:
                error += run
                dot += toward
        self._dot(column, dot)

    def _mark(self, column: int, mark: str, *, is_onset: bool) -> None:
        """Note a value without a place; NaN outranks an infinity in the same column."""
        if self.marks.get(column) != NAN_MARK:
            self.marks[column] = mark
        if is_onset:
            self.onsets.add(column)

    def _thicken(self, pen: tuple[int, int] | None, is_alone: bool) -> None:
        """Give a dot that no line touches three neighbours: a single one is easily missed."""
        if pen is None or not is_alone:
            return
        column, dot = pen
        other = dot + 1 if dot % 4 < 3 else dot - 1
        for side in (column - column % 2, column - column % 2 + 1):
            self._fill(side, min(dot, other), max(dot, other))
