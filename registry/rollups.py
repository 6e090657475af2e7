"""Sums over stretches of a curve: what lets a long one be drawn, and cut, without being scanned.

A bucket of level 1 sums up BUCKET points of a curve that were written one after the other, one of
level L sums up FANOUT buckets of level L - 1. Only full buckets are stored. They follow from the
points alone: however a journal was split into folds, and whoever folded, the rows are the same.
How many there are follows from the number of points: no row says where the next bucket begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, and_, bindparam, delete, func, select

from registry.schema import BUCKET, FANOUT, FINITE, metrics, rollups, summaries
from registry.statements import fetch_rows, insert_rows

KEYS_PER_QUERY = 500  # bound parameters of one statement; SQLite allows 32,766


StoredPoint = tuple[int, int, float | None, int, int]  # a Point without the cost of its class


class Point(NamedTuple):
    """A point of a curve as it is stored; see registry.schema.metrics."""

    seq: int
    step: int
    value: float | None
    flag: int
    time_ms: int


class Bucket(NamedTuple):
    """A row of `rollups`, without the curve and the level it belongs to."""

    seq: int
    min: float | None
    min_step: int
    min_ms: int
    max: float | None
    max_step: int
    max_ms: int
    odd_flag: int
    odd_step: int
    odd_ms: int
    odd_count: int
    first_step: int
    last_step: int


class Prefix(NamedTuple):
    """The full buckets at the start of a curve that hold no step after some step."""

    end: int  # metrics.seq of their last point; 0 where there are none
    num_points: int
    sum: Bucket | None  # over all of them


_POINT_COLUMNS = tuple(metrics.c[name] for name in Point._fields)
_BUCKET_COLUMNS = tuple(rollups.c[name] for name in Bucket._fields)
_BEHIND = tuple(
    (
        table.c.run == bindparam("run"),
        table.c.key == bindparam("key"),
        table.c.seq > bindparam("after"),
    )
    for table in (metrics, rollups)
)
_POINTS_BEHIND = select(*_POINT_COLUMNS).where(*_BEHIND[0]).order_by(metrics.c.seq)
_BUCKETS_BEHIND = (
    select(*_BUCKET_COLUMNS)
    .where(*_BEHIND[1], rollups.c.level == bindparam("level"))
    .order_by(rollups.c.seq)
)
_get_value, _get_step = itemgetter(2), itemgetter(1)
_get_min, _get_max = itemgetter(1), itemgetter(4)
_get_first_step, _get_last_step = itemgetter(11), itemgetter(12)


def count_bucket_points(level: int) -> int:
    """Return how many points a bucket of a level sums up."""
    return int(BUCKET * FANOUT ** (level - 1))


def find_top_level(count: int) -> int:
    """Return the highest level that has a bucket on a curve of so many points; 0 for none."""
    level = 0
    while count >= count_bucket_points(level + 1):
        level += 1
    return level


def sum_points(points: Sequence[StoredPoint]) -> Bucket:
    """Return the bucket of some points, at least one, in the order in which they were written."""
    finite = [point for point in points if point[3] == FINITE]
    low: StoredPoint = (0, 0, None, FINITE, 0)
    high = odd = low
    if finite:
        low, high = min(finite, key=_get_value), max(finite, key=_get_value)  # the first such
    if len(finite) < len(points):
        odd = next(point for point in points if point[3] != FINITE)
    return Bucket(
        points[-1][0],
        *(low[2], low[1], low[4]),
        *(high[2], high[1], high[4]),
        *(odd[3], odd[1], odd[4], len(points) - len(finite)),
        min(map(_get_step, points)),
        max(map(_get_step, points)),
    )


def sum_buckets(buckets: Sequence[Bucket]) -> Bucket:
    """Return the bucket of some neighbours, at least one, in their order on the curve."""
    finite = [bucket for bucket in buckets if bucket.min is not None] or buckets[:1]
    low, high = min(finite, key=_get_min), max(finite, key=_get_max)
    odd = next((bucket for bucket in buckets if bucket.odd_flag != FINITE), buckets[0])
    return Bucket(
        buckets[-1].seq,
        *low[1:4],
        *high[4:7],
        *(odd.odd_flag, odd.odd_step, odd.odd_ms),
        sum(bucket.odd_count for bucket in buckets),
        min(map(_get_first_step, buckets)),
        max(map(_get_last_step, buckets)),
    )


def extend(
    connection: Connection,
    run: int,
    counts: Mapping[int, int],
    added: Mapping[int, Sequence[StoredPoint]],
) -> None:
    """Store the buckets that new points fill; called before the points themselves are inserted.

    Args:
        connection: inside the transaction that writes the points.
        run: the run's number.
        counts: points that each curve has so far, by the key's number.
        added: what each of these curves gains, in the order of the journal, as `Point`s.
    """
    rows: list[tuple[object, ...]] = []
    level, size = 0, BUCKET
    fresh: Mapping[int, Sequence[tuple[object, ...]]] = added
    while True:
        full = [key for key, some in fresh.items() if counts[key] % size + len(some) >= size]
        if not full:
            break
        opened = _load_open(connection, run, level, [key for key in full if counts[key] % size])
        level += 1
        summed: dict[int, list[Bucket]] = {}
        for key in full:
            parts = [*opened.get(key, ()), *fresh[key]]
            starts = range(0, len(parts) - size + 1, size)
            summed[key] = [_sum(parts[start : start + size], level) for start in starts]
            rows += [(run, key, level, *bucket) for bucket in summed[key]]
        counts = {key: counts[key] // size for key in full}
        fresh, size = summed, FANOUT
    if rows:
        insert_rows(connection, rollups, rows)


def find_prefix(connection: Connection, run: int, key: int, count: int, from_step: int) -> Prefix:
    """Return the longest start of a curve of `count` points, in full buckets, up to `from_step`."""
    end, held = 0, 0
    kept: list[Bucket] = []
    # Of each level only the parts of one bucket of the level above are left to look at.
    for level in range(find_top_level(count), 0, -1):
        for bucket in load_buckets(connection, run, key, level, after=end, limit=FANOUT):
            if bucket.last_step > from_step:
                break
            kept.append(bucket)
            end, held = bucket.seq, held + count_bucket_points(level)
    return Prefix(end, held, sum_buckets(kept) if kept else None)


def cut(connection: Connection, run: int, prefixes: Mapping[int, Prefix], from_step: int) -> None:
    """Delete points after `from_step` and every bucket that is no part of its curve's prefix."""
    ends = [{"of_key": key, "end": prefix.end} for key, prefix in prefixes.items()]
    for table in (metrics, rollups):
        statement = delete(table).where(
            table.c.run == run, table.c.key == bindparam("of_key"), table.c.seq > bindparam("end")
        )
        if table is metrics:
            statement = statement.where(metrics.c.step > from_step)
        connection.execute(statement, ends)


