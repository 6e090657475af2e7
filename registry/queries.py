"""Read the registry. Opens nothing for writing and imports little: listing commands start here.

A `Reader` holds one connection, because "has anything changed" (PRAGMA data_version) is answered
per connection. Every method reads in one transaction, so what it returns belongs together.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Select, func, select
from sqlalchemy.engine import URL

from registry import rows
from registry.connection import parse_url
from registry.link import Link
from registry.references import find_key, unknown
from registry.schema import metric_keys, metrics, runs, summaries, tags
from registry.views import RunDetail, RunRow, Series


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a curve was read. `rewinds` grows when a resume has cut the run's curves."""

    rewinds: int
    seq: int


class Reader:
    """Answers questions about runs. Use as a context manager, from one thread at a time.

    A registry that does not exist yet reads as an empty one, and is picked up when it appears;
    so is a rebuilt one that has taken its place.
    """

    def __init__(self, url: URL) -> None:
        self._link = Link(url)
        self._keys: dict[int, str] = {}
        self._keys_epoch = 0  # connection that `_keys` was read through

    @classmethod
    def open(cls, url: str) -> Reader:
        """Return a reader of the registry at an SQLAlchemy URL.

        Raises:
            StoreNewer, StoreOutdated, StoreCorrupt, StoreUnavailable, StoreLocked:
                see registry.errors. Later calls may raise them as well.
        """
        reader = cls(parse_url(url))
        with reader._link.snapshot():
            return reader

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; a later call opens another."""
        self._link.close()

    def data_version(self) -> int:
        """Return a number that changes when anything was written; costs microseconds on SQLite."""
        return self._link.read_version()

    def list_runs(
        self,
        *,
        limit: int | None = None,
        status: str | None = None,
        name: str | None = None,
        recipe: str | None = None,
        tag: str | None = None,
        parent: str | None = None,
    ) -> list[RunRow]:
        """Return runs, newest first, each with the last value of every key; all unless `limit`."""
        chosen = select(runs.c.key)
        wanted = {"status": status, "name": name, "recipe": recipe, "parent": parent}
        for column, value in wanted.items():
            if value is not None:
                chosen = chosen.where(runs.c[column] == value)
        if tag is not None:
            chosen = chosen.where(runs.c.key.in_(select(tags.c.run).where(tags.c.tag == tag)))
        chosen = chosen.order_by(runs.c.created.desc(), runs.c.key.desc())
        if limit is not None:
            chosen = chosen.limit(max(limit, 0))
        with self._link.snapshot() as connection:
            return self._load_rows(connection, chosen)

    def get_run(self, reference: str) -> RunRow:
        """Return a run by id, unique prefix, name (the newest), "@last" or "@-2", in that order.

        Raises:
            UnknownRun: none or several answer; with the nearest ids and names.
        """
        with self._link.snapshot() as connection:
            key = find_key(connection, reference)
            return self._load_rows(connection, select(runs.c.key).where(runs.c.key == key))[0]

    def get_detail(self, run_id: str) -> RunDetail:
        """Return all there is about one run, its curves aside.

        Raises:
            UnknownRun: no run has this id.
        """
        with self._link.snapshot() as connection:
            query = select(runs).where(runs.c.id == run_id)
            row = connection.execute(query).mappings().first()
            if row is None:
                raise unknown(connection, run_id)
            listed = self._load_rows(connection, select(runs.c.key).where(runs.c.id == run_id))[0]
            return rows.load_detail(connection, row, listed, self._get_keys(connection))

    def list_keys(self, run_id: str) -> list[str]:
        """Return the metric keys of a run in alphabetical order."""
        query = (
            select(metric_keys.c.key)
            .join(summaries, summaries.c.key == metric_keys.c.id)
            .join(runs, runs.c.key == summaries.c.run)
            .where(runs.c.id == run_id)
        )
        with self._link.snapshot() as connection:
            return sorted(connection.execute(query).scalars())

    def get_series(self, run_id: str, key: str) -> Series:
        """Return one curve in step order; empty when the run has no such key."""
        return self.get_series_since(run_id, key, None)[0]

    def get_series_since(
        self, run_id: str, key: str, cursor: Cursor | None
    ) -> tuple[Series, Cursor]:
        """Return what a curve has gained since `cursor`, in step order, and the next cursor.

        When the next cursor's `rewinds` differs from the one passed in, a resume has cut the curve:
        the series then holds all of it and replaces what was known.
        """
        with self._link.snapshot() as connection:
            found = connection.execute(
                select(runs.c.key, runs.c.created, runs.c.rewinds).where(runs.c.id == run_id)
            ).first()
            if found is None:
                return Series(key, array("q"), array("d"), array("d")), Cursor(0, 0)
            run, created, rewinds = found
            after = cursor.seq if cursor is not None and cursor.rewinds == rewinds else 0
            points = connection.execute(
                select(metrics.c.step, metrics.c.value, metrics.c.flag, metrics.c.time_ms)
                .add_columns(metrics.c.seq)
                .where(metrics.c.run == run, metrics.c.seq > after)
                .where(
                    metrics.c.key
                    == select(metric_keys.c.id).where(metric_keys.c.key == key).scalar_subquery()
                )
                .order_by(metrics.c.step, metrics.c.seq)
            ).all()
        return rows.to_series(key, created, points), Cursor(
            rewinds, max((point[4] for point in points), default=after)
        )

    def _load_rows(self, connection: Connection, chosen: Select[Any]) -> list[RunRow]:
        """Return the chosen runs, newest first: three queries, however many there are."""
        return rows.load_runs(connection, chosen, self._get_keys(connection))

    def _get_keys(self, connection: Connection) -> dict[int, str]:
        """Return the names of all metric keys by id; they only ever grow in number."""
        newest = connection.execute(select(func.max(metric_keys.c.id))).scalar()
        if newest not in self._keys or self._keys_epoch != self._link.epoch:
            query = select(metric_keys.c.id, metric_keys.c.key)
            self._keys = {row[0]: row[1] for row in connection.execute(query)}
            self._keys_epoch = self._link.epoch
        return self._keys
