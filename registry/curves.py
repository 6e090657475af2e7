"""Write curves: metric points, the summary kept beside each curve, and its rollups.

All three change in one transaction, so a reader never sees one without the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from registry import rollups
from registry.rollups import KEYS_PER_QUERY, Point, Prefix, StoredPoint
from registry.schema import (
    FINITE,
    NAN,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    metric_keys,
    metrics,
    summaries,
)
from registry.statements import insert, insert_rows, upsert


@dataclass(slots=True)
class _Summary:
    """A row of `summaries` in the making; `min` and `max` are None until a value is finite."""

    run: int
    key: int
    last: float | None = None
    last_flag: int = NAN
    last_step: int = -(2**63)
    min: float | None = None
    min_step: int = 0
    max: float | None = None
    max_step: int = 0
    count: int = 0
    nonfinite_count: int = 0

    def add(self, step: int, value: float | None, flag: int) -> None:
        """Count one more point in."""
        self.count += 1
        if step >= self.last_step:
            self.last, self.last_flag, self.last_step = value, flag, step
        if value is None:
            self.nonfinite_count += 1
            return
        if self.min is None or value < self.min:
            self.min, self.min_step = value, step
        if self.max is None or value > self.max:
            self.max, self.max_step = value, step


class CurveWriter:
    """Collects the points of one run and writes them in one go."""

    def __init__(self, connection: Connection, run: int) -> None:
        self._connection = connection
        self._run = run
        self._points: dict[str, list[StoredPoint]] = {}  # by key, each in the journal's order

    def add(self, seq: int, step: int, values: dict[str, float], time_ms: int) -> None:
        """Take the values of one journal line."""
        for key, value in values.items():
            point = (seq, step, *to_stored(value), time_ms)
            self._points.setdefault(clean(key), []).append(point)

    def flush(self) -> None:
        """Write what was taken and bring the summaries and rollups up to it."""
        if not self._points:
            return
        ids = self.get_key_ids(set(self._points))
        added = {ids[name]: points for name, points in self._points.items()}
        changed = self._load_summaries(set(added))
        counts = {key: summary.count for key, summary in changed.items()}
        rollups.extend(self._connection, self._run, counts, added)
        rows = []
        for key in sorted(added):  # neighbours in the table one after the other
            rows += [(self._run, key, *point) for point in added[key]]
            for _, step, value, flag, _ in added[key]:
                changed[key].add(step, value, flag)
        insert_rows(self._connection, metrics, rows)
        self._save_summaries(changed)
        self._points.clear()

    def rewind(self, from_step: int) -> None:
        """Delete the points after `from_step`; rollups say what is left of a long curve."""
        self.flush()
        connection, run = self._connection, self._run
        reached = (summaries.c.run == run, summaries.c.last_step > from_step)
        query = select(summaries.c.key, summaries.c.count).where(*reached)
        prefixes = {
            key: rollups.find_prefix(connection, run, key, count, from_step)
            for key, count in connection.execute(query).all()
        }
        if not prefixes:
            return
        rollups.cut(connection, run, prefixes, from_step)
        rest = rollups.load_rest(connection, run, [*prefixes])
        rollups.extend(connection, run, {key: prefixes[key].num_points for key in rest}, rest)
        kept = {
            key: self._summarize(key, prefixes[key], rest[key])
            for key in prefixes
            if prefixes[key].num_points or rest[key]
        }
        connection.execute(delete(summaries).where(*reached))
        if kept:
            self._save_summaries(kept)

    def _summarize(self, key: int, prefix: Prefix, rest: Sequence[Point]) -> _Summary:
        """Return the summary of a curve from the sum over its start and the points behind it."""
        summary = _Summary(self._run, key, count=prefix.num_points)
        if prefix.sum is not None:
            known = prefix.sum
            summary.min, summary.min_step = known.min, known.min_step
            summary.max, summary.max_step = known.max, known.max_step
            summary.nonfinite_count, summary.last_step = known.odd_count, known.last_step
            if all(point.step < known.last_step for point in rest):
                last = rollups.get_edge_point(
                    self._connection, self._run, key, known.last_step, last=True
                )
                summary.last, summary.last_flag = last.value, last.flag
        for point in rest:
            summary.add(point.step, point.value, point.flag)
        return summary

    def get_key_ids(self, names: set[str]) -> dict[str, int]:
        """Return the id of every key; new ones are made."""
        ids = self._find_key_ids(names)
        missing = sorted(names - ids.keys())
        if missing:
            statement = insert(self._connection, metric_keys).on_conflict_do_nothing()
            self._connection.execute(statement, [{"key": name} for name in missing])
            ids |= self._find_key_ids(set(missing))
        return ids

    def _find_key_ids(self, names: set[str]) -> dict[str, int]:
        """Return the ids of the keys that have one."""
        ordered = sorted(names)
        ids: dict[str, int] = {}
        for start in range(0, len(ordered), KEYS_PER_QUERY):
            some = ordered[start : start + KEYS_PER_QUERY]
            query = select(metric_keys.c.key, metric_keys.c.id).where(metric_keys.c.key.in_(some))
            ids.update((row[0], row[1]) for row in self._connection.execute(query))
        return ids

    def _load_summaries(self, keys: set[int]) -> dict[int, _Summary]:
        """Return the summary of every key, empty ones for new curves."""
        query = select(summaries).where(summaries.c.run == self._run)
        if len(keys) <= KEYS_PER_QUERY:
            query = query.where(summaries.c.key.in_(sorted(keys)))
        found = {row["key"]: _Summary(**row) for row in self._connection.execute(query).mappings()}
        return {key: found.get(key) or _Summary(self._run, key) for key in keys}

    def _save_summaries(self, changed: dict[int, _Summary]) -> None:
        """Insert or replace the summaries."""
        names = _Summary.__slots__
        rows = [{name: getattr(changed[key], name) for name in names} for key in sorted(changed)]
        upsert(self._connection, summaries, rows, replaced=_SUMMARY_COLUMNS)


_SUMMARY_COLUMNS = tuple(
    column.name for column in summaries.columns if column.name not in ("run", "key")
)


def to_stored(value: float) -> tuple[float | None, int]:
    """Return (value column, flag column) of a metric value."""
    if math.isfinite(value):
        return value, FINITE
    if math.isnan(value):
        return None, NAN
    return None, POSITIVE_INFINITY if value > 0 else NEGATIVE_INFINITY


def clean(text: str) -> str:
    """Return text that every engine stores: PostgreSQL has no NUL character."""
    return text.replace("\x00", "\ufffd") if "\x00" in text else text
