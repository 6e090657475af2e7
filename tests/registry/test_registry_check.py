"""Every way in which a registry can differ from its journals is found, and nothing else is."""

from __future__ import annotations

import math
import random
import sqlite3

import pytest

from registry import check_curves
from registry.check import check
from registry.events import Metrics, RunEnded, RunResumed, Status
from registry.journal import JournalWriter
from registry.recover import rebuild, recover
from registry.schema import BUCKET, FANOUT
from registry.store import Recorder

RUN = "aaaa0000"
LONG = BUCKET * FANOUT * FANOUT + 37  # points that fill rollups of three levels


@pytest.fixture
def database(home):
    """Return a function that runs SQL on the registry, past everything that guards it."""

    def execute(*statements):
        connection = sqlite3.connect(home / "registry.db")
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return execute


@pytest.fixture
def folder(write_run, home, url):
    """Record one healthy run with a long curve, and return its folder."""
    rng = random.Random(7)
    events = []
    for step in range(1, LONG):
        values = {"val/loss": rng.choice((rng.gauss(0, 1), math.nan, math.inf, -math.inf))}
        events.append(Metrics(time=1000.0 + step, step=step, values=values))
    folder = write_run(RUN, steps=LONG, events=events)
    recover(home, url)
    return folder


def list_faults(home, url, **options):
    return [(fault.kind, fault.run) for fault in check(home, url, **options).faults]


def test_a_healthy_registry_has_no_fault(folder, write_run, home, url):
    write_run("bbbb0000", steps=2)
    recover(home, url)
    report = check(home, url)
    assert report.faults == ()
    assert report.num_runs == 2
    assert report.num_points == 2 * LONG + (LONG - 1) + 4
    assert check(home, url, fast=True).faults == ()


def test_no_registry_has_no_fault(home, url):
    assert check(home, url).faults == ()
    assert not home.exists()


def test_stretches_of_any_size_give_the_same(folder, home, url, monkeypatch):
    monkeypatch.setattr(check_curves, "_POINTS_PER_STRETCH", 5)
    monkeypatch.setattr(check_curves, "_BUCKETS_PER_STRETCH", 2)
    assert check(home, url).faults == ()


@pytest.mark.parametrize("seed", range(6))
def test_runs_that_were_resumed_have_no_fault(home, url, seed):
    rng = random.Random(seed)
    folder = home / "runs" / RUN
    folder.mkdir(parents=True)
    writer = JournalWriter(folder / "events.jsonl")
    for number in range(400):
        step = rng.randrange(300)
        if rng.random() < 0.02:
            writer.append(RunResumed(time=float(number), from_step=step, steps=300))
        values = {f"k{rng.randrange(3)}": rng.choice((rng.random(), math.nan)), "always": 1.0}
        writer.append(Metrics(time=float(number), step=step, values=values))
    writer.append(RunEnded(time=500.0, status=Status.COMPLETED, step=300))
    writer.close()
    recover(home, url)
    report = check(home, url)
    assert report.faults == ()
    assert 0 < report.num_points < 800


def test_odd_lines_are_counted_as_the_fold_counts_them(folder, home, url):
    with (folder / "events.jsonl").open("ab") as journal:
        journal.write(b"no event\n")
        journal.write(
            b'{"type":"metrics","time":1.0,"step":1,"values":{"a\\u0000":1,"a\xef\xbf\xbd":2}}\n'
        )
    recover(home, url)
    assert check(home, url).faults == ()


@pytest.mark.parametrize(
    ("statement", "kind", "told"),
    [
        ("DELETE FROM metrics WHERE seq = 5", "points", "2 points are missing, first"),
        ("UPDATE metrics SET value = value + 1e-12 WHERE seq = 5 AND flag = 0", "points", "differ"),
        ("UPDATE metrics SET step = step + 1 WHERE seq = 5", "points", "different"),
        ("UPDATE metrics SET flag = 3 - flag WHERE flag IN (1, 2)", "points", "val/loss at step"),
        (
            "INSERT INTO metrics SELECT run, key, seq + 100000, step, value, flag, time_ms "
            "FROM metrics WHERE seq = 5",
            "points",
            "2 points are not in the journal",
        ),
        (
            "INSERT INTO metrics SELECT run, 99, seq, step, value, flag, time_ms "
            "FROM metrics WHERE seq = 5 LIMIT 1",
            "points",
            "1 points are not in the journal",
        ),
        ("DELETE FROM metric_keys WHERE key = 'train/lr'", "points", "train/lr at step 1"),
        ("UPDATE summaries SET last = 7.5", "curve", "its summary has last 7.5"),
        ("UPDATE summaries SET min_step = min_step + 1", "curve", "min_step"),
        ("UPDATE summaries SET max = NULL", "curve", "max None"),
        ("UPDATE summaries SET count = count + 1", "curve", "count"),
        ("UPDATE summaries SET nonfinite_count = 77", "curve", "nonfinite_count"),
        ("DELETE FROM summaries", "curve", "it has no summary"),
        ("UPDATE rollups SET max = max + 1 WHERE level = 1", "curve", "rollups"),
        ("UPDATE rollups SET min_step = min_step + 1 WHERE level = 2", "curve", "rollups"),
        ("UPDATE rollups SET odd_count = 1000 WHERE level = 3", "curve", "rollups"),
        ("DELETE FROM rollups WHERE level = 3", "curve", "rollups"),
        (
            "DELETE FROM rollups WHERE level = 1 "
            "AND seq = (SELECT max(seq) FROM rollups WHERE level = 1)",
            "curve",
            "rollups",
        ),
        ("UPDATE rollups SET seq = seq + 1 WHERE level = 2", "curve", "rollups"),
        ("UPDATE runs SET journal_lines = journal_lines - 1", "lines", "lines;"),
        ("UPDATE runs SET journal_offset = journal_offset - 1", "journal", "no line end"),
        ("UPDATE runs SET journal_offset = journal_offset + 1", "journal", "bytes"),
        ("DROP VIEW points", "schema", "the view points is missing"),
        ("DROP INDEX runs_by_created", "schema", "index runs_by_created"),
        ("DROP TABLE histograms", "schema", "table histograms"),
        ("ALTER TABLE artifacts DROP COLUMN size_bytes", "schema", "artifacts.size_bytes"),
        ("PRAGMA application_id = 0", "schema", "application id 0"),
        ("INSERT INTO tags VALUES (77, 0, 'x')", "schema", "of tags refers to a row of runs"),
    ],
)
def test_a_planted_fault_is_named_and_a_rebuild_mends_it(
    folder, home, url, database, statement, kind, told
):
    database(statement)
    faults = check(home, url).faults
    assert kind in {fault.kind for fault in faults}
    assert any(told in fault.message for fault in faults), faults
    assert {fault.next_command for fault in faults} == {"tsx registry rebuild"}
    rebuild(home, url)
    assert check(home, url).faults == ()


