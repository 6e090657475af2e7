"""Rollups equal what a full recomputation gives, however a curve came to be."""

from __future__ import annotations

import math
import random
import subprocess

import pytest
from sqlalchemy import event as sql_event
from sqlalchemy import select

from registry import fold as fold_module
from registry import rollups as rollups_module
from registry.connection import open_engine
from registry.events import Metrics, RunResumed
from registry.fold import fold_batch
from registry.journal import JournalWriter
from registry.queries import Reader
from registry.schema import BUCKET, FANOUT, metric_keys, metrics, rollups, summaries
from registry.store import ingest

SPECIAL = (math.nan, math.inf, -math.inf)


@pytest.fixture
def engine(url):
    made = open_engine(url, readonly=False)
    yield made
    made.dispose()


@pytest.fixture
def reader(url):
    with Reader.open(url) as made:
        yield made


def append(folder, *events):
    """Add lines to a run's journal."""
    writer = JournalWriter(folder / "events.jsonl")
    for event in events:
        writer.append(event)
    writer.close()


def load(engine):
    """Return what the tables hold: points, rollups and summaries, by run and key."""
    with engine.begin() as connection:
        points = {}
        for row in connection.execute(select(metrics)).mappings():
            points.setdefault((row["run"], row["key"]), []).append(dict(row))
        held = [dict(row) for row in connection.execute(select(rollups)).mappings()]
        sums = [dict(row) for row in connection.execute(select(summaries)).mappings()]
    for some in points.values():
        some.sort(key=lambda point: point["seq"])
    return points, held, sums


def sum_slowly(points):
    """Return the columns of the bucket of some points, from the definitions in the schema."""
    found = {"seq": points[-1]["seq"], "odd_flag": 0, "odd_step": 0, "odd_ms": 0, "odd_count": 0}
    for name in ("min", "max"):
        found |= {name: None, f"{name}_step": 0, f"{name}_ms": 0}
    for point in points:
        here = (point["step"], point["time_ms"])
        if point["flag"]:
            found["odd_count"] += 1
            if found["odd_count"] == 1:
                found |= {"odd_flag": point["flag"], "odd_step": here[0], "odd_ms": here[1]}
            continue
        if found["min"] is None or point["value"] < found["min"]:
            found |= {"min": point["value"], "min_step": here[0], "min_ms": here[1]}
        if found["max"] is None or point["value"] > found["max"]:
            found |= {"max": point["value"], "max_step": here[0], "max_ms": here[1]}
    steps = [point["step"] for point in points]
    return found | {"first_step": min(steps), "last_step": max(steps)}


def recompute(points):
    """Return every rollup and every summary that these points must have."""
    held, sums = [], []
    for (run, key), some in points.items():
        size, level = BUCKET, 1
        while len(some) >= size:
            for start in range(0, len(some) - size + 1, size):
                head = {"run": run, "key": key, "level": level}
                held.append(head | sum_slowly(some[start : start + size]))
            size, level = size * FANOUT, level + 1
        whole = sum_slowly(some)
        last = [point for point in some if point["step"] == whole["last_step"]][-1]
        names = ("min", "min_step", "max", "max_step", "last_step")
        sums.append(
            {"run": run, "key": key, "count": len(some), "nonfinite_count": whole["odd_count"]}
            | {name: whole[name] for name in names}
            | {"last": last["value"], "last_flag": last["flag"]}
        )
    return held, sums


def check(engine):
    """Compare the tables with a full recomputation; return the number of rollups."""
    points, held, sums = load(engine)
    wanted_held, wanted_sums = recompute(points)

    def place(row):
        return row["run"], row["key"], row.get("level"), row.get("seq")

    assert sorted(held, key=place) == sorted(wanted_held, key=place)
    assert sorted(sums, key=place) == sorted(wanted_sums, key=place)
    return len(held)


def draw_value(source):
    """Return a value; ties and values that are not finite come often."""
    roll = source.random()
    if roll < 0.1:
        return source.choice(SPECIAL)
    return float(source.randrange(5)) if roll < 0.4 else source.gauss(0.0, 1.0)


