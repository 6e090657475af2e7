"""Read curves: whole, what is new of them, or as an outline for a chart.

An outline is made of true points, few enough to draw and with every spike among them. Of each
bucket of some level of the rollups it has the smallest and the largest value and the first one that
is not finite, each at its true step; and it has the curve's outermost points.
"""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Double, and_, case, func, literal, select

from registry import rollups
from registry.rollups import Bucket, Point, StoredPoint
from registry.rows import from_stored
from registry.schema import (
    FINITE,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    metric_keys,
    metrics,
    runs,
    summaries,
)
from registry.views import Series

_POINTS_PER_FETCH = 1000  # more are not faster, and so many are soon forgotten again

_VALUE = case(  # the value itself, infinities included; NULL is NaN
    (metrics.c.flag == FINITE, metrics.c.value),
    (metrics.c.flag == POSITIVE_INFINITY, literal(math.inf, Double)),
    (metrics.c.flag == NEGATIVE_INFINITY, literal(-math.inf, Double)),
)


class Place(NamedTuple):
    """Where a curve is stored; with no points where the run has no such key."""

    run: int
    key: int
    created: float  # UTC seconds since the epoch
    rewinds: int
    num_points: int
    end: int  # metrics.seq of the newest point, 0 where there is none


def make_empty(name: str) -> Series:
    """Return a curve without points."""
    return Series(name, array("q"), array("d"), array("d"))


def find_place(connection: Connection, run_id: str, name: str) -> Place | None:
    """Return where a curve is stored, or None when there is no such run."""
    newest = select(func.max(metrics.c.seq)).where(
        metrics.c.run == runs.c.key, metrics.c.key == metric_keys.c.id
    )
    query = (
        select(runs.c.key, metric_keys.c.id, runs.c.created, runs.c.rewinds, summaries.c.count)
        .add_columns(newest.scalar_subquery())
        .select_from(runs)
        .outerjoin(metric_keys, metric_keys.c.key == name)
        .outerjoin(
            summaries, and_(summaries.c.run == runs.c.key, summaries.c.key == metric_keys.c.id)
        )
        .where(runs.c.id == run_id)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    run, key, created, rewinds, count, end = row
    return Place(run, key or 0, created, rewinds, count or 0, end or 0)


def load_since(
    connection: Connection, place: Place, name: str, after: int, until: int | None = None
) -> Series:
    """Return the points of a curve behind a place in the journal, in step order.

    `until` is the place of the last one; without it they reach to the newest.
    """
    steps, values, times = array("q"), array("d"), array("d")
    if after < place.end:
        query = select(metrics.c.step, _VALUE, metrics.c.time_ms).where(
            metrics.c.run == place.run, metrics.c.key == place.key, metrics.c.seq > after
        )
        if until is not None:
            query = query.where(metrics.c.seq <= until)
        found = connection.execute(query.order_by(metrics.c.seq))
        # Straight from the driver: a row object for each of a million points is most of the cost.
        cursor = found.cursor
        while cursor is not None and (some := cursor.fetchmany(_POINTS_PER_FETCH)):
            steps.extend([row[0] for row in some])
            values.extend([math.nan if row[1] is None else row[1] for row in some])
            times.extend([place.created + row[2] / 1000 for row in some])
        found.close()
    return _order(Series(name, steps, values, times))


def load_outline(connection: Connection, place: Place, name: str, width: int) -> Series:
    """Return the outline of a curve.

    It comes from the coarsest level with two buckets for each of `width` columns, so of fewer than
    `8 * width`; from the levels below where that one ends; and from the points in no bucket. A
    curve of fewer than `32 * width` points comes whole.
    """
    level = rollups.find_top_level(place.num_points // (2 * max(width, 1)))
    if level == 0:
        return load_since(connection, place, name, 0)
    buckets: list[Bucket] = []
    for each in range(level, 0, -1):
        end = buckets[-1].seq if buckets else 0
        buckets += rollups.load_buckets(connection, place.run, place.key, each, after=end)
    tail = rollups.load_points(connection, place.run, place.key, after=buckets[-1].seq)
    points = [*_list_edges(connection, place, buckets, tail), *tail]
    for bucket in buckets:
        points += _list_points(bucket)
    once = {point[1:]: None for point in points}  # the first point may be the smallest as well
    ordered = sorted(once, key=operator.itemgetter(0))
    return Series(
        name,
        array("q", [step for step, _, _, _ in ordered]),
        array("d", [from_stored(value, flag) for _, value, flag, _ in ordered]),
        array("d", [place.created + time_ms / 1000 for _, _, _, time_ms in ordered]),
    )


def _list_edges(
    connection: Connection, place: Place, buckets: Sequence[Bucket], tail: Sequence[Point]
) -> Iterator[StoredPoint]:
    """Yield the points with the smallest and largest step, where the open tail has none such."""
    first = min(bucket.first_step for bucket in buckets)
    last = max(bucket.last_step for bucket in buckets)
    if all(first < point.step for point in tail):
        yield rollups.get_edge_point(connection, place.run, place.key, first, last=False)
    if all(point.step < last for point in tail):
        yield rollups.get_edge_point(connection, place.run, place.key, last, last=True)


def _list_points(bucket: Bucket) -> Iterator[StoredPoint]:
    """Yield the points that a bucket knows; `seq` is the bucket's own."""
    if bucket.min is not None:
        yield bucket.seq, bucket.min_step, bucket.min, FINITE, bucket.min_ms
        yield bucket.seq, bucket.max_step, bucket.max, FINITE, bucket.max_ms
    if bucket.odd_count:
        yield bucket.seq, bucket.odd_step, None, bucket.odd_flag, bucket.odd_ms


def _order(series: Series) -> Series:
    """Return a curve's points in step order; those of one step keep their order."""
    steps = series.steps
    if all(map(operator.le, steps, steps[1:])):
        return series
    places = sorted(range(len(steps)), key=steps.__getitem__)
    return Series(
        series.key,
        array("q", [steps[place] for place in places]),
        array("d", [series.values[place] for place in places]),
        array("d", [series.times[place] for place in places]),
    )
