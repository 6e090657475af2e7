"""What may go goes, recorded, and nothing else does."""

from __future__ import annotations

import errno
import os
import time

import pytest

from registry import retention
from registry.check import check
from registry.edit import append_event
from registry.events import Artifact, Output, Removed, RunResumed
from registry.liveness import RunLock
from registry.queries import Reader
from registry.recover import rebuild, recover
from registry.retention import Retention, delete, find_items

RUN = "aaaa0000"
KEPT = Retention()
DAY_S = 86400.0


def checkpoint(step, *, best=False):
    """Return what a trainer says of a checkpoint."""
    path = f"checkpoints/step-{step:08d}"
    return Artifact(time=1.0, kind="checkpoint", path=path, step=step, metadata={"best": best})


def age(path, seconds):
    """Make a file or folder look as old as this."""
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def add_run(write_run, home, url):
    """Return a function that records a run with checkpoints on the disk, and returns its folder."""

    def add(run_id=RUN, *, steps=(), best=(), events=(), **options):
        told = [checkpoint(step, best=step in best) for step in steps]
        folder = write_run(run_id, events=[*told, *events], **options)
        for step in steps:
            place = folder / f"checkpoints/step-{step:08d}"
            place.mkdir(parents=True)
            (place / "model.safetensors").write_bytes(b"x" * 100 * step)
        recover(home, url)
        return folder

    return add


def list_names(home, url, kept=KEPT, run_ids=None):
    """Return kind and file of what may go."""
    items = find_items(home, url, kept, run_ids)
    return sorted((item.kind, item.path.name) for item in items)


def clear(home, url, kept=KEPT):
    """Delete all that may go."""
    return delete(home, url, kept, find_items(home, url, kept))


@pytest.mark.parametrize(
    ("steps", "best", "keep", "gone"),
    [
        ((1, 2, 3), (2,), 1, {1}),
        ((1, 2, 3), (1, 2), 1, {1}),
        ((1, 2, 3), (1, 2, 3), 1, {1, 2}),
        ((1, 2, 3), (), 1, {1, 2}),
        ((1, 2, 3), (2,), 2, {1}),
        ((1, 2, 3), (1,), 2, set()),
        ((1, 2, 3), (1,), 0, {2, 3}),
        ((1, 2, 3), (), 0, {1, 2, 3}),
        ((5,), (), 1, set()),
        ((), (), 1, set()),
    ],
)
def test_the_best_and_the_newest_checkpoints_stay(add_run, home, url, steps, best, keep, gone):
    folder = add_run(steps=steps, best=best)
    outcome = clear(home, url, Retention(keep_checkpoints=keep))
    assert outcome.failed == ()
    assert {item.size_bytes for item in outcome.deleted} == {100 * step for step in gone}
    left = folder / "checkpoints"
    names = sorted(os.listdir(left)) if left.exists() else []
    assert names == [f"step-{step:08d}" for step in steps if step not in gone]


def test_a_deletion_is_recorded_and_a_rebuild_keeps_it(add_run, home, url):
    add_run(steps=(1, 2), best=(2,))
    clear(home, url)

    def list_removed():
        with Reader.open(url) as reader:
            files = reader.get_detail(RUN).artifacts
        return {file.step for file in files if "removed" in file.metadata}

    assert list_removed() == {1}
    rebuild(home, url)
    assert list_removed() == {1}
    assert check(home, url).faults == ()


