"""Which way a metric improves. Pure; standard library only."""

from __future__ import annotations

from enum import StrEnum

from registry.views import MetricSummary
from tsx.loss_names import find_sign, split_key

_LOWER = ("loss", "pred", "aux", "mae", "mse")
_READINGS = ("router", "sys", "watch")  # families of ours that tell of a run and judge nothing
_HIGHER = ("toks_per_sec", "points_per_sec", "valid_points_per_sec", "tflops", "mfu")


class Direction(StrEnum):
    """Which values of a metric are better."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"  # a setting or a reading: lr, grad_norm, sys/...


def find_direction(key: str) -> Direction:
    """Return which way the metric of this key improves, other programs' losses included."""
    if key.partition("/")[0] in _READINGS:
        return Direction.NEITHER
    split, quantity = split_key(key)
    if split and quantity in _LOWER:
        return Direction.LOWER
    if split and quantity in _HIGHER:
        return Direction.HIGHER
    return (Direction.NEITHER, Direction.HIGHER, Direction.LOWER)[find_sign(quantity)]


def find_best(summary: MetricSummary) -> tuple[float, int] | None:
    """Return the best value of a curve and its step, or None where no value is better.

    NaN where the curve has no finite value.
    """
    match find_direction(summary.key):
        case Direction.LOWER:
            return summary.min, summary.min_step
        case Direction.HIGHER:
            return summary.max, summary.max_step
        case _:
            return None
