"""Axes for charts of character cells: which value lies at which dot, and ticks in nice numbers.

A linear value axis is chosen so that every tick is the exact centre of a row: the step between
ticks is a nice number and a whole number of rows. A log axis and a position axis keep the range of
the data and put each tick on the row or column it falls in. Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

# A curve flatter than this share of its size is drawn as a flat line: below it the tick labels
# would be a dozen digits that nobody reads.
_FLAT = 1e-9
_TINY = 1e-290  # spans under this would underflow in the arithmetic of ticks
_HUGE = 1e290  # values over this are scaled down first, so that a span never overflows
_MANTISSAS = (1.0, 2.0, 2.5, 5.0)
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Tick(NamedTuple):
    """A labelled place on an axis: `cell` counts rows from the top, or columns from the left."""

    cell: int
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values on `dots` dots. `low` and `high` are its outer edges, projected.

    Values are projected first (see `project`): the logarithm on a log axis, a power of ten
    times the value where the range would overflow.
    """

    low: float
    high: float
    dots: int
    log: bool
    scale: float
    ticks: tuple[Tick, ...]

    def project(self, value: float) -> float:
        """Return `value` on the axis' own scale; on a log axis -inf for 0 and NaN below 0."""
        return _project(value, self.log, self.scale)

    def place(self, value: float) -> int:
        """Return the dot of a finite value, counted from the low end and kept inside the axis."""
        share = (self.project(value) - self.low) / (self.high - self.low)
        return min(max(math.floor(share * self.dots), 0), self.dots - 1)

    def edge(self, dot: int) -> float:
        """Return the value at the low edge of a dot. For linear axes only."""
        return (self.low + (self.high - self.low) * dot / self.dots) / self.scale


def make_value_axis(low: float, high: float, rows: int, *, log: bool) -> Axis:
    """Return the vertical axis over `rows` rows of four dots that holds low..high.

    Args:
        low: smallest value; on a log axis it must be over 0.
        high: largest value.
        rows: character rows, at least 1.
        log: whether to use the logarithm of the values.
    """
    if log:
        return _make_log_axis(math.log10(low), math.log10(high), rows)
    scale = _find_scale(low, high)
    return _make_linear_axis(*_widen(low * scale, high * scale), rows, scale)


