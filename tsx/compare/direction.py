"""Which way a metric improves. Pure; standard library only."""

from __future__ import annotations

from enum import StrEnum

from registry.views import MetricSummary

_LOWER = ("loss", "pred", "aux", "mae", "mse")
_HIGHER = ("toks_per_sec", "points_per_sec", "valid_points_per_sec", "tflops", "mfu")


class Direction(StrEnum):
    """Which values of a metric are better."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"  # a setting or a reading: lr, grad_norm, sys/...


def find_direction(key: str) -> Direction:
    """Return which way the metric of this key improves."""
    split, _, quantity = key.partition("/")
    if split not in ("train", "val", "ood"):
        return Direction.NEITHER
    stem = quantity.partition("_h")[0] if quantity.startswith(("mae_h", "mse_h")) else quantity
    if stem in _LOWER:
        return Direction.LOWER
    return Direction.HIGHER if stem in _HIGHER else Direction.NEITHER


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