def test_more_bad_lines_than_were_counted(folder, home, url, database):
    with (folder / "events.jsonl").open("ab") as journal:
        journal.write(b"no event\n")
    recover(home, url)
    database("UPDATE runs SET bad_lines = 0")
    (fault,) = check(home, url).faults
    assert (fault.kind, fault.message) == ("lines", "1 lines are no events; 0 were counted")


def test_a_fast_check_leaves_out_the_points(folder, home, url, database):
    database("DELETE FROM metrics WHERE seq = 5")
    assert list_faults(home, url, fast=True) == []
    database("UPDATE runs SET journal_offset = journal_offset + 1")
    assert list_faults(home, url, fast=True) == [("journal", RUN)]


def test_a_journal_that_was_changed_afterwards_is_found(folder, home, url):
    journal = folder / "events.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"train/lr":0.001', b'"train/lr":0.002', 1))
    (fault,) = check(home, url).faults
    assert (fault.kind, fault.run) == ("points", RUN)
    assert "1 points are different, first train/lr at step 1 (line 2)" in fault.message


def test_a_journal_that_was_cut_asks_for_a_backup_first(folder, home, url):
    journal = folder / "events.jsonl"
    journal.write_bytes(journal.read_bytes()[:1000])
    (fault,) = check(home, url).faults
    assert (fault.kind, fault.run) == ("cut", RUN)
    assert fault.next_command == "tsx registry backup"


def test_a_row_without_a_folder_asks_for_a_backup_first(folder, home, url):
    (folder / "events.jsonl").unlink()
    (fault,) = check(home, url).faults
    assert (fault.kind, fault.run) == ("folder", RUN)
    assert str(folder) in fault.message
    assert fault.next_command == "tsx registry backup"


def test_a_run_of_another_host_is_no_fault(folder, home, url, database):
    database("UPDATE runs SET host = 'elsewhere', folder = '/nowhere/aaaa0000'")
    folder.rename(home / "moved")
    report = check(home, url)
    assert (report.faults, report.elsewhere, report.num_runs) == ((), (RUN,), 0)


def test_a_folder_without_a_row_is_found(folder, write_run, home, url):
    write_run("bbbb0000")
    (home / "runs" / "stray").mkdir()
    faults = check(home, url).faults
    assert [(fault.kind, fault.run) for fault in faults] == [
        ("row", "bbbb0000"),
        ("folder", "stray"),
    ]
    assert faults[0].next_command == "tsx registry rebuild"


def test_a_damaged_page_is_found_and_nothing_is_read_from_it(folder, home, url, database):
    database("PRAGMA wal_checkpoint(TRUNCATE)")
    path = home / "registry.db"
    content = bytearray(path.read_bytes())
    for page in range(len(content) // 4096 - 6, len(content) // 4096):
        content[page * 4096 + 8 : page * 4096 + 200] = b"\xa5" * 192
    path.write_bytes(content)
    report = check(home, url)
    assert {fault.kind for fault in report.faults} == {"structure"}
    assert report.faults[0].next_command == "tsx registry rebuild"
    assert report.num_runs == 0


def test_a_run_that_is_being_recorded_is_judged_at_one_moment(write_run, home, url):
    folder = write_run(RUN, steps=3, ended=False)
    recorder = Recorder(folder, url)
    seen = []

    def write_more(run, done, total):
        seen.append((run, done, total))
        for step in range(10, 40):
            recorder.emit(Metrics(time=2000.0, step=step, values={"train/loss": 1.0}))

    recorder.emit(Metrics(time=1500.0, step=4, values={"train/loss": 1.0}))
    recover(home, url)
    for _ in range(5):
        assert check(home, url, progress=write_more).faults == ()
    recorder.close()
    assert check(home, url).faults == ()
    assert all(run == RUN and done <= total for run, done, total in seen)


def test_progress_reaches_the_end(folder, write_run, home, url):
    write_run("bbbb0000", created=2000.0)
    recover(home, url)
    seen = []
    check(home, url, progress=lambda *told: seen.append(told))
    assert [run for run, _, _ in seen] == [RUN, "bbbb0000"]
    assert seen[-1][1] == seen[-1][2] > 0
