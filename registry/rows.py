"""From rows of the database to the views that readers return."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, select

from registry.codec import from_json, restore_floats
from registry.schema import (
    FINITE,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    artifacts,
    findings,
    outputs,
    resumes,
    runs,
    summaries,
    tags,
)
from registry.views import (
    ArtifactRow,
    FindingRow,
    MetricSummary,
    OutputText,
    RunDetail,
    RunRow,
    Series,
)

_LISTED = (
    *("id", "name", "recipe", "status", "reason", "created", "ended", "step", "steps"),
    *("parent", "note", "seed", "smoke", "device", "precision", "data_source", "host", "project"),
)


def load_runs(connection: Connection, chosen: Select[Any], keys: Mapping[int, str]) -> list[RunRow]:
    """Return the runs whose keys `chosen` selects, newest first, in three queries."""
    inner = chosen.subquery()
    ours = select(inner.c.key)
    columns = [runs.c[name] for name in _LISTED]
    listed = connection.execute(
        select(runs.c.key, *columns)
        .where(runs.c.key.in_(ours))
        .order_by(runs.c.created.desc(), runs.c.key.desc())
    ).all()
    last: dict[int, dict[str, float]] = {row[0]: {} for row in listed}
    query = select(summaries.c.run, summaries.c.key, summaries.c.last, summaries.c.last_flag)
    for run, key, value, flag in connection.execute(query.where(summaries.c.run.in_(ours))):
        last[run][keys[key]] = value if flag == FINITE else from_stored(value, flag)
    tagged: dict[int, list[str]] = {}
    tagging = select(tags.c.run, tags.c.tag).where(tags.c.run.in_(ours))
    for run, tag in connection.execute(tagging.order_by(tags.c.run, tags.c.position)):
        tagged.setdefault(run, []).append(tag)
    return [
        RunRow(
            **dict(zip(_LISTED, row[1:], strict=True)),
            tags=tuple(tagged.get(row[0], ())),
            metrics=last[row[0]],
        )
        for row in listed
    ]


def load_detail(
    connection: Connection, row: RowMapping, listed: RunRow, keys: Mapping[int, str]
) -> RunDetail:
    """Return everything about the run of a row of `runs`."""
    run = row["key"]
    return RunDetail(
        run=listed,
        config=from_json(row["config"]),
        environment=_get_environment(row),
        metrics=_load_summaries(connection, run, keys),
        findings=_load_findings(connection, run),
        artifacts=_load_artifacts(connection, run),
        output=tuple(
            OutputText(found["stream"], found["text"], found["dropped_bytes"])
            for found in connection.execute(
                select(outputs).where(outputs.c.run == run).order_by(outputs.c.stream.desc())
            ).mappings()
        ),
        resumes=tuple(
            (found["time"], found["from_step"], found["steps"])
            for found in connection.execute(
                select(resumes).where(resumes.c.run == run).order_by(resumes.c.seq)
            ).mappings()
        ),
    )


def to_series(key: str, created: float, points: Sequence[Any]) -> Series:
    """Return a curve from rows that begin with step, value, flag and time_ms."""
    return Series(
        key=key,
        steps=array("q", [point[0] for point in points]),
        values=array(
            "d",
            [
                point[1] if point[2] == FINITE else from_stored(point[1], point[2])
                for point in points
            ],
        ),
        times=array("d", [created + point[3] / 1000 for point in points]),
    )


def from_stored(value: float | None, flag: int) -> float:
    """Return the metric value of a value column and its flag."""
    if flag == POSITIVE_INFINITY:
        return math.inf
    if flag == NEGATIVE_INFINITY:
        return -math.inf
    return math.nan if flag != FINITE or value is None else value


def _get_environment(row: RowMapping) -> dict[str, Any]:
    """Return what the run ran on and with; journal lines that were no events, where there are."""
    environment: dict[str, Any] = restore_floats(from_json(row["environment"]))
    environment["folder"] = row["folder"]
    if row["bad_lines"]:
        environment["journal_bad_lines"] = row["bad_lines"]
    return environment


def _load_summaries(
    connection: Connection, run: int, keys: Mapping[int, str]
) -> dict[str, MetricSummary]:
    """Return the summary of every curve, by key in alphabetical order."""
    found = {}
    query = select(summaries).where(summaries.c.run == run)
    for row in connection.execute(query).mappings():
        key = keys[row["key"]]
        found[key] = MetricSummary(
            key=key,
            last=from_stored(row["last"], row["last_flag"]),
            last_step=row["last_step"],
            min=math.nan if row["min"] is None else row["min"],
            min_step=row["min_step"],
            max=math.nan if row["max"] is None else row["max"],
            max_step=row["max_step"],
            count=row["count"],
            nonfinite_count=row["nonfinite_count"],
        )
    return dict(sorted(found.items()))


def _load_findings(connection: Connection, run: int) -> tuple[FindingRow, ...]:
    """Return the findings in the order in which they first appeared."""
    names = FindingRow.__dataclass_fields__
    query = select(findings).where(findings.c.run == run).order_by(findings.c.seq)
    return tuple(
        FindingRow(
            **{name: row[name] for name in names if name != "evidence"},
            evidence=restore_floats(from_json(row["evidence"])),
        )
        for row in connection.execute(query).mappings()
    )


def _load_artifacts(connection: Connection, run: int) -> tuple[ArtifactRow, ...]:
    """Return the files in the order in which they were last written."""
    query = select(artifacts).where(artifacts.c.run == run).order_by(artifacts.c.seq)
    return tuple(
        ArtifactRow(
            kind=row["kind"],
            path=row["path"],
            step=row["step"],
            size_bytes=row["size_bytes"],
            metadata=restore_floats(from_json(row["metadata"])),
            time=row["time"],
        )
        for row in connection.execute(query).mappings()
    )
