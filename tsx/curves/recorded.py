"""A run's curves as its findings need them: whole where they are short, as an outline where not."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from registry.events import Severity
from registry.queries import Reader
from registry.series import find_place, load_since
from registry.stretches import Stretch, load_stretches
from registry.views import FindingRow, RunDetail, Series
from tsx.compare.configdiff import flatten
from tsx.curves.spikes import WINDOW, Spike, find_spikes, is_steep
from tsx.loss_names import TRAIN_LOSSES, find_first

PHASE = "curve"
_WIDTH = 500  # columns of an outline; a curve of fewer than 32 times as many points comes whole
_WHOLE = 50_000  # points that are read for spikes without looking first where there may be any
_HUGE = 1e30  # a config may hold any number; none that is meant is larger
_MOST_STEEP = 0.2  # of the stretches: with more of them the whole curve is read at once


@dataclass(slots=True)
class Recorded:
    """One run and its curves, each read once."""

    reader: Reader
    detail: RunDetail
    _held: dict[str, Series] = field(default_factory=dict)

    @property
    def loss_key(self) -> str | None:
        """Key of the training loss, None where the run recorded none."""
        return find_first(TRAIN_LOSSES, self.detail.metrics)

    @property
    def settings(self) -> dict[str, Any]:
        """The config as "section.key" to value."""
        return flatten(self.detail.config)

    def get(self, key: str) -> Series:
        """Return true points of a curve, all of them where it is short; see registry.series."""
        if key not in self._held:
            self._held[key] = self.reader.get_outline(self.detail.run.id, key, _WIDTH)
        return self._held[key]

    def find_spikes(self, key: str) -> list[Spike]:
        """Return the spikes of a curve; of a long one only its steep stretches are read."""
        run, summary = self.detail.run.id, self.detail.metrics[key]
        if summary.count <= _WHOLE:
            whole = self.reader.get_series(run, key)
            return find_spikes(whole.steps, whole.values)
        spikes: dict[int, Spike] = {}
        with self.reader.snapshot() as connection:
            place = find_place(connection, run, key)
            if place is None:
                return []
            for after, until in _list_steep(load_stretches(connection, place, WINDOW)):
                part = load_since(connection, place, key, after, until)
                spikes |= {spike.step: spike for spike in find_spikes(part.steps, part.values)}
        return [spikes[step] for step in sorted(spikes)]


def _list_steep(stretches: Sequence[Stretch]) -> list[tuple[int, int | None]]:
    """Return (after, until) of the parts of a curve that may hold spikes; None is its end."""
    largest = [math.inf if each.max is None else each.max for each in stretches]
    steep = [index for index in range(len(largest)) if is_steep(largest, index)]
    if len(steep) > _MOST_STEEP * len(stretches):
        return [(0, None)]
    parts: list[tuple[int, int | None]] = []
    # A spike is judged by a full window before it and followed through one behind it.
    for index in [*steep, len(stretches)]:
        first = max(index - 4, 0)
        after = stretches[first - 1].end if first else 0
        until = stretches[index + 2].end if index + 2 < len(stretches) else None
        if parts and (parts[-1][1] is None or parts[-1][1] >= after):
            parts[-1] = (parts[-1][0], until)
        else:
            parts.append((after, until))
    return parts


def make_finding(
    kind: str,
    severity: Severity,
    series: Series,
    step: int,
    *,
    cause: str,
    evidence: dict[str, Any],
    fix: str,
    count: int = 1,
) -> FindingRow:
    """Return a finding at a step of a curve, as recorded ones are read."""
    at = max(bisect_right(series.steps, step) - 1, 0)
    return FindingRow(
        kind=kind,
        severity=severity.value,
        step=step,
        phase=PHASE,
        module="",
        op="",
        where="",
        cause=cause,
        evidence={"metric": series.key, **evidence},
        fix=fix,
        count=count,
        time=series.times[at] if len(series) else 0.0,
    )


def find_number(settings: dict[str, Any], names: Sequence[str]) -> float | None:
    """Return the first of some settings that is a number above 0."""
    for name in names:
        value = settings.get(name)
        if isinstance(value, int | float) and 0 < value < _HUGE:
            return float(value)
    return None