def load_rest(connection: Connection, run: int, keys: Sequence[int]) -> dict[int, list[Point]]:
    """Return the points of curves that no full bucket holds, by key; none for a key without."""
    found = _load_open(connection, run, 0, keys)
    return {key: [*map(Point._make, found.get(key, ()))] for key in keys}


def load_points(connection: Connection, run: int, key: int, *, after: int) -> list[Point]:
    """Return the points of a curve behind a place in the journal, in its order."""
    place = {"run": run, "key": key, "after": after}
    return [*map(Point._make, fetch_rows(connection, _POINTS_BEHIND, place))]


def load_buckets(
    connection: Connection, run: int, key: int, level: int, *, after: int, limit: int | None = None
) -> list[Bucket]:
    """Return the buckets of one level of a curve behind a place in the journal, in its order."""
    place = {"run": run, "key": key, "after": after, "level": level}
    return [*map(Bucket._make, fetch_rows(connection, _BUCKETS_BEHIND.limit(limit), place))]


def get_edge_point(connection: Connection, run: int, key: int, step: int, *, last: bool) -> Point:
    """Return a point at the largest step (`last`) or the smallest one that any full bucket holds.

    Of several points at the largest step it is the one that was written last.
    """
    column = rollups.c.last_step if last else rollups.c.first_step
    order = rollups.c.seq.desc() if last else rollups.c.seq
    holder = (
        select(rollups.c.seq)
        .where(*_of(rollups, run, key), rollups.c.level == 1, column == step)
        .order_by(order)
        .limit(1)
    )
    query = select(*_POINT_COLUMNS).where(*_of(metrics, run, key), metrics.c.step == step)
    query = query.where(metrics.c.seq <= holder.scalar_subquery())
    row = connection.execute(query.order_by(metrics.c.seq.desc()).limit(1)).one()
    return Point(*row)


def _sum(parts: Sequence[tuple[object, ...]], level: int) -> Bucket:
    """Return the bucket of a level: of points for the first, of buckets for every other."""
    return sum_points(parts) if level == 1 else sum_buckets(parts)  # type: ignore[arg-type]


def _of(table: Table, run: int, key: int) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for the rows of a curve."""
    return table.c.run == run, table.c.key == key


def _load_open(
    connection: Connection, run: int, level: int, keys: Sequence[int]
) -> dict[int, list[tuple[object, ...]]]:
    """Return what no full bucket of the next level holds yet, by key: points where level is 0."""
    if not keys:
        return {}
    above = rollups.alias()
    end = select(func.coalesce(func.max(above.c.seq), 0)).where(
        above.c.run == run, above.c.key == summaries.c.key, above.c.level == level + 1
    )
    table, columns = (rollups, _BUCKET_COLUMNS) if level else (metrics, _POINT_COLUMNS)
    behind = and_(
        table.c.run == run, table.c.key == summaries.c.key, table.c.seq > end.scalar_subquery()
    )
    if level:
        behind = and_(behind, rollups.c.level == level)
    # An outer join, so that SQLite goes from curves to points and never through all the points.
    query = select(table.c.key, *columns).select_from(summaries).outerjoin(table, behind)
    query = query.where(summaries.c.run == run).order_by(summaries.c.key, table.c.seq)
    if len(keys) <= KEYS_PER_QUERY:
        query = query.where(summaries.c.key.in_(keys))
    found: dict[int, list[tuple[object, ...]]] = {}
    for key, *row in connection.execute(query):
        if key is not None:
            found.setdefault(key, []).append(tuple(row) if level == 0 else Bucket(*row))
    return found