def draw_events(source, count, *, ordered, resumes):
    """Return lines of a journal: keys of different density, steps in order or not, resumes."""
    events, step = [], 0
    for place in range(count):
        step = step + source.randrange(3) if ordered else source.randrange(count)
        values = {"often": draw_value(source)}
        if source.random() < 0.5:
            values["half"] = draw_value(source)
        if source.random() < 0.02:
            values["rare"] = draw_value(source)
        events.append(Metrics(time=1000.0 + place, step=step, values=values))
        if source.random() < resumes / count:
            step = source.randrange(step + 1)
            events.append(RunResumed(time=1000.0 + place, from_step=step, steps=count))
    return events


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shuffled"])
@pytest.mark.parametrize("seed", range(4))
def test_rollups_equal_a_full_recomputation(engine, write_run, monkeypatch, seed, ordered):
    source = random.Random(seed)
    folder = write_run(steps=0, ended=False)
    append(folder, *draw_events(source, 1500, ordered=ordered, resumes=3 if seed else 0))
    more = True
    while more:
        monkeypatch.setattr(fold_module, "_BATCH_LINES", source.choice([1, 2, 15, 16, 17, 300]))
        more = fold_batch(engine, folder)
    assert check(engine) > 5


@pytest.mark.parametrize("count", [15, 16, 17, 63, 64, 65, 255, 256, 257, 1024])
def test_a_bucket_closes_with_its_last_point(engine, write_run, count):
    ingest(engine, write_run(steps=count))
    closed = sum(count // (BUCKET * FANOUT**level) for level in range(8))
    assert check(engine) == 2 * closed


@pytest.mark.parametrize("from_step", [0, 1, 15, 16, 17, 500, 511, 512, 513, 999, 1000, 5000])
def test_a_rewind_leaves_what_was_never_cut(engine, write_run, from_step):
    resumed = RunResumed(time=9.0, from_step=from_step, steps=2000)
    ingest(engine, write_run("aaaa0000", steps=1000, events=[resumed], ended=False))
    check(engine)
    points, _, _ = load(engine)
    assert {len(some) for some in points.values()} == ({min(from_step, 1000)} - {0})


def test_a_rewind_finds_late_steps_written_early(engine, write_run):
    """One late step in the first bucket: everything behind it is summed up anew."""
    steps = [900, *range(1, 800)]
    events = [Metrics(time=1.0, step=step, values={"x": float(step)}) for step in steps]
    events.append(RunResumed(time=2.0, from_step=850, steps=1000))
    ingest(engine, write_run(steps=0, events=events, ended=False))
    assert check(engine) > 40
    points, _, _ = load(engine)
    assert len(next(iter(points.values()))) == 799


def test_a_curve_that_a_rewind_does_not_reach_is_not_read(engine, write_run):
    events = [Metrics(time=1.0, step=step, values={"early": 1.0}) for step in range(1, 100)]
    events += [Metrics(time=1.0, step=step, values={"late": 1.0}) for step in range(1, 300)]
    folder = write_run(steps=0, events=events, ended=False)
    ingest(engine, folder)
    with engine.begin() as connection:
        ids = dict(connection.execute(select(metric_keys.c.key, metric_keys.c.id)).all())
    seen = []

    @sql_event.listens_for(engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, context, executemany):
        seen.append((statement, str(parameters)))

    append(folder, RunResumed(time=2.0, from_step=200, steps=1000))
    ingest(engine, folder)
    deletions = [text for statement, text in seen if statement.startswith("DELETE FROM metrics")]
    assert len(deletions) == 1
    assert str(ids["late"]) in deletions[0]
    check(engine)


def test_the_number_of_queries_does_not_grow_with_keys(engine, write_run):
    def count_queries(num_keys, run_id):
        values = {f"k{number}": 1.0 for number in range(num_keys)}
        events = [Metrics(time=1.0, step=step, values=values) for step in range(1, 33)]
        folder = write_run(run_id, steps=0, events=events[:31], ended=False)
        ingest(engine, folder)
        append(folder, events[31])
        seen = []

        def note(connection, cursor, statement, parameters, context, executemany):
            seen.append(statement)

        sql_event.listen(engine, "before_cursor_execute", note)
        fold_batch(engine, folder)
        sql_event.remove(engine, "before_cursor_execute", note)
        return len(seen)

    assert count_queries(300, "bbbb0000") == count_queries(3, "aaaa0000")
    check(engine)


def test_ten_thousand_keys_in_a_line(engine, write_run, reader):
    values = {f"k{number}\x1b[31m": float(number) for number in range(10_000)}
    events = [Metrics(time=1.0, step=step, values=values) for step in range(1, 18)]
    folder = write_run(steps=0, events=events[:15], ended=False)
    ingest(engine, folder)
    append(folder, *events[15:])
    ingest(engine, folder)
    assert check(engine) == 10_000
    assert list(reader.get_series("aaaa0000", "k9\x1b[31m").values) == [9.0] * 17


def test_absurd_steps_and_times_have_rollups_too(engine, write_run):
    steps = [2**63 - 1, -(2**63)] * 20
    events = [
        Metrics(time=1e300 if step > 0 else -1e300, step=step, values={"x": 1e308 * place})
        for place, step in enumerate(steps)
    ]
    events.append(RunResumed(time=1.0, from_step=0, steps=1))
    ingest(engine, write_run(steps=0, events=events, ended=False))
    assert check(engine) == 1


def test_open_buckets_are_found_from_the_curves_and_not_by_a_scan(engine):
    seen = []
    note = sql_event.listens_for(engine, "before_cursor_execute")(
        lambda connection, cursor, statement, parameters, *rest: seen.append(
            (statement, parameters)
        )
    )
    with engine.begin() as connection:
        for level in (0, 1):
            for keys in ([1], list(range(1000))):
                rollups_module._load_open(connection, 1, level, keys)
                plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + seen[-1][0], seen[-1][1])
                steps = [row[3] for row in plan]
                assert "summaries" in steps[0]
                assert "seq>?" in steps[1]
    sql_event.remove(engine, "before_cursor_execute", note)


