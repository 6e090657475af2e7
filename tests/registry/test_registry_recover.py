"""Dead runs are ended, journals are caught up with, broken registries are made again."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import subprocess
import threading
import time

import pytest

from registry import recover as recover_module
from registry.captured import read_output
from registry.connection import get_default_url, open_engine
from registry.errors import StoreCorrupt, StoreError, StoreLocked, StoreNewer, StoreUnavailable
from registry.events import Metrics, Output, RunEnded, RunStarted, Status
from registry.faults import list_writers
from registry.journal import JournalWriter, iter_events
from registry.liveness import RunLock
from registry.queries import Reader
from registry.recover import rebuild, recover
from registry.store import ingest

HERE = socket.gethostname()


@pytest.fixture
def get_run(url):
    def get(run_id="aaaa0000"):
        with Reader.open(url) as reader:
            return reader.get_detail(run_id)

    return get


@pytest.fixture
def fold(url):
    """Return a function that folds a journal, as a live recorder would have."""
    engine = open_engine(url, readonly=False)
    yield lambda folder: ingest(engine, folder)
    engine.dispose()


def replace(path, data):
    """Put other bytes in a database's place; its log goes too, or it would mend the damage."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(data)


def events_of(folder):
    return [event for event, _ in iter_events(folder / "events.jsonl")]


def test_nothing_to_do_makes_nothing(home, url):
    assert recover(home, url) == ()
    assert not home.exists()


def test_a_dead_run_is_ended_once(home, url, write_run, fold, get_run, dead_pid):
    folder = write_run(ended=False, pid=dead_pid)
    fold(folder)
    (folder / "stdout.log").write_text("hello\n")
    (folder / "stderr.log").write_text("Killed\n")
    assert recover(home, url) == ("aaaa0000",)
    detail = get_run()
    assert detail.run.status == "killed"
    assert detail.run.reason == (
        f"process {dead_pid} is gone (killed, or the machine stopped) after step 3"
    )
    assert detail.run.ended == 1003.0  # the last sign of life
    assert [(output.stream, output.text) for output in detail.output] == (
        [("stdout", "hello\n"), ("stderr", "Killed\n")]
    )
    ended = [event for event in events_of(folder) if isinstance(event, RunEnded)]
    assert [(event.status, event.exit_code, event.step) for event in ended] == (
        [(Status.KILLED, 137, 3)]
    )
    assert recover(home, url) == ()
    assert len(events_of(folder)) == 7


def test_a_journal_the_database_never_saw(home, url, write_run, get_run, dead_pid):
    write_run("aaaa0000", ended=False, pid=dead_pid)
    write_run("bbbb0000")
    assert recover(home, url) == ("aaaa0000",)
    assert get_run("aaaa0000").run.status == "killed"
    assert get_run("bbbb0000").run.status == "completed"


def test_news_of_a_run_that_had_ended(home, url, write_run, fold, get_run):
    folder = write_run()
    fold(folder)
    writer = JournalWriter(folder / "events.jsonl")
    writer.append(Output(time=1.0, stream="stdout", text="late"))
    writer.close()
    assert recover(home, url) == ()
    assert get_run().output[0].text == "late"


def test_a_live_run_is_left_alone(home, url, write_run, fold, get_run, dead_pid):
    held = write_run("aaaa0000", ended=False, pid=dead_pid)
    unheld = write_run("bbbb0000", ended=False, pid=os.getpid(), created=time.time())
    for folder in (held, unheld):
        fold(folder)
    lock = RunLock.acquire(held)
    before = [(folder / "events.jsonl").read_bytes() for folder in (held, unheld)]
    assert recover(home, url) == ()
    assert before == [(folder / "events.jsonl").read_bytes() for folder in (held, unheld)]
    assert get_run("aaaa0000").run.status == get_run("bbbb0000").run.status == "running"
    lock.release()
    assert recover(home, url) == ("aaaa0000",)


def test_a_torn_last_line(home, url, write_run, get_run, dead_pid):
    folder = write_run(ended=False, pid=dead_pid)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"type":"metrics","step":4,"val')
    assert recover(home, url) == ("aaaa0000",)
    detail = get_run()
    assert (detail.run.status, detail.run.step) == ("killed", 3)
    assert recover(home, url) == ()


def test_a_journal_that_is_shorter_than_what_was_read_of_it(
    home, url, write_run, fold, get_run, dead_pid
):
    folder = write_run(ended=False, pid=dead_pid)
    fold(folder)
    journal = folder / "events.jsonl"
    journal.write_bytes(b"")
    recover(home, url)
    assert get_run().run.status == "killed"
    recover(home, url)
    assert journal.read_bytes() == b""


def test_a_launcher_that_died_before_the_trainer_lived(home, url, write_run, get_run):
    RunLock.acquire(write_run(steps=0, ended=False, created=time.time())).release()
    assert recover(home, url) == ("aaaa0000",)
    assert "before it trained, at step 0" in get_run().run.reason