def test_the_record_comes_before_the_deletion(add_run, home, url, monkeypatch):
    folder = add_run(steps=(1, 2))

    def refuse(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(retention.shutil, "rmtree", refuse)
    outcome = clear(home, url)
    assert [why for _, why in outcome.failed] == ["Input/output error"]
    assert b'"removed"' in (folder / "events.jsonl").read_bytes().splitlines()[-1]


def test_what_cannot_be_recorded_is_not_deleted(add_run, home, url, monkeypatch):
    folder = add_run(steps=(1, 2))
    items = find_items(home, url, KEPT)

    def refuse(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        outcome = delete(home, url, KEPT, items)
    assert outcome.deleted == ()
    assert "No space left" in outcome.failed[0][1]
    assert len(os.listdir(folder / "checkpoints")) == 2


def test_a_run_that_is_alive_is_left_alone(add_run, home, url):
    folder = add_run(steps=(1, 2), ended=False, created=time.time(), pid=os.getpid())
    lock = RunLock.acquire(folder)
    recover(home, url)
    (folder / "checkpoints" / ".draft-00000003").mkdir()
    assert find_items(home, url, Retention(older_than_s=0)) == []
    lock.release()


def test_a_run_that_is_locked_meanwhile_is_left_alone(add_run, home, url):
    folder = add_run(steps=(1, 2))
    items = find_items(home, url, KEPT)
    lock = RunLock.acquire(folder)  # a resume reads its checkpoint
    outcome = delete(home, url, KEPT, items)
    lock.release()
    assert outcome.deleted == ()
    assert [why for _, why in outcome.failed] == ["the run is at work again"]
    assert len(os.listdir(folder / "checkpoints")) == 2


def test_a_run_that_was_resumed_meanwhile_is_looked_at_again(add_run, home, url):
    folder = add_run(steps=(1, 2))
    items = find_items(home, url, KEPT)
    append_event(folder, RunResumed(time=time.time(), from_step=1, steps=9))
    outcome = delete(home, url, KEPT, items)
    assert outcome.deleted == ()
    assert [why for _, why in outcome.failed] == ["it is wanted again"]
    (folder / "checkpoints" / "step-00000002").rename(home / "elsewhere")
    append_event(folder, Removed(time=1.0, path="checkpoints/step-00000002"))
    recover(home, url)
    assert delete(home, url, KEPT, items).deleted == ()
    assert (folder / "checkpoints" / "step-00000001").exists()


def test_old_logs_go_where_the_registry_has_every_byte(add_run, home, url):
    told = Output(time=5.0, stream="stdout", text="all of it\n")
    cut = Output(time=5.0, stream="stderr", text="part of it\n", dropped_bytes=9)
    folder = add_run(events=(told, cut))
    other = add_run("bbbb0000", created=time.time(), events=(told,))
    for place in (folder, other):
        (place / "stdout.log").write_text("all of it\n")
        (place / "stderr.log").write_text("part of it\n")
    assert list_names(home, url) == [("log", "stdout.log")]
    clear(home, url)
    assert sorted(os.listdir(folder)) == ["events.jsonl", "lock", "stderr.log"]
    assert (other / "stdout.log").exists()
    with Reader.open(url) as reader:
        assert {out.text for out in reader.get_detail(RUN).output} == {told.text, cut.text}
    assert list_names(home, url, Retention(older_than_s=-1e6)) == [("log", "stdout.log")]


def test_old_traces_go_and_only_files_of_the_run(add_run, home, url, tmp_path):
    outside = tmp_path / "mine.json"
    outside.write_text("mine")
    paths = ("profiler/trace.json", "../../../mine.json", str(outside), "link.json", "gone.json")
    paths += ("events.jsonl",)  # the journal, announced as a trace
    traces = [Artifact(time=1.0, kind="trace", path=path) for path in paths]
    folder = add_run(events=traces)
    (folder / "profiler").mkdir()
    (folder / "profiler" / "trace.json").write_text("{}")
    (folder / "link.json").symlink_to(outside)
    assert list_names(home, url) == [("trace", "trace.json")]
    clear(home, url)
    assert outside.read_text() == "mine"
    assert not (folder / "profiler" / "trace.json").exists()


def test_old_dumps_go_recorded_and_nothing_beside_them(add_run, home, url, tmp_path):
    told = Artifact(time=1.0, kind="batch", path="dumps/step-00000004", step=4)
    lying = Artifact(time=1.0, kind="batch", path="checkpoints/step-00000003", step=3)
    folder = add_run(steps=(3,), events=(told, lying))
    young = add_run("bbbb0000", created=time.time(), events=(told,))
    for place in (folder, young):
        (place / "dumps" / "step-00000004").mkdir(parents=True)
        os.link(folder / "events.jsonl", place / "dumps" / "step-00000004" / "linked")
    (folder / "dumps" / "mine").mkdir()
    (folder / "dumps" / "step-00000005").symlink_to(tmp_path)
    assert list_names(home, url) == [("dump", "step-00000004")]
    clear(home, url)
    assert sorted(os.listdir(folder / "dumps")) == ["mine", "step-00000005"]
    assert (young / "dumps" / "step-00000004").is_dir()
    assert (folder / "checkpoints" / "step-00000003").is_dir()
    with Reader.open(url) as reader:
        files = reader.get_detail(RUN).artifacts
    assert [file.path for file in files if "removed" in file.metadata] == [told.path]


def test_a_dump_of_a_run_that_is_at_work_stays(add_run, home, url):
    folder = add_run(ended=False, created=time.time(), pid=os.getpid())
    (folder / "dumps" / "step-00000004").mkdir(parents=True)
    (folder / "dumps" / ".draft-00000005").mkdir()
    lock = RunLock.acquire(folder)
    recover(home, url)
    assert find_items(home, url, Retention(older_than_s=-1e6)) == []
    lock.release()
    recover(home, url)
    assert list_names(home, url, Retention(older_than_s=-1e6)) == [
        ("dump", "step-00000004"),
        ("leftover", ".draft-00000005"),
    ]


@pytest.mark.parametrize("place", ["run", "checkpoints", "step"])
def test_no_link_is_followed_out_of_the_home(add_run, home, url, tmp_path, place):
    folder = add_run(steps=(1, 2, 3))
    outside = tmp_path / "outside"
    found = {
        "run": folder,
        "checkpoints": folder / "checkpoints",
        "step": folder / "checkpoints" / "step-00000001",
    }[place]
    items = find_items(home, url, KEPT)
    found.rename(outside)
    found.symlink_to(outside)
    count = sum(len(files) for _, _, files in os.walk(outside))
    names = {item.path.name for item in find_items(home, url, KEPT)}
    assert names == ({"step-00000002"} if place == "step" else set())
    delete(home, url, KEPT, items)
    assert sum(len(files) for _, _, files in os.walk(outside)) == count


def test_runs_that_are_chosen_and_nothing_else(add_run, home, url):
    add_run(steps=(1, 2))
    add_run("bbbb0000", steps=(3, 4))
    (home / "registry.db.rebuild-1").touch()
    age(home / "registry.db.rebuild-1", 2 * DAY_S)
    assert list_names(home, url, run_ids=frozenset([RUN])) == [("checkpoint", "step-00000001")]


def test_leftovers_go_when_their_process_is_gone_or_they_are_old(add_run, home, url, dead_pid):
    folder = add_run(steps=(1,))
    alive = os.getppid()
    series, demo = home / "cache" / "series", home / "data" / "demo"
    gone = [
        series / f".csv-abc.{dead_pid}",
        demo / f".partial-{dead_pid}",
        home / f"registry.db.rebuild-{dead_pid}",
        home / f".partial-{dead_pid}-registry.db.backup-1",
        folder / "checkpoints" / ".draft-00000002",
        folder / "dumps" / ".draft-00000002",
    ]
    kept = [
        series / f".csv-abc.{alive}",
        series / "csv-abc",
        demo / f".partial-{alive}",
        demo / "v1-5",
        home / f"registry.db.rebuild-{alive}",
        home / "registry.db.broken-20260101T000000Z",
        home / "data" / "time300b" / f".partial-{dead_pid}",
    ]
    for path in (*gone, *kept):
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * 10)
    assert list_names(home, url) == sorted(("leftover", path.name) for path in gone)
    for path in kept:
        age(path, 2 * DAY_S)
    old = {kept[0].name, kept[2].name, kept[4].name}
    assert {name for _, name in list_names(home, url)} == {path.name for path in gone} | old
    clear(home, url)
    assert [path.name for path in kept if path.exists()] == [
        path.name for path in kept if path.name not in old or "time300b" in str(path)
    ]
    assert not any(path.exists() for path in gone)


def test_on_a_network_file_system_a_process_may_be_elsewhere(
    add_run, home, url, dead_pid, monkeypatch
):
    add_run()
    path = home / f"registry.db.rebuild-{dead_pid}"
    path.touch()
    monkeypatch.setattr(retention, "is_network_path", lambda path: True)
    assert list_names(home, url) == []
    age(path, 2 * DAY_S)
    assert list_names(home, url) == [("leftover", path.name)]


def test_the_newest_copies_of_migrations_stay(add_run, home, url):
    add_run()
    names = [f"registry.db.schema-000{n}-2026010{n}T000000Z" for n in range(1, 6)]
    for name in (*names, "registry.db.backup-20200101T000000Z", "registry.db.schema-mine"):
        (home / name).write_bytes(b"x")
    assert list_names(home, url) == [("backup", name) for name in names[:2]]


def test_a_run_of_another_host_is_left_alone_while_it_may_be_at_work(add_run, home, url):
    add_run(steps=(1, 2), host="elsewhere", created=time.time())
    assert find_items(home, url, KEPT) == []
    add_run("bbbb0000", steps=(1, 2), host="elsewhere", created=time.time() - 3600)
    assert list_names(home, url) == [("checkpoint", "step-00000001")]


def test_a_folder_without_a_journal_is_left_alone(add_run, home, url):
    folder = add_run(steps=(1, 2))
    (folder / "events.jsonl").rename(folder / "away")
    assert find_items(home, url, KEPT) == []


def test_what_has_vanished_meanwhile_is_no_fault(add_run, home, url):
    folder = add_run(steps=(1, 2))
    items = find_items(home, url, KEPT)
    place = folder / "checkpoints" / "step-00000001"
    place.rename(home / "away")
    outcome = delete(home, url, KEPT, items)
    assert [why for _, why in outcome.failed] == ["it is wanted again"]
    assert (home / "away" / "model.safetensors").exists()
