"""Curves of several runs onto one axis: steps, tokens seen or time trained. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from registry.views import Series
from tsx.chart import Curve


class XAxis(StrEnum):
    """What the curves of several runs are laid over."""

    STEPS = "steps"
    TOKENS = "tokens"
    TIME = "time"


_NAMES = {XAxis.STEPS: "step", XAxis.TOKENS: "token", XAxis.TIME: "s"}


@dataclass(frozen=True, slots=True)
class Aligned:
    """One metric of several runs. `curves` has one entry per run, without points where it has none.

    `shared` is the last position every run with points has reached, None when none has any;
    `values_there` holds each run's newest value at that position, None for a run without points.
    """

    key: str
    x_label: str
    curves: tuple[Curve, ...]
    shared: float | None
    values_there: tuple[float | None, ...]


def align(
    series: Sequence[Series],
    names: Sequence[str],
    axis: XAxis = XAxis.STEPS,
    tokens_per_step: Sequence[float] = (),
) -> Aligned:
    """Lay one metric of several runs over one axis.

    Args:
        series: the curve of each run, all of one key.
        names: what each run is called in a legend.
        axis: what to measure positions in.
        tokens_per_step: of each run; needed for tokens only.

    Raises:
        ValueError: tokens are asked for without `tokens_per_step` of every run.
    """
    if axis is XAxis.TOKENS and len(tokens_per_step) != len(series):
        raise ValueError("tokens_per_step of every run is needed to align by tokens")
    scales = tokens_per_step or [1.0] * len(series)
    curves = tuple(
        Curve(name, _place(held, axis, scale), held.values)
        for held, name, scale in zip(series, names, scales, strict=True)
    )
    ends = [curve.xs[-1] for curve in curves if len(curve.xs)]
    shared = min(ends) if ends else None
    there = tuple(_value_at(curve, shared) for curve in curves)
    key = series[0].key if series else ""
    return Aligned(key, _NAMES[axis], curves, shared, there)


def _place(series: Series, axis: XAxis, scale: float) -> Sequence[float]:
    """Return the positions of a curve's points."""
    if axis is XAxis.STEPS:
        return series.steps
    if axis is XAxis.TOKENS:
        return [step * scale for step in series.steps]
    # A resumed run's clock may have been set back; time trained never runs backwards.
    elapsed, latest = [], 0.0
    for moment in series.times:
        latest = max(latest, moment - series.times[0])
        elapsed.append(latest)
    return elapsed


def _value_at(curve: Curve, position: float | None) -> float | None:
    """Return the newest value at or before a position."""
    if position is None:
        return None
    index = bisect_right(curve.xs, position)
    return curve.ys[index - 1] if index else None
