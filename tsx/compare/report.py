"""Runs beside one another: what differs in their configs, and what came of it. Pure.

Numbers are compared with the first run. A metric that improves downwards (loss, mse, ...) is best
at its minimum, one that improves upwards (speed) at its maximum; settings have no best.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from registry.views import MetricSummary, RunDetail, RunRow
from tsx.compare.configdiff import Difference, find_differences
from tsx.compare.direction import Direction, find_best, find_direction
from tsx.compare.guards import list_warnings, list_withheld
from tsx.curve_groups import group_keys
from tsx.errors import TsxError


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric over the runs; None for a run without it, and `best` for one that has no best."""

    key: str
    direction: Direction
    last: tuple[float | None, ...]
    last_step: tuple[int | None, ...]
    best: tuple[float | None, ...]
    best_step: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison, ready to be shown."""

    runs: tuple[RunRow, ...]
    warnings: tuple[str, ...]
    config: tuple[Difference, ...]
    metrics: tuple[MetricRow, ...]
    withheld: tuple[str, ...]  # metric keys that these runs must not be compared by


def compare(details: Sequence[RunDetail]) -> Report:
    """Compare runs with the first of them."""
    keys = list(dict.fromkeys(key for detail in details for key in detail.metrics))
    withheld = list_withheld(details, keys)
    ordered = [key for group in group_keys(keys) for _, key in group.members]
    return Report(
        runs=tuple(detail.run for detail in details),
        warnings=tuple(list_warnings(details)),
        config=tuple(find_differences([detail.config for detail in details])),
        metrics=tuple(_make_row(key, details) for key in ordered if key not in withheld),
        withheld=tuple(withheld),
    )


def select_keys(report: Report, keys: tuple[str, ...]) -> Report:
    """Return the report with these metrics only, or as it is when there are no keys.

    Raises:
        TsxError: no run has the metric, or these runs must not be compared by it.
    """
    rows = {row.key: row for row in report.metrics}
    for key in keys:
        if key in report.withheld:
            raise TsxError(
                f"{key} means something else from run to run here, so it is not compared",
                next_command=f"tsx compare {' '.join(run.id for run in report.runs)}",
            )
        if key not in rows:
            near = difflib.get_close_matches(key, rows, n=3, cutoff=0.4)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise TsxError(f"none of the runs has a metric {key!r}{hint}", next_command="tsx runs")
    return replace(report, metrics=tuple(rows[key] for key in keys)) if keys else report


def find_delta(values: Sequence[float | None], index: int) -> float | None:
    """Return by how much a run's value exceeds the first run's; None where either is missing."""
    first, value = values[0], values[index]
    if index == 0 or first is None or value is None:
        return None
    if math.isinf(first) or math.isinf(value):
        return math.nan if first == value else value - first
    return value - first


def find_verdict(direction: Direction, delta: float | None) -> str:
    """Return "better", "worse" or, where neither can be said, nothing."""
    if not delta or math.isnan(delta) or direction is Direction.NEITHER:
        return ""
    return "better" if (delta < 0) == (direction is Direction.LOWER) else "worse"


def to_plain(report: Report) -> dict[str, Any]:
    """Return the report as plain data; `delta_*` are differences from the first run."""
    return {
        "runs": [
            {"id": run.id, "name": run.name, "recipe": run.recipe, "status": run.status}
            | {"step": run.step, "steps": run.steps, "seed": run.seed, "smoke": run.smoke}
            for run in report.runs
        ],
        "warnings": list(report.warnings),
        "config": {difference.key: list(difference.raw) for difference in report.config},
        "metrics": {row.key: _to_plain_row(row) for row in report.metrics},
        "withheld": list(report.withheld),
    }


def _to_plain_row(row: MetricRow) -> dict[str, Any]:
    """Return one metric as plain data."""
    runs = range(len(row.last))
    return {
        "direction": row.direction.value,
        "last": list(row.last),
        "last_step": list(row.last_step),
        "best": list(row.best),
        "best_step": list(row.best_step),
        "delta_last": [find_delta(row.last, index) for index in runs],
        "delta_best": [find_delta(row.best, index) for index in runs],
    }


def _make_row(key: str, details: Sequence[RunDetail]) -> MetricRow:
    """Return one metric over the runs."""
    found = [detail.metrics.get(key) for detail in details]
    best = [_find_best(summary) for summary in found]
    return MetricRow(
        key=key,
        direction=find_direction(key),
        last=tuple(summary.last if summary else None for summary in found),
        last_step=tuple(summary.last_step if summary else None for summary in found),
        best=tuple(pair[0] if pair else None for pair in best),
        best_step=tuple(pair[1] if pair else None for pair in best),
    )


def _find_best(summary: MetricSummary | None) -> tuple[float, int] | None:
    """Return the best value and its step, where there is a finite one."""
    best = find_best(summary) if summary else None
    return best if best and math.isfinite(best[0]) else None


def name_runs(runs: Sequence[RunRow]) -> list[str]:
    """Return a short name per run, with the id where two share one."""
    names = [run.name or run.id for run in runs]
    shared: Mapping[str, int] = {name: names.count(name) for name in names}
    return [
        f"{name} {run.id}" if shared[name] > 1 and name != run.id else name
        for name, run in zip(names, runs, strict=True)
    ]
