"""From rows of the database to the views that readers return."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, func, select

from registry.codec import from_json, restore_floats
from registry.schema import (
    FINITE,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    artifacts,
    findings,
    histograms,
    outputs,
    resumes,
    runs,
    summaries,
    tags,
)
from registry.statements import fetch_rows
from registry.views import (
    ArtifactRow,
    FindingRow,
    HistogramRow,
    MetricSummary,
    OutputText,
    RunDetail,
    RunRow,
)

_LISTED = (
    *("id", "name", "recipe", "status", "reason", "created", "ended", "step", "steps"),
    *("parent", "note", "seed", "smoke", "device", "precision", "data_source", "host", "project"),
)


def load_runs(
    connection: Connection,
    chosen: Select[Any],
    names: Mapping[int, str],
    only: Collection[str] | None,
) -> list[RunRow]:
    """Return the runs whose keys `chosen` selects, newest first, in four queries.

    Args:
        connection: in a transaction.
        chosen: selects `runs.key`.
        names: every metric key by its number.
        only: metric keys whose last values are wanted; None for all.
    """
    inner = chosen.subquery()
    ours = select(inner.c.key)
    listed = connection.execute(
        select(runs.c.key, *(runs.c[name] for name in _LISTED))
        .where(runs.c.key.in_(ours))
        .order_by(runs.c.created.desc(), runs.c.key.desc())
    ).all()
    last: dict[int, dict[str, float]] = {row[0]: {} for row in listed}
    query = select(summaries.c.run, summaries.c.key, summaries.c.last, summaries.c.last_flag)
    query = query.where(summaries.c.run.in_(ours))
    if only is not None:
        wanted = [number for number, name in names.items() if name in only]
        query = query.where(summaries.c.key.in_(wanted))
    for run, key, value, flag in fetch_rows(connection, query):
        last[run][names[key]] = value if flag == FINITE else from_stored(value, flag)
    tagged: dict[int, list[str]] = {}
    tagging = select(tags.c.run, tags.c.tag).where(tags.c.run.in_(ours))
    for run, tag in connection.execute(tagging.order_by(tags.c.run, tags.c.position)):
        tagged.setdefault(run, []).append(tag)
    counts: dict[int, dict[str, int]] = {}
    counting = select(findings.c.run, findings.c.severity, func.count())
    counting = counting.where(findings.c.run.in_(ours))
    for run, severity, count in connection.execute(
        counting.group_by(findings.c.run, findings.c.severity)
    ):
        counts.setdefault(run, {})[severity] = count
    return [
        RunRow(
            **dict(zip(_LISTED, row[1:], strict=True)),
            tags=tuple(tagged.get(row[0], ())),
            metrics=last[row[0]],
            finding_counts=counts.get(row[0], {}),
        )
        for row in listed
    ]


def load_detail(
    connection: Connection, row: RowMapping, listed: RunRow, names: Mapping[int, str]
) -> RunDetail:
    """Return everything about the run of a row of `runs`."""
    run = row["key"]
    return RunDetail(
        run=listed,
        config=from_json(row["config"]),
        environment=_get_environment(row),
        metrics=_load_summaries(connection, run, names),
        findings=_load_findings(connection, run),
        artifacts=_load_artifacts(connection, run),
        output=tuple(
            OutputText(found["stream"], found["text"], found["dropped_bytes"])
            for found in connection.execute(
                select(outputs).where(outputs.c.run == run).order_by(outputs.c.stream.desc())
            ).mappings()
        ),
        histograms=_load_newest_histograms(connection, run, row["created"], names),
        resumes=tuple(
            (found["time"], found["from_step"], found["steps"])
            for found in connection.execute(
                select(resumes).where(resumes.c.run == run).order_by(resumes.c.seq)
            ).mappings()
        ),
    )


def to_histograms(
    found: Iterable[RowMapping], created: float, names: Mapping[int, str]
) -> Iterator[HistogramRow]:
    """Yield the views of rows of `histograms`, of a run created at `created`."""
    for row in found:
        yield HistogramRow(
            key=names[row["key"]],
            step=row["step"],
            edges=tuple(map(float, from_json(row["edges"]))),
            counts=tuple(map(int, from_json(row["counts"]))),
            nonfinite_count=row["nonfinite_count"],
            time=created + row["time_ms"] / 1000,
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
    connection: Connection, run: int, names: Mapping[int, str]
) -> dict[str, MetricSummary]:
    """Return the summary of every curve, by key in alphabetical order."""
    found = {}
    query = select(summaries).where(summaries.c.run == run)
    for row in connection.execute(query).mappings():
        key = names[row["key"]]
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


def _load_newest_histograms(
    connection: Connection, run: int, created: float, names: Mapping[int, str]
) -> dict[str, HistogramRow]:
    """Return the newest histogram of every key that has one, by key in alphabetical order."""
    newest = (
        select(histograms.c.key, func.max(histograms.c.seq).label("seq"))
        .where(histograms.c.run == run)
        .group_by(histograms.c.key)
        .subquery()
    )
    query = select(histograms).join(
        newest, and_(histograms.c.key == newest.c.key, histograms.c.seq == newest.c.seq)
    )
    found = connection.execute(query.where(histograms.c.run == run)).mappings()
    rows = to_histograms(found, created, names)
    return dict(sorted((row.key, row) for row in rows))


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
