"""Learning rates, aux losses and speeds against what they ought to be."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator

from registry.events import Severity, Status
from registry.views import FindingRow, Series
from tsx.curves.levels import Change, find_median, measure_change
from tsx.curves.recorded import Recorded, find_number, make_finding
from tsx.text import format_value

_RATES = ("train/lr", "train/learning_rate", "lr", "learning_rate", "lr-AdamW", "optim/lr")
_SET_RATES = ("optim.lr", "lr", "learning_rate", "optimizer.lr", "train.lr", "training.lr")
_ARRIVED = 0.5  # of the rate that was asked for: less is another run than the one that was meant

_AUX = ("train/aux", "train/aux_loss", "aux", "aux_loss")
_MISSCALED = 1.9  # times the flat router's value, at the start: a router starts nearly flat
_AT_START = 5  # points

_SPEEDS = re.compile(r"(tok(en)?s|samples|steps|examples|points|it)(_per_|/)s(ec(ond)?)?$")
_STEP_TIMES = re.compile(r"(step|iter)_time(_ms|_s)?$")
_MIN_SPEEDS = 40  # points
_SLOWER = 0.25  # of the speed lost: clocks and neighbours take a tenth
_SURE = 3.0  # standard errors


def find_rate_key(keys: Collection[str]) -> str | None:
    """Return the key of a run's learning rate, None where it recorded none."""
    return next((key for key in _RATES if key in keys), None)


def find_unreached_rate(recorded: Recorded) -> Iterator[FindingRow]:
    """Find a learning rate that stays far below the one the config asks for.

    Of a run that ended early nothing is said unless the rate would not arrive by its last planned
    step, at the pace at which it rises.
    """
    detail = recorded.detail
    key = find_rate_key(detail.metrics)
    wanted = find_number(recorded.settings, _SET_RATES)
    if key is None or wanted is None:
        return
    summary = detail.metrics[key]
    reached = summary.max
    if not reached < _ARRIVED * wanted:
        return
    planned, rises = detail.run.steps, summary.max_step == summary.last_step
    if rises and planned > summary.last_step > 0:
        if reached * planned / summary.last_step >= _ARRIVED * wanted:
            return
    elif detail.run.status != Status.COMPLETED:
        return
    yield make_finding(
        "lr",
        Severity.WARNING,
        recorded.get(key),
        summary.max_step,
        cause=f"the learning rate never arrives: {key} is at most {reached:.3g}, and the config "
        f"asks for {wanted:.3g}",
        evidence={
            "reached_lr": reached,
            "lr": wanted,
            "share": reached / wanted,
            "steps": planned or summary.last_step,
        },
        fix="shorten the warm-up, or step the schedule once an optimizer step",
    )


def find_misscaled_aux(recorded: Recorded) -> Iterator[FindingRow]:
    """Find a load-balancing loss that starts far from its value at a flat router.

    Known only for runs whose config tells layers, chosen experts and the reduction. Never says that
    a load is balanced: while probabilities are flat, aux has its flat value for any load.
    """
    settings = recorded.settings
    key = next((name for name in _AUX if name in recorded.detail.metrics), None)
    layers, top_k = (settings.get(name) for name in ("model.num_layers", "model.top_k"))
    reduction = settings.get("model.aux_reduction")
    if key is None or type(layers) is not int or type(top_k) is not int or layers < 1 or top_k < 1:
        return
    flat = {"per_layer": 1.0, "concatenated": float(top_k)}.get(str(reduction))
    series = recorded.get(key)
    start = [value for value in series.values[:_AT_START] if math.isfinite(value)]
    if flat is None or not start or not find_median(start) > _MISSCALED * flat:
        return
    times = find_median(start) / flat
    factors = {"num_layers": layers, "num_layers squared": layers**2, "top_k": top_k}
    near = [name for name, factor in factors.items() if abs(times / factor - 1) < 0.1]
    yield make_finding(
        "aux-scale",
        Severity.WARNING,
        series,
        series.steps[0],
        cause=f"{key} starts at {times:.3g} times its value at a flat router"
        + (f", which is {near[0]}" if near else ""),
        evidence={"flat_value": flat, "start": find_median(start), "times": round(times, 3)}
        | {name: factor for name, factor in factors.items() if name in near},
        fix="sum products over experts of one layer and take the mean over layers; read the load "
        "beside it",
    )


def find_slowdown(recorded: Recorded) -> Iterator[FindingRow]:
    """Find a speed that drops over a run: the second quarter of its points against the last."""
    for key in recorded.detail.metrics:
        name = key.rpartition("/")[2] if "/s" not in key[-4:] else key
        is_speed = bool(_SPEEDS.search(name))
        if not is_speed and not _STEP_TIMES.search(name):
            continue
        found = _find_drop(recorded, recorded.get(key), is_speed=is_speed)
        if found is not None:
            yield found
            return  # tokens, points and step time are one thing


def _find_drop(recorded: Recorded, series: Series, *, is_speed: bool) -> FindingRow | None:
    """Return the finding of one speed, or time a step, that got worse."""
    points = [
        (step, value if is_speed else 1 / value)
        for step, value in zip(series.steps, series.values, strict=True)
        if 0 < value < math.inf
    ]
    if len(points) < _MIN_SPEEDS:
        return None
    quarter = len(points) // 4
    values = [value for _, value in points]
    change = measure_change(values[quarter : 2 * quarter], values[-quarter:])
    lost = change.before - change.after
    if change.fall < _SLOWER or lost <= _SURE * change.error:
        return None
    step = _find_turn(points[quarter:], change)
    resumes = [at for _, at, _ in recorded.detail.resumes if at <= points[-1][0]]
    shown = (change.before, change.after) if is_speed else (1 / change.before, 1 / change.after)
    return make_finding(
        "throughput",
        Severity.INFO if resumes else Severity.WARNING,
        series,
        step,
        cause=f"steps get slower over the run: {series.key} goes from {format_value(shown[0])} to "
        f"{format_value(shown[1])}" + (", across a resume" if resumes else ""),
        evidence={
            "before": shown[0],
            "after": shown[1],
            "slower_pct": round(100 * change.fall, 1),
            "half_lost_at_step": step,
        }
        | ({"resumed_from": resumes[-1]} if resumes else {}),
        fix="look for what grows with the steps: lists of losses with their graphs, logs, a loader "
        "that keeps what it has served; and at clocks and neighbours of the machine",
    )


def _find_turn(points: list[tuple[int, float]], change: Change) -> int:
    """Return the step from which on at least half of the loss in speed is there, mostly."""
    half = (change.before + change.after) / 2
    slow = [value <= half for _, value in points]
    score = best = at = 0
    for index in range(len(points) - 1, -1, -1):  # the longest end that is mostly slow
        score += 1 if slow[index] else -1
        if score > best:
            best, at = score, index
    return points[at][0]
