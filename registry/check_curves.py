"""The curves of one run, held against its journal and against each other.

Three things must agree: the metric lines of the journal that no resume has cut off, the rows of
`metrics`, and the summaries and rollups that follow from them. Both sides are read in stretches.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, select

from registry.codec import LineError
from registry.curves import clean, to_stored
from registry.events import Metrics, RunResumed
from registry.journal import decode_line, iter_lines
from registry.rollups import Bucket, load_buckets, sum_buckets, sum_points
from registry.schema import BUCKET, FANOUT, FINITE, metric_keys, metrics, rollups, summaries

_POINTS_PER_STRETCH = 50_000
_BUCKETS_PER_STRETCH = 5_000
_RESUMED = b'"run_resumed"'

Found = tuple[str, str]  # kind and message of a fault
Stored = tuple[int, int, float | None, int, int]  # seq, step, value, flag, time_ms


class CurveCheck:
    """Compares one run. Use one method, once, in one transaction.

    Args:
        connection: in a transaction that sees one moment.
        row: of `runs`.
        journal: of the run; read up to what the row says was folded in.
        report: told how many bytes of it are done.
    """

    def __init__(
        self, connection: Connection, row: RowMapping, journal: Path, report: Callable[[int], None]
    ) -> None:
        self.num_points = 0  # of the journal, that were compared
        self._connection = connection
        self._row = row
        self._run: int = row["key"]
        self._journal = journal
        self._report = report
        self._tally = _Tally()
        self._keys = _load_keys(connection)

    def list_journal_faults(self) -> list[Found]:
        """Return the fault of a journal that does not reach as far as it was read, or none."""
        offset = self._row["journal_offset"]
        with self._journal.open("rb") as file:
            size = file.seek(0, 2)
            if size < offset:
                file.seek(0)
                is_cut = sum(1 for _ in file) < self._row["journal_lines"]
                message = f"{self._journal} has {size:,} bytes; {offset:,} were read from it"
                return [("cut" if is_cut else "journal", message)]
            file.seek(max(offset - 1, 0))
            if offset and file.read(1) != b"\n":
                return [("journal", f"{self._journal} has no line end at byte {offset:,}")]
        return []

    def list_faults(self) -> list[Found]:
        """Return everything that does not agree."""
        faults = self.list_journal_faults()
        if faults:
            return faults
        faults += self._list_line_faults()
        query = select(func.count()).select_from(metrics).where(metrics.c.run == self._run)
        held = self._connection.execute(query).scalar_one()
        extra = held - self._tally.met
        if extra > 0:
            self._tally.note("not in the journal", extra)
        if self._tally.parts:
            faults.append(("points", self._tally.tell()))
        return faults + list(self._iter_curve_faults())

    def _list_line_faults(self) -> list[Found]:
        """Compare lines and points of the journal with the database."""
        cuts = _Cuts(self._iter_resumes())
        stretch: dict[str, list[Stored]] = {}
        lines = bad = waiting = 0
        created: float = self._row["created"]
        for line, end in self._iter_lines():
            lines += 1
            event = line
            if event is None:
                bad += 1
            elif type(event) is Metrics:
                names = [clean(key) for key in event.values]
                if len(set(names)) < len(names):
                    bad += 1  # two keys that the database cannot tell apart: it took neither
                elif event.step <= cuts.find_limit(lines):
                    time_ms = round(max(-1e15, min(1e15, event.time - created)) * 1000)
                    for name, value in zip(names, event.values.values(), strict=True):
                        point = (lines, event.step, *to_stored(value), time_ms)
                        stretch.setdefault(name, []).append(point)
                    waiting += len(names)
            if waiting >= _POINTS_PER_STRETCH:
                self._compare(stretch)
                self._report(end)
                stretch, waiting = {}, 0
        self._compare(stretch)
        self._report(self._row["journal_offset"])
        faults: list[Found] = []
        if lines != self._row["journal_lines"]:
            told = f"the journal has {lines:,} lines; {self._row['journal_lines']:,} were counted"
            faults.append(("lines", told))
        if bad > self._row["bad_lines"]:
            told = f"{bad:,} lines are no events; {self._row['bad_lines']:,} were counted"
            faults.append(("lines", told))
        return faults

    def _iter_lines(self) -> Iterator[tuple[object | None, int]]:
        """Yield the events that were folded in, None for a line that is none, and their ends."""
        for line in iter_lines(self._journal):
            if line.end > self._row["journal_offset"]:
                return
            try:
                yield decode_line(line), line.end
            except LineError:
                yield None, line.end

    def _iter_resumes(self) -> Iterator[tuple[int, int]]:
        """Yield (line, step) of every resume: later points of earlier lines were cut off."""
        for number, line in enumerate(iter_lines(self._journal), start=1):
            if line.end > self._row["journal_offset"]:
                return
            if line.text is not None and _RESUMED in line.text:
                try:
                    event = decode_line(line)
                except LineError:
                    continue
                if type(event) is RunResumed:
                    yield number, event.from_step

    def _compare(self, stretch: dict[str, list[Stored]]) -> None:
        """Compare points of some lines with the rows of the same lines, a curve at a time."""
        columns = [metrics.c[name] for name in ("seq", "step", "value", "flag", "time_ms")]
        for name, points in stretch.items():
            self.num_points += len(points)
            key = self._keys.get(name)
            found: list[Stored] = []
            if key is not None:
                where = (metrics.c.run == self._run, metrics.c.key == key)
                between = metrics.c.seq.between(points[0][0], points[-1][0])
                query = select(*columns).where(*where, between).order_by(metrics.c.seq)
                found = [tuple(row) for row in self._connection.execute(query)]
            if found == points:
                self._tally.met += len(points)
                continue
            held = {point[0]: point for point in found}
            for point in points:
                other = held.get(point[0])
                self._tally.met += other is not None
                if other != point:
                    what = "missing" if other is None else "different"
                    self._tally.note(what, 1, f"{name} at step {point[1]} (line {point[0]})")

    def _iter_curve_faults(self) -> Iterator[Found]:
        """Yield what is wrong with summaries and rollups, by the points that are there."""
        names = {key: name for name, key in self._keys.items()}
        query = select(summaries).where(summaries.c.run == self._run)
        held = {row["key"]: row for row in self._connection.execute(query).mappings()}
        for key, points in self._iter_curves():
            curve = _Curve(self._connection, self._run, key)
            for point in points:
                curve.add(point)
            wrong = curve.finish(held.pop(key, None))
            if wrong:
                yield "curve", f"{names.get(key, key)}: {', '.join(wrong)}"
        for key in held:
            yield "curve", f"{names.get(key, key)}: a summary without a point"
        pointed = select(metrics.c.key).where(metrics.c.run == self._run)
        stray = select(rollups.c.key).where(rollups.c.run == self._run).distinct()
        for key in self._connection.execute(stray.where(rollups.c.key.not_in(pointed))).scalars():
            yield "curve", f"{names.get(key, key)}: rollups without a point"

    def _iter_curves(self) -> Iterator[tuple[int, Iterator[Stored]]]:
        """Yield every key of the run with its points in the order of the journal."""
        columns = [metrics.c[name] for name in ("seq", "step", "value", "flag", "time_ms")]
        mine = metrics.c.run == self._run
        key = self._connection.execute(select(func.min(metrics.c.key)).where(mine)).scalar()
        while key is not None:
            query = select(*columns).where(mine, metrics.c.key == key).order_by(metrics.c.seq)
            yield key, self._stream(query)
            following = select(func.min(metrics.c.key)).where(mine, metrics.c.key > key)
            key = self._connection.execute(following).scalar()

    def _stream(self, query: Select[Any]) -> Iterator[Stored]:
        """Yield rows without holding them all."""
        for row in self._connection.execute(query.execution_options(yield_per=10_000)):
            yield tuple(row)


class _Cuts:
    """Up to which step the points of a line have survived the resumes after it."""

    def __init__(self, resumes: Iterator[tuple[int, int]]) -> None:
        found = list(resumes)
        self._lines = [line for line, _ in found]
        self._limits: list[float] = []
        lowest = float("inf")
        for _, step in reversed(found):
            lowest = min(lowest, step)
            self._limits.append(lowest)
        self._limits.reverse()

    def find_limit(self, line: int) -> float:
        """Return the largest step of a point of this line that is still there."""
        place = bisect.bisect_right(self._lines, line)
        return self._limits[place] if place < len(self._limits) else float("inf")


class _Tally:
    """Counts of points that do not agree, each with its first example."""

    def __init__(self) -> None:
        self.met = 0  # rows of the database that the journal has
        self.parts: dict[str, list[str | int]] = {}

    def note(self, what: str, count: int, example: str = "") -> None:
        """Count some points."""
        held = self.parts.setdefault(what, [0, example])
        held[0] = int(held[0]) + count

    def tell(self) -> str:
        """Return it in words."""
        return "; ".join(
            f"{count:,} points are {what}" + (f", first {example}" if example else "")
            for what, (count, example) in self.parts.items()
        )


class _Curve:
    """One curve: its summary and rollups computed anew, point by point, and compared."""

    def __init__(self, connection: Connection, run: int, key: int) -> None:
        self._connection = connection
        self._place = (run, key)
        self._points: list[Stored] = []  # of the bucket that is not full
        self._open: list[list[Bucket]] = []  # by level, of the bucket above that is not full
        self._closed: list[list[Bucket]] = []  # by level, not compared yet
        self._ends: list[int] = []  # by level, seq of the last bucket compared
        self._is_rolled_up = True
        self._count = self._odd = 0
        self._last: Stored | None = None
        self._low: Stored | None = None
        self._high: Stored | None = None

    def add(self, point: Stored) -> None:
        """Take the next point."""
        self._count += 1
        _, step, value, flag, _ = point
        if self._last is None or step >= self._last[1]:
            self._last = point
        if flag != FINITE or value is None:
            self._odd += 1
        else:
            if self._low is None or value < self._low[2]:  # type: ignore[operator]
                self._low = point
            if self._high is None or value > self._high[2]:  # type: ignore[operator]
                self._high = point
        self._points.append(point)
        if len(self._points) == BUCKET:
            self._close(sum_points(self._points), 0)
            self._points = []

    def finish(self, summary: RowMapping | None) -> list[str]:
        """Return what is wrong with the stored summary and rollups."""
        for level in range(len(self._closed)):
            self._compare(level)
        for level in range(len(self._closed) + 1):
            end = self._ends[level] if level < len(self._ends) else 0
            self._is_rolled_up &= not self._load(level, end, 1)
        wrong = [] if self._is_rolled_up else ["its rollups are not those of its points"]
        if summary is None:
            return [*wrong, "it has no summary"]
        expected = self._summarize()
        names = [name for name, value in expected.items() if summary[name] != value]
        if names:
            told = ", ".join(f"{name} {summary[name]}, not {expected[name]}" for name in names)
            wrong.append(f"its summary has {told}")
        return wrong

    def _summarize(self) -> dict[str, object]:
        """Return the columns of the summary."""
        assert self._last is not None
        low, high = self._low, self._high
        return {
            "last": self._last[2],
            "last_flag": self._last[3],
            "last_step": self._last[1],
            "min": low[2] if low else None,
            "min_step": low[1] if low else 0,
            "max": high[2] if high else None,
            "max_step": high[1] if high else 0,
            "count": self._count,
            "nonfinite_count": self._odd,
        }

    def _close(self, bucket: Bucket, level: int) -> None:
        """Take a full bucket of a level, counted from 0, and those that it fills above."""
        if level == len(self._closed):
            self._closed.append([])
            self._open.append([])
            self._ends.append(0)
        self._closed[level].append(bucket)
        if len(self._closed[level]) >= _BUCKETS_PER_STRETCH:
            self._compare(level)
        self._open[level].append(bucket)
        if len(self._open[level]) == FANOUT:
            above = sum_buckets(self._open[level])
            self._open[level] = []
            self._close(above, level + 1)

    def _compare(self, level: int) -> None:
        """Compare the buckets of a level that wait."""
        waiting = self._closed[level]
        if waiting:
            self._is_rolled_up &= self._load(level, self._ends[level], len(waiting)) == waiting
            self._ends[level] = waiting[-1].seq
            self._closed[level] = []

    def _load(self, level: int, after: int, limit: int) -> Sequence[Bucket]:
        """Return stored buckets of a level, counted from 0."""
        run, key = self._place
        return load_buckets(self._connection, run, key, level + 1, after=after, limit=limit)


def _load_keys(connection: Connection) -> dict[str, int]:
    """Return the numbers of all keys by name."""
    query = select(metric_keys.c.key, metric_keys.c.id)
    return {row[0]: row[1] for row in connection.execute(query)}