def make_position_axis(low: float, high: float, columns: int) -> Axis:
    """Return the horizontal axis over `columns` columns: low on the first dot, high on the last."""
    scale = _find_scale(low, high)
    low, high = low * scale, high * scale
    dots = columns * 2
    if high - low < _TINY:
        pad = max(0.5, abs(low) * _FLAT)
        tick = Tick(columns // 2, _format_alone(low / scale))
        return Axis(low - pad, high + pad, dots, False, scale, (tick,))
    half_dot = (high - low) / max(dots - 1, 1) / 2
    bare = Axis(low - half_dot, high + half_dot, dots, False, scale, ())
    ticks = _list_position_ticks(low / scale, high / scale, bare, columns)
    return Axis(bare.low, bare.high, dots, False, scale, ticks)


def format_ticks(values: list[float], step: float) -> list[str]:
    """Return labels of one style for values a multiple of `step` apart: 0.25, 20k, 1.5e-6.

    A value beyond the largest float has an empty label.
    """
    peak = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if peak == 0:
        return ["0" if value == 0 else "" for value in values]
    if peak >= 1e15 or peak < 1e-3:
        return _format_scientific(values, peak, step)
    factor, suffix = 1.0, ""
    if peak >= 1e4:
        factor, suffix = next(pair for pair in _SUFFIXES if peak >= pair[0])
    decimals = _count_decimals(step / factor)
    texts = [f"{value / factor:.{decimals}f}" for value in values]
    zero = f"{0:.{decimals}f}"
    return ["0" if text.lstrip("-") == zero else text + suffix for text in texts]


def _project(value: float, log: bool, scale: float) -> float:
    """Return the value as the axis measures it."""
    if not log:
        return value * scale
    if value > 0:
        return math.log10(value)
    return -math.inf if value == 0 else math.nan


def _find_scale(low: float, high: float) -> float:
    """Return the power of ten that keeps the span and the ticks of low..high finite."""
    return 1e-20 if max(abs(low), abs(high)) > _HUGE else 1.0


def _widen(low: float, high: float) -> tuple[float, float]:
    """Return the range, opened to something visible where the curve is flat."""
    size = max(abs(low), abs(high))
    if high - low > max(size * _FLAT, _TINY):
        return low, high
    pad = size * 0.1 if size > _TINY else 0.5
    return low - pad, high + pad


def _make_linear_axis(low: float, high: float, rows: int, scale: float) -> Axis:
    """Choose the nice step and the rows per tick that waste the fewest rows."""
    step, rows_per_tick = _choose_step(low, high, rows)
    unit = step / rows_per_tick
    bottom = _row_of(low, unit)
    slack = rows - (_row_of(high, unit) - bottom + 1)
    lowered = bottom - slack // 2
    # Rows below zero under a curve that is never negative would suggest that it could be.
    bottom = max(lowered, 0) if bottom >= 0 else lowered
    counts = [n for n in range(bottom, bottom + rows) if n % rows_per_tick == 0]
    values = [n // rows_per_tick * step / scale for n in counts]
    labels = format_ticks(values, step / scale)
    ticks = tuple(
        Tick(bottom + rows - 1 - n, label) for n, label in zip(counts, labels, strict=True) if label
    )
    edges = (bottom - 0.5) * unit, (bottom + rows - 0.5) * unit
    return Axis(*edges, rows * 4, False, scale, ticks)


def _row_of(value: float, unit: float) -> int:
    """Return the row whose centre, a multiple of `unit`, is nearest to the value."""
    return math.floor(value / unit + 0.5)


def _choose_step(low: float, high: float, rows: int) -> tuple[float, int]:
    """Return (nice step, rows per tick): the cheapest pair with which low..high fits the rows."""
    spacings = [1] if rows < 5 else range(2, min(8, rows // 2) + 1)
    ideal = min(max(rows / 5, 2.5), 5.0)  # rows per tick: some five ticks, never crowded
    best = (math.inf, math.inf, 1)
    for rows_per_tick in spacings:
        exponent = math.floor(math.log10((high - low) / rows * rows_per_tick)) - 1
        candidates = [m * 10.0**e for e in range(exponent, exponent + 4) for m in _MANTISSAS]
        for step in candidates:
            unit = step / rows_per_tick
            if _row_of(high, unit) - _row_of(low, unit) < rows:
                # A little waste is worth round labels at a good distance.
                odd = 0.04 if _count_decimals(step) > _count_decimals(step * 2) else 0.0
                few = 0.25 if rows // rows_per_tick < 3 else 0.0
                cost = unit * rows / (high - low) + 0.05 * abs(rows_per_tick - ideal) + odd + few
                best = min(best, (cost, step, rows_per_tick))
                break
    return best[1], best[2]


def _make_log_axis(low: float, high: float, rows: int) -> Axis:
    """Return a log axis over the decades low..high: the extremes lie on the outermost dots."""
    dots = rows * 4
    if high - low < _FLAT:
        low, high = low - 0.5, high + 0.5
    half_dot = (high - low) / (dots - 1) / 2
    edges = low - half_dot, high + half_dot
    bare = Axis(*edges, dots, True, 1.0, ())
    for values in _list_log_candidates(low, high):
        by_row: dict[int, float] = {}
        for value in values:
            row = rows - 1 - bare.place(value) // 4
            if row not in by_row and row - 1 not in by_row and row + 1 not in by_row:
                by_row[row] = value
        if len(by_row) >= min(3, (rows + 1) // 2):
            break
    ticks = tuple(Tick(row, _format_alone(value)) for row, value in sorted(by_row.items()))
    return Axis(*edges, dots, True, 1.0, ticks)


def _list_log_candidates(low: float, high: float) -> list[list[float]]:
    """Return lists of tick values from the roundest to the finest."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    decades = range(max(math.floor(low), -307), min(math.ceil(high), 307) + 1)
    stride = max(1, (last - first) // 6)
    lists = [[10.0**e for e in decades if (e - first) % stride == 0]]
    lists += [[m * 10.0**e for e in decades for m in marks] for marks in ((1, 3), (1, 2, 5))]
    if high - low < 1 and -300 < low < high < 300:
        bottom, top = 10.0**low, 10.0**high
        fine = _find_nice_step(bottom, top, 4)
        lists.append([fine * n for n in range(math.ceil(bottom / fine), int(top / fine) + 1)])
    inside = low - 1e-9, high + 1e-9
    return [[v for v in values if inside[0] <= math.log10(v) <= inside[1]] for values in lists]


def _find_nice_step(low: float, high: float, count: int) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that fits `count` times at most."""
    exponent = math.floor(math.log10((high - low) / count))
    steps = [m * 10.0**e for e in (exponent, exponent + 1) for m in (1, 2, 5)]
    return next(step for step in steps if (high - low) / step <= count)


def _list_position_ticks(low: float, high: float, axis: Axis, columns: int) -> tuple[Tick, ...]:
    """Return as many nice ticks between low and high as have room for their labels."""
    is_whole = low == math.floor(low) and high == math.floor(high)
    for count in range(max(columns // 7, 1), 0, -1):
        step = _find_nice_step(low, high, count)
        if is_whole:
            step = max(step, 1.0)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        values = [n * step for n in range(first, last + 1)]
        labels = format_ticks(values, step)
        ticks = [Tick(axis.place(v) // 2, label) for v, label in zip(values, labels, strict=True)]
        widest = max((len(label) for label in labels), default=0)
        gaps = [after.cell - before.cell for before, after in pairwise(ticks)]
        if all(gap >= widest + 2 for gap in gaps):
            return tuple(ticks)
    return ()


def _format_alone(value: float) -> str:
    """Return a label for a value that needs no common style with its neighbours."""
    if value == 0:
        return "0"
    if value == int(value) and abs(value) < 1e4:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.6g}"
    if 1e4 <= abs(value) < 1e15:
        factor, suffix = next(pair for pair in _SUFFIXES if abs(value) >= pair[0])
        return f"{value / factor:.6g}{suffix}"
    return _trim_exponent(f"{value:.2e}")


def _count_decimals(step: float) -> int:
    """Return the decimals that write multiples of `step` exactly, at most 12."""
    for decimals in range(12):
        rest = step * 10**decimals
        if abs(rest - round(rest)) < 1e-6 * max(rest, 1e-300) and round(rest):
            return decimals
    return 12


def _format_scientific(values: list[float], peak: float, step: float) -> list[str]:
    """Return labels as digits and exponent, all with the exponent of the largest."""
    exponent = math.floor(math.log10(peak))
    decimals = _count_decimals(step / 10.0**exponent)
    texts = [_trim_exponent(f"{value:.{decimals}e}") for value in values]
    return [
        "0" if abs(value) < step / 2 else text if math.isfinite(value) else ""
        for value, text in zip(values, texts, strict=True)
    ]


def _trim_exponent(text: str) -> str:
    """Return 1e-6 for 1.0e-06: no empty decimals, no padded exponent."""
    digits, mark, exponent = text.partition("e")
    if not mark:
        return text
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits}e{int(exponent)}"
