"""The recorder: journal first, database soon, and nothing the database does stops a run."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading

import pytest

from registry import store as store_module
from registry.errors import StoreError, StoreUnavailable
from registry.events import Finding, Metrics, RunEnded, RunStarted, Severity, Status
from registry.journal import read_events
from registry.queries import Reader
from registry.recover import rebuild, recover
from registry.store import Recorder

RUN = "aaaa0000"
STARTED = RunStarted(time=1.0, run_id=RUN, name="x", steps=9)


def metric(step):
    return Metrics(time=1.0 + step, step=step, values={"a": float(step)})


@pytest.fixture
def folder(home):
    return home / "runs" / RUN


@pytest.fixture
def recorder(folder, url):
    made = Recorder(folder, url)
    yield made
    made.close()


def steps_in_database(url):
    with Reader.open(url) as reader:
        return list(reader.get_series(RUN, "a").steps)


def steps_in_journal(folder):
    found = read_events(folder / "events.jsonl")
    return [event.step for event in found if isinstance(event, Metrics)]


def test_the_database_follows_while_the_run_is_live(recorder, url, wait_until):
    recorder.emit(STARTED)
    with Reader.open(url) as reader:
        wait_until(lambda: [run.status for run in reader.list_runs()] == ["running"])
        for step in range(1, 4):
            recorder.emit(metric(step))
        wait_until(lambda: list(reader.get_series(RUN, "a").steps) == [1, 2, 3])
        recorder.emit(RunEnded(time=9.0, status=Status.COMPLETED, step=3))
        wait_until(lambda: reader.get_run(RUN).status == "completed")
    assert recorder.store_error is None


def test_close_folds_everything(recorder, url):
    recorder.emit(STARTED)
    for step in range(5000):
        recorder.emit(metric(step))
    recorder.close()
    assert steps_in_database(url) == list(range(5000))


def test_the_thread_ends_with_close(recorder):
    recorder.emit(STARTED)
    recorder.close()
    assert "tsx-recorder" not in {thread.name for thread in threading.enumerate()}


def test_a_second_recorder_goes_on_where_the_first_left_off(folder, url):
    for part in range(3):
        recorder = Recorder(folder, url)
        if part == 0:
            recorder.emit(STARTED)
        recorder.emit(metric(part))
        recorder.close()
    assert steps_in_database(url) == [0, 1, 2]


def test_a_run_in_a_folder_of_another_name_is_refused(recorder):
    with pytest.raises(ValueError, match="other"):
        recorder.emit(RunStarted(time=1.0, run_id="other", name="x"))


def test_a_locked_database_stops_nothing(recorder, url, home, folder, wait_until, monkeypatch):
    monkeypatch.setattr(store_module, "_STATEMENT_S", 0.05)
    monkeypatch.setattr(store_module, "_BACK_OFF_S", 0.05)
    recorder.emit(STARTED)
    wait_until(lambda: recorder._folded == recorder._journal.file.end)
    holder = sqlite3.connect(home / "registry.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    for step in range(1, 4):
        recorder.emit(metric(step))
    wait_until(lambda: recorder.store_error is not None)
    assert "locked" in recorder.store_error
    assert steps_in_journal(folder) == [1, 2, 3]
    holder.execute("COMMIT")
    holder.close()
    wait_until(lambda: recorder.store_error is None)
    assert steps_in_database(url) == [1, 2, 3]


def test_close_is_bounded_and_recovery_folds_the_rest(
    folder, url, home, wait_until, monkeypatch, dead_pid
):
    monkeypatch.setattr(store_module, "_STATEMENT_S", 0.05)
    recorder = Recorder(folder, url, close_s=0.2)
    recorder.emit(RunStarted(time=1.0, run_id=RUN, name="x", pid=dead_pid))
    wait_until(lambda: recorder._folded == recorder._journal.file.end)
    holder = sqlite3.connect(home / "registry.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    recorder.emit(metric(1))
    recorder.emit(RunEnded(time=3.0, status=Status.COMPLETED, step=1))
    recorder.close()
    holder.execute("COMMIT")
    holder.close()
    recorder._thread.join()
    recover(home, url)
    assert steps_in_database(url) == [1]
    with Reader.open(url) as reader:
        assert reader.get_run(RUN).status == "completed"


def test_a_database_that_breaks_stops_nothing(recorder, home, folder, wait_until):
    recorder.emit(STARTED)
    wait_until(lambda: recorder._folded == recorder._journal.file.end)
    (home / "registry.db").unlink()
    (home / "registry.db").write_bytes(b"no database at all" * 1000)
    recorder.emit(metric(1))
    wait_until(lambda: recorder.store_error is not None)
    assert "rebuild" in recorder.store_error
    recorder.emit(metric(2))
    assert steps_in_journal(folder) == [1, 2]
    assert recorder.lost == 0


def test_a_rebuild_under_a_live_run(recorder, home, url, wait_until):
    recorder.emit(STARTED)
    recorder.emit(metric(1))
    wait_until(lambda: recorder._folded == recorder._journal.file.end)
    rebuild(home, url)
    recorder.emit(metric(2))
    recorder.close()
    assert steps_in_database(url) == [1, 2]


def test_a_registry_that_was_deleted_is_made_again(recorder, home, url, wait_until):
    recorder.emit(STARTED)
    recorder.emit(metric(1))
    wait_until(lambda: recorder._folded == recorder._journal.file.end)
    for path in home.glob("registry.db*"):
        path.unlink()
    recorder.emit(metric(2))
    recorder.close()
    assert steps_in_database(url) == [1, 2]


def test_a_full_disk_is_an_error_before_the_first_event(folder, url):
    folder.mkdir(parents=True)
    (folder / "events.jsonl").symlink_to("/dev/full")
    recorder = Recorder(folder, url)
    with pytest.raises(StoreUnavailable, match="No space"):
        recorder.emit(STARTED)
    recorder.close()


def test_a_full_disk_later_is_counted_and_said(folder, url, monkeypatch):
    recorder = Recorder(folder, url)
    recorder.emit(STARTED)
    full = threading.Event()
    write = os.write

    def refuse(fd, data):
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr("registry.journal_file.os.write", refuse)
    monkeypatch.setattr("registry.journal_file._RETRY_S", 0.0)
    monkeypatch.setattr("registry.writer._BACKLOG_MAX_BYTES", 1000)
    monkeypatch.setattr("registry.writer.SIZE", 4096)
    monkeypatch.setattr("registry.tail.SIZE", 4096)
    full.set()
    for step in range(100):
        recorder.emit(metric(step))
    assert 0 < recorder.lost < 60  # some 40 wait in the tail, which is safe from a kill
    full.clear()
    recorder.close()
    kept = steps_in_database(url)
    assert len(kept) == 100 - recorder.lost
    assert kept[-1] == 99
    with Reader.open(url) as reader:
        finding = reader.get_detail(RUN).findings[0]
    assert (finding.kind, finding.severity) == ("events-lost", "warning")
    assert str(recorder.lost) in finding.cause


def test_an_event_that_is_no_event_is_lost_not_raised(recorder):
    recorder.emit(STARTED)
    huge = {str(number): "x" * 1_000_000 for number in range(20)}
    recorder.emit(Finding(time=1.0, kind="k", severity=Severity.INFO, evidence=huge))
    assert recorder.lost == 1


@pytest.mark.parametrize("bad", ["nonsense", "oracle://me:hunter2secret@host/db"])
def test_a_registry_that_cannot_be_used_is_an_error_at_once(folder, bad):
    with pytest.raises(StoreError):
        Recorder(folder, bad)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_nobody_forks_while_the_thread_is_inside_the_database(recorder, monkeypatch):
    inside, left = threading.Event(), threading.Event()

    def fold_slowly(engine, folder):
        inside.set()
        left.wait(0.5)  # nobody sets it: a fork has time to come too early
        left.set()
        return False

    monkeypatch.setattr(store_module, "fold_batch", fold_slowly)
    recorder.emit(STARTED)
    assert inside.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(0 if left.is_set() else 1)
    assert os.waitpid(child, 0)[1] == 0