WRITING = """
import sys, time
from pathlib import Path
from registry.events import Metrics, RunEnded, RunResumed, RunStarted, Status
from registry.store import Recorder
folder, url, lines = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
recorder = Recorder(folder, url)
recorder.emit(RunStarted(time=time.time(), run_id=folder.name, name="x", steps=lines))
for step in range(1, lines + 1):
    values = {f"k{n}": float(step * 7919 % 1009 + n) for n in range(3)}
    recorder.emit(Metrics(time=time.time(), step=step, values=values))
    time.sleep(0.002)
    if step == lines // 2:
        recorder.emit(RunResumed(time=time.time(), from_step=step - 50, steps=lines))
recorder.emit(RunEnded(time=time.time(), status=Status.COMPLETED, step=lines))
recorder.close()
print(recorder.store_error, flush=True)
"""
READING = """
import sys
from registry.queries import Reader
seen = 0
with Reader.open(sys.argv[1]) as reader:
    while seen < 8:
        runs = reader.list_runs()
        seen = sum(run.status == "completed" for run in runs)
        for run in runs:
            whole = reader.get_series(run.id, "k1")
            outline = reader.get_outline(run.id, "k1", 3)
            assert len(outline) <= max(len(whole), 200), (len(outline), len(whole))
print("done", flush=True)
"""


@pytest.mark.slow
def test_eight_writers_and_four_readers_at_once(engine, home, url, start_python):
    lines = 400
    names = [f"aaaa000{number}" for number in range(8)]
    readers = [start_python(READING, url, stderr=subprocess.PIPE) for _ in range(4)]
    writers = [
        start_python(WRITING, home / "runs" / name, url, lines, stderr=subprocess.PIPE)
        for name in names
    ]
    for process, said in [*((w, "None\n") for w in writers), *((r, "done\n") for r in readers)]:
        out, err = process.communicate(timeout=120)
        assert (out, err) == (said, "")
    assert check(engine) == 8 * 3 * (350 // 16 + 350 // 64 + 350 // 256)
