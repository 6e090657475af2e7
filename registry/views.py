"""What readers get back: frozen dataclasses, no library behind them.

Times are UTC seconds since the epoch, or None where it has not happened. Values may be NaN or
infinite. Text comes from runs and may be hostile: whoever shows it makes escape codes and markup
inert first.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RunRow:
    """One line of a run list.

    `metrics` holds the last value per key, `finding_counts` the number of findings per severity;
    one that was seen again and again is one.
    """

    id: str
    name: str
    recipe: str
    status: str
    reason: str
    created: float
    ended: float | None
    step: int
    steps: int
    tags: tuple[str, ...]
    parent: str
    note: str
    seed: int
    smoke: bool
    device: str
    precision: str
    data_source: str
    host: str
    project: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    finding_counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """Extremes of one curve. `min` and `max` are over finite values, NaN when there are none."""

    key: str
    last: float
    last_step: int
    min: float
    min_step: int
    max: float
    max_step: int
    count: int
    nonfinite_count: int


@dataclass(frozen=True, slots=True)
class Series:
    """One curve in step order: three arrays of equal length."""

    key: str
    steps: array[int]  # typecode "q"
    values: array[float]  # typecode "d"
    times: array[float]  # typecode "d"

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, slots=True)
class HistogramRow:
    """How values were spread at one step; see registry.events.Histogram for the fields."""

    key: str
    step: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    nonfinite_count: int
    time: float


@dataclass(frozen=True, slots=True)
class FindingRow:
    """A finding as stored; see registry.events.Finding for the fields."""

    kind: str
    severity: str
    step: int
    phase: str
    module: str
    op: str
    where: str
    cause: str
    evidence: dict[str, Any]
    fix: str
    count: int
    time: float


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """A file a run wrote; `path` is relative to the run's folder."""

    kind: str
    path: str
    step: int
    size_bytes: int
    metadata: dict[str, Any]
    time: float


@dataclass(frozen=True, slots=True)
class OutputText:
    """Captured output of one stream."""

    stream: str
    text: str
    dropped_bytes: int


@dataclass(frozen=True, slots=True)
class RunDetail:
    """Everything the registry knows of one run, its curves aside."""

    run: RunRow
    config: dict[str, Any]
    environment: dict[str, Any]  # command, cwd, git, host, versions, device, params, data, ...
    metrics: dict[str, MetricSummary]
    findings: tuple[FindingRow, ...]
    artifacts: tuple[ArtifactRow, ...]
    output: tuple[OutputText, ...]
    resumes: tuple[tuple[float, int, int], ...]  # (time, from_step, steps)
    histograms: dict[str, HistogramRow] = field(default_factory=dict)  # the newest of each key
