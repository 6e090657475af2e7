"""A run beside its siblings: where its loss leaves what the others did.

A sibling is a run of the same recipe and project, on the same data, whose config differs in nothing
that decides which loss is measured: `tsx.compare.guards` refuses the unfair ones.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from registry.events import Severity, Status
from registry.views import FindingRow, RunDetail, Series
from tsx.compare.configdiff import find_differences
from tsx.compare.guards import list_warnings, list_withheld
from tsx.curves.levels import SIGMA_PER_MAD, find_median
from tsx.curves.recorded import Recorded, make_finding

_MOST_ASKED = 32  # runs whose configs are read
_MOST_SIBLINGS = 8  # whose curves are read
_MAX_DIFFERENCES = 3  # config keys: with more, two runs are not one experiment
_NOT_MEASURED = ("train.seed", "seed", "name", "run_name")  # change no loss but by chance
_TELLING = ("perf.", "diagnostics.", "eval.", "train.log_every", "train.checkpoint_every")
_HALF = 4  # points to each side over which the densest curve is smoothed
_STAYS = 8  # points outside the band that are no chance
_MARGIN = math.log(1.25)  # outside the band: seeds of one config differ by a few percent
_MARGIN_OF_ONE = math.log(1.6)  # with one sibling there is no band to see
_NOISES = 4.0  # of the difference between two smoothed curves


@dataclass(frozen=True, slots=True)
class Siblings:
    """The runs that a run is fairly held against, and why others are not."""

    details: tuple[RunDetail, ...]
    differences: tuple[str, ...]  # config keys on which any of them differs
    refused: dict[str, int]  # reason to number of runs


class _Curve(NamedTuple):
    """A curve, smoothed, in logarithms."""

    steps: list[int]
    values: list[float]
    noise: float  # standard deviation of a value


def find_departure(recorded: Recorded) -> Iterator[FindingRow]:
    """Find the step at which the loss leaves the band of its siblings, upwards, and stays out."""
    key = recorded.loss_key
    if key is None or not (siblings := list_siblings(recorded, key)).details:
        return
    series = recorded.get(key)
    read = recorded.reader.get_outline
    others = [read(detail.run.id, key, 500) for detail in siblings.details]
    found = find_leaving(series, others)
    if found is None:
        return
    step, ratio, largest, level = found
    chosen = [name for name in siblings.differences if not name.startswith(_TELLING)]
    meant = ", ".join(chosen)
    yield make_finding(
        "sibling-jump",
        Severity.INFO if chosen else Severity.WARNING,
        series,
        step,
        cause=f"{key} leaves the band of {len(others)} sibling run{'s' * (len(others) > 1)} at "
        f"step {step}: {ratio:.3g} times theirs, up to {largest:.3g} times later"
        + (f"; they differ in {meant}" if meant else ""),
        evidence={
            "siblings": [detail.run.id for detail in siblings.details],
            "siblings_loss": level,
            "ratio": round(ratio, 3),
            "largest_ratio": round(largest, 3),
            "differences": list(siblings.differences),
            "refused": siblings.refused,
        },
        fix=f"tsx compare {recorded.detail.run.id} {siblings.details[0].run.id}",
    )


def list_siblings(recorded: Recorded, key: str) -> Siblings:
    """Return the newest runs that a run's loss is fairly held against."""
    own = recorded.detail
    if not own.run.recipe and not own.run.project:
        return Siblings((), (), {})
    rows = recorded.reader.list_runs(
        limit=_MOST_ASKED + 1, recipe=own.run.recipe, project=own.run.project, keys=(key,)
    )
    found: list[RunDetail] = []
    differences: dict[str, None] = {}
    refused: Counter[str] = Counter()
    for row in rows:
        if row.id == own.run.id or len(found) == _MOST_SIBLINGS:
            continue
        if row.status in (Status.DIVERGED, Status.FAILED, Status.OOM) or key not in row.metrics:
            refused[f"{row.status}, or without {key}"] += 1
            continue
        detail = recorded.reader.get_detail(row.id)
        differing = [each.key for each in find_differences([own.config, detail.config])]
        reason = _find_refusal(own, detail, key, differing)
        if reason:
            refused[reason] += 1
        else:
            found.append(detail)
            differences |= dict.fromkeys(name for name in differing if name not in _NOT_MEASURED)
    return Siblings(tuple(found), tuple(differences), dict(refused))