def test_another_host(home, url, write_run, fold, get_run):
    silent = write_run("aaaa0000", ended=False, host="elsewhere", pid=1, created=time.time() - 9e4)
    fresh = write_run("bbbb0000", ended=False, host="elsewhere", pid=1, created=time.time())
    for folder in (silent, fresh):
        fold(folder)
    assert recover(home, url) == ("aaaa0000",)
    assert get_run("bbbb0000").run.status == "running"


def test_a_run_whose_folder_is_gone(home, url, write_run, fold, get_run, dead_pid):
    folder = write_run(ended=False, pid=dead_pid)
    fold(folder)
    text = (folder / "events.jsonl").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert recover(home, url) == ("aaaa0000",)
    assert get_run().run.status == "killed"
    assert recover(home, url) == ()
    # It was only presumed: the folder is back, and the run says more.
    folder.mkdir()
    (folder / "events.jsonl").write_bytes(text)
    writer = JournalWriter(folder / "events.jsonl")
    writer.append(Metrics(time=1.0, step=4, values={"a": 1.0}))
    fold(folder)
    assert (get_run().run.status, get_run().run.reason) == ("running", "")
    writer.append(RunEnded(time=1.0, status=Status.COMPLETED, step=4))
    writer.close()
    fold(folder)
    assert get_run().run.status == "completed"


def test_a_registry_shared_by_two_homes(home, url, write_run, fold, get_run, dead_pid, tmp_path):
    fold(write_run(ended=False, pid=dead_pid))
    assert recover(tmp_path / "other-home", url) == ("aaaa0000",)
    assert get_run().run.status == "killed"


