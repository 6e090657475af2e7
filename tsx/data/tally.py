"""What is odd in a data set's points, counted while they go by once.

Shapes: S series of a span.
"""

from __future__ import annotations

import math

import numpy as np

from tsx.data.meta import Floats, Ints
from tsx.data.scaling import Mask
from tsx.data.series import Span

# Fill values, overflowed counters and broken sensors lie beyond it, few measurements do; float32
# tells neighbours apart only by 64 there.
HUGE = 1e9
_MAX_NAMED = 5  # constant series that are noted by number


class Tally:
    """Points that are not finite or huge, and constant series, of one data set.

    Args:
        length_S: points of each of its series.
    """

    def __init__(self, length_S: Ints) -> None:
        self._length_S = length_S
        self.nonfinite = 0  # points
        self.nonfinite_series = 0
        self.first_nonfinite: tuple[int, int, float] | None = None  # series, point, value
        self.constant = 0  # series
        self.constant_first: list[int] = []
        self.huge = 0  # points
        self.first_huge: int | None = None  # series
        self.largest = 0.0  # size of the largest finite value
        # Of the long series that is under way, piece after piece.
        self._low, self._high, self._bad = math.inf, -math.inf, 0

    def add(self, span: Span) -> None:
        """Count one span; spans come in order."""
        held_S = np.flatnonzero(span.length_S)  # series with a point
        if not len(held_S):
            return
        values = span.values
        begin_S = np.concatenate([[0], np.cumsum(span.length_S[held_S])[:-1]])
        # Extremes tell almost everything: a NaN survives both, an infinity is one of them.
        low_S = np.minimum.reduceat(values, begin_S)
        high_S = np.maximum.reduceat(values, begin_S)
        bad_S = np.zeros(len(held_S), np.int64)
        if not (np.isfinite(low_S).all() and np.isfinite(high_S).all()):
            finite = np.isfinite(values)
            bad_S = np.add.reduceat(~finite, begin_S, dtype=np.int64)
            low_S = np.minimum.reduceat(np.where(finite, values, np.inf), begin_S)
            high_S = np.maximum.reduceat(np.where(finite, values, -np.inf), begin_S)
            self._note_nonfinite(span, finite, begin_S, held_S)
            values = values[finite]
        self._count_huge(values, low_S, high_S, span.first + held_S)
        self.nonfinite += int(bad_S.sum())
        if self._length_S[span.first] > len(values) + int(bad_S.sum()):
            self._add_piece(span, float(low_S[0]), float(high_S[0]), int(bad_S[0]))
            return
        self.nonfinite_series += int((bad_S > 0).sum())
        constant_S = (low_S == high_S) & (span.length_S[held_S] - bad_S > 1)
        self._note_constant((span.first + held_S[constant_S]).tolist())

    def _note_nonfinite(self, span: Span, finite: Mask, begin_S: Ints, held_S: Ints) -> None:
        """Keep where the first point is that is not finite."""
        if self.first_nonfinite is not None:
            return
        at = int(np.argmin(finite))
        row = int(np.searchsorted(begin_S, at, side="right")) - 1
        point = at - int(begin_S[row]) + span.start
        self.first_nonfinite = (span.first + int(held_S[row]), point, float(span.values[at]))

    def _count_huge(self, values: Floats, low_S: Floats, high_S: Floats, series_S: Ints) -> None:
        """Count finite points beyond HUGE; where no point is finite, low is above high."""
        size_S = np.where(low_S <= high_S, np.maximum(np.abs(low_S), np.abs(high_S)), 0.0)
        self.largest = max(self.largest, float(size_S.max()))
        if size_S.max() <= HUGE:
            return
        self.huge += int((np.abs(values) > HUGE).sum())
        if self.first_huge is None:
            self.first_huge = int(series_S[np.argmax(size_S > HUGE)])

    def _add_piece(self, span: Span, low: float, high: float, bad: int) -> None:
        """Count a piece of a long series; with its last piece, the series."""
        if span.start == 0:
            self._low, self._high, self._bad = math.inf, -math.inf, 0
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._bad += bad
        length = int(self._length_S[span.first])
        if span.start + len(span.values) == length:
            self.nonfinite_series += int(self._bad > 0)
            if self._low == self._high and length - self._bad > 1:
                self._note_constant([span.first])

    def _note_constant(self, series: list[int]) -> None:
        self.constant += len(series)
        room = max(0, _MAX_NAMED - len(self.constant_first))
        self.constant_first += series[:room]