def find_leaving(
    series: Series, others: Sequence[Series]
) -> tuple[int, float, float, float] | None:
    """Return (step, ratio there, largest ratio, siblings' loss there), None where it stays inside.

    A curve is inside where it is below the highest sibling's by a margin: what seeds differ by, or
    four times the noise of the curves.
    """
    # The same steps for all: a median over more of a falling curve is another level.
    reach = _HALF * min(map(_find_gap, (series, *others)))
    own = _smooth(series, reach)
    smoothed = [curve for each in others if (curve := _smooth(each, reach)).steps]
    if len(own.steps) < _STAYS or not smoothed:
        return None
    noise = math.sqrt(2) * max(curve.noise for curve in (own, *smoothed))
    margin = max(_MARGIN if len(smoothed) > 1 else _MARGIN_OF_ONE, _NOISES * noise)
    outside: list[tuple[int, float, float]] = []
    for step, x in zip(own.steps, own.values, strict=True):
        there = [_get_at(curve, step) for curve in smoothed]
        known = [value for value in there if value is not None]
        if not known or x - max(known) <= margin:
            if len(outside) >= _STAYS:
                break
            outside = []
            continue
        outside.append((step, x - find_median(known), find_median(known)))
    if len(outside) < _STAYS:
        return None
    step, height, level = outside[0]
    return step, math.exp(height), math.exp(max(h for _, h, _ in outside)), math.exp(level)


def _find_refusal(own: RunDetail, other: RunDetail, key: str, differing: Sequence[str]) -> str:
    """Return why a run is no fair sibling, nothing where it is one."""
    pair = [own, other]
    unfair = list_warnings(pair)
    if unfair:
        return unfair[0]
    if list_withheld(pair, [key]):
        return f"{key} means something else there"
    measured = [name for name in differing if name not in _NOT_MEASURED]
    structural = [name for name in measured if name.startswith(("model.", "train.batch_size"))]
    if structural:
        return f"another model or batch: {', '.join(structural[:_MAX_DIFFERENCES])}"
    if len(measured) > _MAX_DIFFERENCES:
        return f"more than {_MAX_DIFFERENCES} config keys differ"
    return ""


def _smooth(series: Series, reach: float) -> _Curve:
    """Return the log of the running median over steps up to `reach` away, of what is positive."""
    points = [
        (step, math.log(value))
        for step, value in zip(series.steps, series.values, strict=True)
        if 0 < value < math.inf
    ]
    steps, logs = [step for step, _ in points], [value for _, value in points]
    windows = [(bisect_left(steps, at - reach), bisect_right(steps, at + reach)) for at in steps]
    changes = [abs(b - a) for a, b in pairwise(logs)]
    # Of one value, from changes of two; then of a median of the usual number of them.
    single = SIGMA_PER_MAD * find_median(changes) / math.sqrt(2) if changes else 0.0
    usual = find_median([end - first for first, end in windows]) if windows else 1.0
    noise = single * (math.sqrt(math.pi / 2 / usual) if usual > 1 else 1.0)
    return _Curve(steps, [find_median(logs[first:end]) for first, end in windows], noise)


def _find_gap(series: Series) -> float:
    """Return the mean number of steps between two points, infinite for fewer than two."""
    steps = series.steps
    return (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else math.inf


def _get_at(curve: _Curve, step: int) -> float | None:
    """Return the value of a curve at a step, by the nearest points; None outside of it."""
    steps, values = curve.steps, curve.values
    at = bisect_right(steps, step) - 1
    if at < 0 or step > steps[-1]:
        return None
    if at + 1 == len(steps) or steps[at] == step:
        return values[at]
    share = (step - steps[at]) / (steps[at + 1] - steps[at])
    return values[at] + share * (values[at + 1] - values[at])