def test_two_readers_end_a_run_once(home, url, write_run, dead_pid):
    folders = [write_run(f"aaaa000{n}", ended=False, pid=dead_pid) for n in range(5)]
    ended = []
    threads = [threading.Thread(target=lambda: ended.extend(recover(home, url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recover(home, url)
    assert sorted(set(ended)) == sorted(ended)
    for folder in folders:
        assert sum(isinstance(event, RunEnded) for event in events_of(folder)) == 1


def test_a_journal_of_garbage(home, url, get_run):
    folder = home / "runs" / "aaaa0000"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_bytes(b"\xff\x00\n" * 1000 + b"{}\n")
    RunLock.acquire(folder).release()
    assert recover(home, url) == ("aaaa0000",)
    detail = get_run()
    assert detail.run.status == "killed"
    assert detail.environment["journal_bad_lines"] == 1001


def test_what_is_not_a_run_is_left_alone(home, url):
    (home / "runs" / "empty").mkdir(parents=True)
    (home / "runs" / "a-file").touch()
    (home / "runs" / "torn").mkdir()
    (home / "runs" / "torn" / "events.jsonl").write_bytes(b'{"torn')
    (home / "runs" / "odd").mkdir()
    (home / "runs" / "odd" / "events.jsonl").mkdir()
    assert recover(home, url) == ()
    assert not (home / "registry.db").exists()


def test_a_locked_registry_is_only_read(home, url, write_run, fold, dead_pid, monkeypatch):
    fold(write_run(ended=False, pid=dead_pid))
    monkeypatch.setattr(recover_module, "_LOOK_S", 0.05)
    holder = sqlite3.connect(home / "registry.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    faults = []
    assert recover(home, url, on_fault=faults.append) == ()
    assert [type(fault) for fault in faults] == [StoreLocked]
    holder.execute("COMMIT")
    holder.close()
    assert recover(home, url, on_fault=faults.append) == ("aaaa0000",)
    assert len(faults) == 1


def test_a_disk_that_refuses_the_end(home, url, write_run, fold, get_run, dead_pid, monkeypatch):
    folder = write_run(ended=False, pid=dead_pid)
    fold(folder)
    before = (folder / "events.jsonl").read_bytes()

    def refuse(*args):
        raise StoreUnavailable("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(recover_module, "JournalWriter", refuse)
        assert recover(home, url) == ("aaaa0000",)
    assert get_run().run.status == "killed"
    assert (folder / "events.jsonl").read_bytes() == before


def test_errors_of_the_registry_are_said(home, url, write_run, fold):
    fold(write_run())
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreNewer):
        recover(home, url)
    replace(home / "registry.db", b"garbage" * 1000)
    with pytest.raises(StoreCorrupt):
        recover(home, url)


def test_captured_output_is_capped_and_keeps_both_ends(tmp_path):
    lines = [f"line {number:06d} " + "x" * 80 for number in range(20_000)]
    (tmp_path / "stdout.log").write_text("\n".join(lines))
    (tmp_path / "stderr.log").write_bytes(b"")
    (output,) = read_output(tmp_path)
    assert output.text.startswith("line 000000")
    assert output.text.endswith(lines[-1])
    assert len(output.text) < 256 * 1024 + 50
    assert output.dropped_bytes > 0
    assert f"[{output.dropped_bytes} bytes left out]" in output.text
    kept = [line for line in output.text.splitlines() if line.startswith("line")]
    assert set(kept) <= set(lines)


def test_captured_output_that_is_not_text(tmp_path):
    (tmp_path / "stdout.log").write_bytes(b"\xff\x00ok\x1b[31m")
    (tmp_path / "stderr.log").mkdir()
    (output,) = read_output(tmp_path)
    assert "ok" in output.text
    assert read_output(tmp_path / "absent") == ()


def test_recovered_output_is_redacted(home, url, write_run, get_run, dead_pid, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2.token")
    folder = write_run(ended=False, pid=dead_pid)
    (folder / "stdout.log").write_text("token is hunter2.token\n")
    recover(home, url)
    assert get_run().output[0].text == "token is [redacted]\n"
    assert b"hunter2" not in (folder / "events.jsonl").read_bytes()


def test_rebuild_keeps_the_old_file(home, url, write_run, fold, get_run):
    folder = write_run("aaaa0000")
    fold(folder)
    write_run("bbbb0000")
    before = get_run("aaaa0000")
    replace(home / "registry.db", b"broken" * 5000)
    with pytest.raises(StoreCorrupt, match="tsx registry rebuild"):
        get_run()
    report = rebuild(home, url)
    assert (report.runs, report.lines, report.bad_lines, report.unreadable) == (2, 10, 0, ())
    assert report.kept.parent == home
    assert ".broken-" in report.kept.name
    assert report.kept.read_bytes() == b"broken" * 5000
    assert get_run("aaaa0000") == before
    assert get_run("bbbb0000").run.status == "completed"
    assert not list(home.glob("*rebuild*"))


def test_rebuild_twice_in_a_second_keeps_both(home, url, write_run, fold):
    fold(write_run())
    kept = {rebuild(home, url).kept for _ in range(3)}
    assert len(kept) == 3
    assert all(path.exists() for path in kept)


def test_a_newer_registry_is_not_rebuilt(home, url, write_run, fold):
    fold(write_run())
    path = home / "registry.db"
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreNewer, match="9999"):
        rebuild(home, url)
    assert path.exists()
    assert not list(home.glob("*.broken-*"))


def test_rebuild_without_an_old_file(home, url, write_run, get_run):
    write_run()
    assert rebuild(home, url).kept is None
    assert get_run().run.status == "completed"


def test_rebuild_of_nothing(home, url):
    report = rebuild(home, url)
    assert (report.runs, report.kept) == (0, None)


def test_a_file_that_tsx_registry_names_is_never_moved(home, write_run, tmp_path, monkeypatch):
    write_run()
    mine = tmp_path / "mine.db"
    mine.write_bytes(b"broken" * 1000)
    url = get_default_url(tmp_path).replace("registry.db", "mine.db")
    monkeypatch.setenv("TSX_REGISTRY", url)
    with pytest.raises(StoreError, match="never moved") as caught:
        rebuild(home, url)
    assert str(mine) in caught.value.next_command
    assert mine.read_bytes() == b"broken" * 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.db", "tsx-home"]
    mine.unlink()
    assert rebuild(home, url).runs == 1
    assert mine.exists()


def test_a_server_is_not_rebuilt(home):
    with pytest.raises(StoreError, match="server"):
        rebuild(home, "postgresql://me:hunter2secret@host/db")


def test_a_rebuild_that_fails_moves_nothing(home, url, write_run, fold, monkeypatch):
    fold(write_run())
    before = sorted(path.name for path in home.iterdir() if "-" not in path.name)

    def fail(*args):
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(recover_module, "ingest", fail)
    with pytest.raises(StoreUnavailable):
        rebuild(home, url)
    assert sorted(path.name for path in home.iterdir() if "-" not in path.name) == before


def test_a_registry_that_somebody_writes_is_not_moved(
    home, url, write_run, fold, start_python, monkeypatch
):
    fold(write_run())
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    script += "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    holder = start_python(script, home / "registry.db", stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    before = (home / "registry.db").stat().st_ino
    monkeypatch.setattr(recover_module, "DEFAULT_TIMEOUT_S", 0.1)
    if list_writers(home / "registry.db"):  # told by Linux alone
        with pytest.raises(StoreLocked, match=f"pid {holder.pid}"):
            rebuild(home, url)
        assert (home / "registry.db").stat().st_ino == before
        assert not list(home.glob("*.broken-*"))
    holder.stdin.close()
    holder.wait()
    assert rebuild(home, url).kept is not None


def test_a_rebuild_without_a_place_for_the_new_file(home, url, write_run, monkeypatch):
    write_run()

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(recover_module, "_remove", refuse)
    with pytest.raises(StoreUnavailable, match="Read-only") as caught:
        rebuild(home, url)
    assert caught.value.next_command


def test_looking_costs_no_write(home, url, write_run, fold):
    for number in range(20):
        fold(write_run(f"aaaa{number:04d}"))
    with Reader.open(url) as reader:
        version = reader.data_version()
        assert recover(home, url) == ()
        assert reader.data_version() == version


def test_run_started_alone_is_a_run(home, url, get_run, dead_pid, write_run):
    write_run(steps=0, ended=False, pid=dead_pid)
    recover(home, url)
    detail = get_run()
    assert (detail.run.step, detail.metrics) == (0, {})
    assert isinstance(events_of(home / "runs" / "aaaa0000")[0], RunStarted)
