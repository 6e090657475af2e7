"""Read the registry. Opens nothing for writing and imports little: listing commands start here.

A `Reader` holds one connection, because "has anything changed" (PRAGMA data_version) is answered
per connection. Every method reads in one transaction, so what it returns belongs together.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Select, func, select
from sqlalchemy.engine import URL

from registry import rows, series
from registry.connection import parse_url
from registry.link import Link
from registry.references import find_key, unknown
from registry.schema import histograms, metric_keys, runs, summaries, tags
from registry.views import HistogramRow, RunDetail, RunRow, Series

_ALL = 2**62  # SQLite takes an offset only behind a limit


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

    def snapshot(self) -> AbstractContextManager[Connection]:
        """Return one transaction to read a long curve in parts; see registry.stretches."""
        return self._link.snapshot()

    def data_version(self) -> int:
        """Return a number that changes when anything was written; costs microseconds on SQLite."""
        return self._link.read_version()

    def list_runs(
        self,
        *,
        limit: int | None = None,
        offset: int = 0,
        keys: Collection[str] | None = None,
        status: str | None = None,
        name: str | None = None,
        project: str | None = None,
        recipe: str | None = None,
        tag: str | None = None,
        parent: str | None = None,
    ) -> list[RunRow]:
        """Return runs, newest first, each with the last value of every key, or of `keys` only.

        `limit` and `offset` page through them; every other argument keeps the runs that have it.
        """
        chosen = select(runs.c.key)
        wanted = {"status": status, "name": name, "project": project, "recipe": recipe}
        wanted["parent"] = parent
        for column, value in wanted.items():
            if value is not None:
                chosen = chosen.where(runs.c[column] == value)
        if tag is not None:
            chosen = chosen.where(runs.c.key.in_(select(tags.c.run).where(tags.c.tag == tag)))
        chosen = chosen.order_by(runs.c.created.desc(), runs.c.key.desc())
        if limit is not None:
            chosen = chosen.limit(max(limit, 0))
        elif offset > 0:
            chosen = chosen.limit(_ALL)
        if offset > 0:
            chosen = chosen.offset(offset)
        with self._link.snapshot() as connection:
            return self._load_rows(connection, chosen, keys)

    def count_runs(self) -> dict[str, int]:
        """Return how many runs there are of each status that any has."""
        query = select(runs.c.status, func.count()).group_by(runs.c.status)
        with self._link.snapshot() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

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
            row = connection.execute(select(runs).where(runs.c.id == run_id)).mappings().first()
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
        return self._read_curve(run_id, key, cursor, None)

    def get_outline(self, run_id: str, key: str, width: int) -> Series:
        """Return true points of a curve that show, over `width` columns, all that the curve shows.

        The smallest and largest value and the first one that is not finite of at least
        `2 * width` stretches of the curve, its outermost points and its newest ones; see
        registry.series. A curve of fewer than `32 * width` points comes whole; of a longer one
        come fewer than `16 * width + 150` points, and one for each stretch with values that are
        not finite.
        """
        return self.get_outline_since(run_id, key, width, None)[0]

    def get_outline_since(
        self, run_id: str, key: str, width: int, cursor: Cursor | None
    ) -> tuple[Series, Cursor]:
        """Return what `get_series_since` does, but an outline where that would be the whole curve.

        The next cursor serves both.
        """
        return self._read_curve(run_id, key, cursor, width)

    def list_histograms(self, run_id: str, key: str) -> list[HistogramRow]:
        """Return how an array's values were spread, oldest first; none for an unknown key."""
        query = (
            select(histograms, runs.c.created)
            .join(runs, runs.c.key == histograms.c.run)
            .join(metric_keys, metric_keys.c.id == histograms.c.key)
            .where(runs.c.id == run_id, metric_keys.c.key == key)
            .order_by(histograms.c.seq)
        )
        with self._link.snapshot() as connection:
            found = connection.execute(query).mappings().all()
        created = found[0]["created"] if found else 0.0
        return [*rows.to_histograms(found, created, {row["key"]: key for row in found})]

    def _read_curve(
        self, run_id: str, key: str, cursor: Cursor | None, width: int | None
    ) -> tuple[Series, Cursor]:
        """Return what is new of a curve, or all of it: an outline where `width` is given."""
        with self._link.snapshot() as connection:
            place = series.find_place(connection, run_id, key)
            if place is None:
                return series.make_empty(key), Cursor(0, 0)
            is_known = cursor is not None and cursor.rewinds == place.rewinds
            after = cursor.seq if cursor is not None and is_known else 0
            if width is None or is_known:
                found = series.load_since(connection, place, key, after)
            else:
                found = series.load_outline(connection, place, key, width)
        return found, Cursor(place.rewinds, place.end)

    def _load_rows(
        self, connection: Connection, chosen: Select[Any], only: Collection[str] | None = None
    ) -> list[RunRow]:
        """Return the chosen runs, newest first: three queries, however many there are."""
        return rows.load_runs(connection, chosen, self._get_keys(connection), only)

    def _get_keys(self, connection: Connection) -> dict[int, str]:
        """Return the names of all metric keys by id; they only ever grow in number."""
        newest = connection.execute(select(func.max(metric_keys.c.id))).scalar()
        if newest not in self._keys or self._keys_epoch != self._link.epoch:
            query = select(metric_keys.c.id, metric_keys.c.key)
            self._keys = {row[0]: row[1] for row in connection.execute(query)}
            self._keys_epoch = self._link.epoch
        return self._keys
