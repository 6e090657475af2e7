"""What the curve of a loss tells by itself: where it stopped being finite, leapt, or stood."""

from __future__ import annotations

import math
from collections.abc import Iterator

from registry.events import Severity
from registry.views import FindingRow, MetricSummary, Series
from tsx.compare.direction import Direction, find_direction
from tsx.curves.levels import find_plateau
from tsx.curves.rates import find_rate_key
from tsx.curves.recorded import Recorded, make_finding
from tsx.curves.spikes import Spike
from tsx.text import format_value

_MAX_LISTED = 8  # keys and spikes in one finding's evidence
_NEAR = 4  # points of the learning rate that a spike may follow from
_RAISED = 2.0  # a learning rate that much above itself was raised
_LATE = 0.1  # of a run: a plateau is told when the warm-up is over


def find_onset(recorded: Recorded) -> Iterator[FindingRow]:
    """Find where the first loss, or score that improves downwards, stopped being finite.

    Gradient norms alone are left out: a GradScaler that tries a scale makes them infinite.
    """
    summaries = recorded.detail.metrics
    onsets = sorted(
        (onset, key)
        for key, summary in summaries.items()
        if summary.nonfinite_count and (onset := _find_first_bad(recorded.get(key))) is not None
    )
    losses = [(step, key) for step, key in onsets if _is_judged(summaries[key])]
    if not losses:
        return
    step, key = losses[0]
    series, recovered = recorded.get(key), math.isfinite(summaries[key].last)
    points = list(zip(series.steps, series.values, strict=True))
    value = next(v for s, v in points if s == step and not math.isfinite(v))
    before = [(s, v) for s, v in points if s < step]
    followed = [(name, at) for at, name in onsets if at > step]
    yield make_finding(
        "nan-onset",
        Severity.WARNING if recovered or key != recorded.loss_key else Severity.ERROR,
        series,
        step,
        cause=f"{key} is {'NaN' if math.isnan(value) else 'infinite'} "
        + (f"at step {step}, and finite again later" if recovered else f"from step {step} on"),
        evidence={
            "first": [name for at, name in onsets if at <= step][:_MAX_LISTED],
            "followed": dict(followed[:_MAX_LISTED]),
            "last_finite_step": before[-1][0] if before else None,
            "last_finite_values": [float(f"{v:.6g}") for _, v in before[-4:]],
        },
        fix="take the step again under run.watch and run.compute: they name the operation, the "
        "module and the line of the first bad value",
        count=summaries[key].nonfinite_count,
    )


def find_leaps(recorded: Recorded) -> Iterator[FindingRow]:
    """Find the spikes of the training loss: one finding, at the highest of them.

    A leap that a restart of the schedule explains, at a rate that the run had before, is an info
    where the loss comes back.
    """
    key = recorded.loss_key
    spikes = recorded.find_spikes(key) if key is not None else []
    if key is None or not spikes:
        return
    worst = max(spikes, key=lambda spike: (spike.ratio if spike.ratio > 0 else 0.0, spike.noises))
    rates = _tell_rate(recorded, worst)
    restart = bool(rates) and rates["lr_after"] <= rates["lr_max_before"]
    back = worst.recovered_step is not None
    yield make_finding(
        "loss-spike",
        Severity.INFO if restart and back else Severity.WARNING,
        recorded.get(key),
        worst.step,
        cause=f"{key} leaps from {format_value(worst.level)} to {format_value(worst.peak)}"
        + _tell_end(worst)
        + ("; the learning rate was raised right before" if rates else ""),
        evidence={
            "level": worst.level,
            "peak": worst.peak,
            "ratio": round(worst.ratio, 3) if math.isfinite(worst.ratio) else None,
            "noises": round(worst.noises, 1),
            "recovered_step": worst.recovered_step,
            "steps": [spike.step for spike in spikes[:_MAX_LISTED]],
            **rates,
        },
        fix="look at the batches of this step, at the learning rate and at resumes right before "
        "it; clip gradients",
        count=len(spikes),
    )


def _tell_end(spike: Spike) -> str:
    """Return how a spike ended, as the end of a sentence."""
    if spike.recovered_step is not None:
        return f", and is back at step {spike.recovered_step}"
    return " and does not come back" if spike.points_after >= 2 else ", where the curve ends"


def find_standstill(recorded: Recorded) -> Iterator[FindingRow]:
    """Find a training loss that never left its level."""
    key = recorded.loss_key
    if key is None or recorded.detail.metrics[key].nonfinite_count:
        return
    series = recorded.get(key)
    if not len(series):
        return
    steps = series.steps
    begin = steps[0] + _LATE * (steps[-1] - steps[0])
    values = [v for s, v in zip(steps, series.values, strict=True) if s >= begin]
    change = find_plateau(values)
    first = [v for s, v in zip(steps, series.values, strict=True) if s < begin] or values[:1]
    if change is None or _has_fallen(first, change.before):
        return
    goes_on = recorded.settings.get("train.init_from") or recorded.detail.resumes
    yield make_finding(
        "plateau",
        Severity.INFO if goes_on else Severity.WARNING,
        series,
        steps[-1],
        cause=f"{key} stands at {format_value(change.after)}: it has not fallen since step "
        f"{steps[0]}",
        evidence={
            "first_quarter": change.before,
            "last_quarter": change.after,
            "standard_error": change.error,
            "points": len(values),
        },
        fix="look at the learning rate, at whether targets belong to their inputs, and at "
        "parameters without a gradient (tsx doctor)",
    )


def _has_fallen(first: list[float], level: float) -> bool:
    """Return whether a loss had fallen before the part that stands: it has learned, quickly."""
    return max(first) - level > 0.05 * max(abs(level), abs(max(first)))


def _find_first_bad(series: Series) -> int | None:
    """Return the first step with a value that is not finite."""
    return next(
        (s for s, v in zip(series.steps, series.values, strict=True) if not math.isfinite(v)), None
    )


def _is_judged(summary: MetricSummary) -> bool:
    """Return whether a curve is one that must be finite, and was finite once or is a loss."""
    return find_direction(summary.key) is Direction.LOWER and (
        summary.count > summary.nonfinite_count or "loss" in summary.key
    )


def _tell_rate(recorded: Recorded, spike: Spike) -> dict[str, float]:
    """Return how the learning rate rose right before a spike; nothing where it did not."""
    key = find_rate_key(recorded.detail.metrics)
    if key is None:
        return {}
    series = recorded.get(key)
    until = [v for s, v in zip(series.steps, series.values, strict=True) if s <= spike.step]
    before, near = until[:-_NEAR], until[-_NEAR:]
    if not before or not 0 < _RAISED * min(near) <= max(near):
        return {}
    return {"lr_before": min(near), "lr_after": max(near), "lr_max_before": max(before)}
