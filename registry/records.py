"""Write what a run leaves beside its curves: histograms, findings, files, output and tags.

Findings are counted, so they are collected and written in one go; the rest is rare and is written
as it comes. All of it in the transaction of the connection.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, delete, select, update

from registry.codec import from_json, to_json
from registry.curves import clean
from registry.events import Artifact, Event, Finding, Histogram, Output, Removed
from registry.schema import artifacts, findings, histograms, outputs, tags
from registry.statements import upsert

_MAX_COUNT = 2**31


class RecordWriter:
    """Writes the records of one run; `flush` writes what was collected."""

    def __init__(self, connection: Connection, run: int) -> None:
        self._connection = connection
        self._run = run
        self._findings: dict[str, dict[str, Any]] = {}

    def flush(self) -> None:
        """Write the findings that were taken since the last time."""
        if self._findings:
            rows = list(self._findings.values())
            upsert(self._connection, findings, rows, added="count")
            self._findings.clear()

    def add_finding(self, seq: int, event: Finding) -> None:
        """Count a finding, or take it when it is new."""
        digest = _digest(event.kind, event.module, event.op, event.where, event.cause)
        count = min(max(event.count, 1), _MAX_COUNT)
        if digest in self._findings:
            self._findings[digest]["count"] += count
            return
        row = {"run": self._run, "digest": digest, "seq": seq}
        row |= get_texts(event, ("kind", "phase", "module", "op", "where", "cause", "fix"))
        row |= {"severity": event.severity.value, "step": event.step, "count": count}
        row |= {"evidence": clean(to_json(event.evidence)), "time": event.time}
        self._findings[digest] = row

    def add_histogram(self, seq: int, event: Histogram, key: int, time_ms: int) -> None:
        """Record how values were spread, under the number of the event's key."""
        row: dict[str, Any] = {"run": self._run, "key": key, "seq": seq, "time_ms": time_ms}
        row |= {"step": event.step, "nonfinite_count": event.nonfinite_count}
        row |= {"edges": to_json(event.edges), "counts": to_json(event.counts)}
        self._connection.execute(histograms.insert(), row)

    def rewind(self, from_step: int) -> None:
        """Delete the histograms after `from_step`."""
        self._connection.execute(
            delete(histograms).where(histograms.c.run == self._run, histograms.c.step > from_step)
        )

    def add_artifact(self, seq: int, event: Artifact) -> None:
        """Record a file; the newest word on a path counts."""
        row = {"run": self._run, "digest": _digest(event.path), "step": event.step, "seq": seq}
        row |= get_texts(event, ("kind", "path")) | {"size_bytes": event.size_bytes}
        row |= {"metadata": clean(to_json(event.metadata)), "time": event.time}
        replaced = tuple(name for name in row if name not in ("run", "digest"))
        upsert(self._connection, artifacts, [row], replaced=replaced)

    def remove_artifact(self, event: Removed) -> None:
        """Note on a file's row that it was deleted and when; the row stays."""
        where = (artifacts.c.run == self._run, artifacts.c.digest == _digest(event.path))
        held = self._connection.execute(select(artifacts.c.metadata).where(*where)).scalar()
        if held is not None:
            metadata = to_json(from_json(held) | {"removed": event.time})
            self._connection.execute(update(artifacts).where(*where).values(metadata=metadata))

    def set_output(self, event: Output) -> None:
        """Record what a stream said; the newest capture holds the older ones."""
        row = {"run": self._run, "dropped_bytes": event.dropped_bytes}
        row |= get_texts(event, ("stream", "text"))
        replaced = ("text", "dropped_bytes")
        upsert(self._connection, outputs, [row], replaced=replaced)

    def set_tags(self, given: tuple[str, ...]) -> None:
        """Replace the tags of the run."""
        self._connection.execute(delete(tags).where(tags.c.run == self._run))
        rows = [
            {"run": self._run, "position": position, "tag": clean(tag)}
            for position, tag in enumerate(dict.fromkeys(given))
        ]
        if rows:
            self._connection.execute(tags.insert(), rows)


def get_texts(event: Event, names: tuple[str, ...]) -> dict[str, Any]:
    """Return text fields of an event as every engine stores them."""
    return {name: clean(getattr(event, name)) for name in names}


def _digest(*parts: str) -> str:
    """Return 32 hex digits that stand for some texts."""
    return hashlib.sha256(to_json(parts).encode()).hexdigest()[:32]
