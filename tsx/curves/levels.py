"""Levels of noisy curves: medians, their uncertainty, and what did not move. Standard library only.

Median and median absolute deviation throughout: one hard batch must not decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SIGMA_PER_MAD = 1.4826  # of a normal distribution
_MIN_POINTS = 40  # a quarter of fewer has no median worth the name
_MIN_FALL = 0.05  # of its size: a loss that is known to have fallen by less has not learned
_SURE = 2.0  # standard errors


def find_median(values: Sequence[float]) -> float:
    """Return the median of finite values, at least one."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def find_spread(values: Sequence[float]) -> float:
    """Return the standard deviation as the median absolute deviation tells it."""
    level = find_median(values)
    return SIGMA_PER_MAD * find_median([abs(value - level) for value in values])


@dataclass(frozen=True, slots=True)
class Change:
    """From the level of one part of a curve to that of a later one."""

    before: float
    after: float
    error: float  # standard error of the difference

    @property
    def fall(self) -> float:
        """Share of the first level that was lost; NaN where that is 0."""
        return (self.before - self.after) / abs(self.before) if self.before else math.nan


def measure_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """Return the change of level between two parts of a curve, both finite and not empty."""
    # A median of n normal values has the variance pi / (2 n).
    variance = sum(math.pi * find_spread(part) ** 2 / (2 * len(part)) for part in (before, after))
    return Change(find_median(before), find_median(after), math.sqrt(variance))


def find_plateau(values: Sequence[float]) -> Change | None:
    """Return how a loss stood still, or None where it moved, or nobody can tell.

    First quarter against last: what fell by less than `_MIN_FALL` of its size, beyond doubt, is
    still. A loss that rose clearly is no plateau.
    """
    known = [value for value in values if math.isfinite(value)]
    if len(known) < _MIN_POINTS:
        return None
    quarter = len(known) // 4
    change = measure_change(known[:quarter], known[-quarter:])
    room = _MIN_FALL * abs(change.before)
    fall = change.before - change.after
    return change if abs(fall) + _SURE * change.error <= room else None
