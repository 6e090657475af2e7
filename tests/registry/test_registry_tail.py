"""The mapped tail of a journal: what waits there is as safe as what is in the journal."""

from __future__ import annotations

import decimal
import errno
import math
import os
import signal
import sys

import pytest

from registry import tail as tail_module
from registry import writer as writer_module
from registry.events import Edited, Heartbeat, Metrics, RunStarted
from registry.journal import JournalWriter, encode, iter_events, read_events
from registry.queries import Reader
from registry.recover import recover
from registry.tail import BASE, SIZE, TAIL_NAME, Tail, complete, has_waiting

RUN = "aaaa0000"
STARTED = RunStarted(time=1.0, run_id=RUN, name="x", steps=9)


def metric(step):
    return Metrics(time=1.0, step=step, values={"a": float(step), "b": 0.1 * step})


def steps_of(path):
    return [event.step for event, _ in iter_events(path) if isinstance(event, Metrics)]


@pytest.fixture
def path(home):
    folder = home / "runs" / RUN
    folder.mkdir(parents=True)
    return folder / "events.jsonl"


@pytest.fixture(autouse=True)
def safe(monkeypatch, tmp_path):
    """Take the disk of the tests for one that may be mapped, whatever it is."""
    device = os.stat(tmp_path).st_dev
    found = {(os.major(device), os.minor(device)): "ext4"}
    monkeypatch.setattr(tail_module, "_list_mounts", lambda: found)


@pytest.fixture
def writer(path):
    made = JournalWriter(path, mapped=True)
    made.append(STARTED)
    yield made
    made.close()


@pytest.fixture
def leave_behind(path):
    """Return a function that leaves a tail as a killed process does."""

    def leave(*events):
        made = JournalWriter(path, mapped=True)
        made.append(STARTED)
        for event in events:
            made.append(event)
        made._let_go().abandon()
        made.file.close()

    return leave


def test_metrics_wait_until_they_are_drained(writer, path):
    for step in range(5):
        writer.append(metric(step))
    assert len(list(iter_events(path))) == 1
    assert has_waiting(path)
    assert [event.step for event in read_events(path)[1:]] == list(range(5))
    assert writer.drain()
    assert steps_of(path) == list(range(5))
    assert not has_waiting(path)
    assert [event.step for event in read_events(path)[1:]] == list(range(5))


def test_any_other_event_comes_behind_what_waits(writer, path):
    expected = [STARTED]
    for step in range(5):
        for event in (metric(step), Heartbeat(time=2.0, step=step)):
            writer.append(event)
            expected.append(event)
    assert [event for event, _ in iter_events(path)] == expected


def test_close_leaves_no_tail(writer, path):
    writer.append(metric(1))
    assert (path.parent / TAIL_NAME).stat().st_size == SIZE
    writer.close()
    assert steps_of(path) == [1]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["events.jsonl"]


def test_a_full_tail_is_drained_by_the_caller(writer, path):
    for step in range(10_000):
        writer.append(metric(step))
    assert len(steps_of(path)) > 5000
    assert writer.drain()
    assert steps_of(path) == list(range(10_000))


def test_a_line_longer_than_the_tail(writer, path):
    writer.append(metric(1))
    values = {f"key/{number}" + "x" * 90: float(number) for number in range(10_000)}
    writer.append(Metrics(time=1.0, step=2, values=values))
    writer.append(metric(3))
    writer.close()
    assert steps_of(path) == [1, 2, 3]
    assert [event for event, _ in iter_events(path)][2].values == values


ODD = (
    {"nan": math.nan, "inf": math.inf, "low": -math.inf, "tiny": 5e-324},
    {"flag": True, "count": 3, "none": None, "text": "x", "number": "1.5"},
    {"decimal": decimal.Decimal("1.5"), "bytes": b"2", "list": [1.0], "big": 10**400},
    {"\ud800": 1.0, "\x1b[31m": 2.0, "": 3.0},
    {1: 2.0, (1, 2): 3.0},
    {},
)


@pytest.mark.parametrize("values", ODD, ids=range(len(ODD)))
def test_odd_values_are_what_they_are_without_a_tail(writer, path, values):
    event = Metrics(time=1.0, step=1, values=values)
    writer.append(metric(0))  # from here on there is a tail
    writer.append(event)
    writer.append(Metrics(time=1.0, step=2**70, values={"a": 1.0}))
    writer.close()
    text = path.read_bytes().splitlines(keepends=True)
    assert text[2] == encode(event)
    assert writer.lost == 0


def test_what_can_be_no_line_is_lost_not_raised(writer, path):
    writer.append(metric(0))
    writer.append(Metrics(time=1.0, step=1, values=[1.0]))
    writer.append(metric(2))
    writer.close()
    assert steps_of(path) == [0, 2]
    assert writer.lost == 1


def test_the_next_who_opens_the_journal_completes_it(leave_behind, path):
    leave_behind(*map(metric, range(5)))
    assert steps_of(path) == []
    writer = JournalWriter(path)
    writer.append(Edited(time=2.0, name="y"))
    writer.close()
    assert steps_of(path) == list(range(5))
    assert isinstance([event for event, _ in iter_events(path)][-1], Edited)
    assert not (path.parent / TAIL_NAME).exists()


def test_a_resume_goes_on_behind_what_was_left(leave_behind, path):
    leave_behind(*map(metric, range(5)))
    leave_behind(*map(metric, range(5, 9)))
    assert [event.step for event in read_events(path) if isinstance(event, Metrics)] == (
        list(range(9))
    )


def test_a_live_tail_is_left_alone(writer, path, home, url, start_python):
    for step in range(3):
        writer.append(metric(step))
    script = """
import sys
from pathlib import Path
from registry.events import Edited
from registry.journal import JournalWriter
from registry.recover import recover
other = JournalWriter(Path(sys.argv[1]), mapped=True)
other.append(Edited(time=2.0, name="y"))
other.close()
recover(Path(sys.argv[2]), sys.argv[3])
"""
    other = start_python(script, path, home, url)
    assert other.wait() == 0
    assert steps_of(path) == []
    writer.append(metric(3))
    writer.close()
    assert steps_of(path) == [0, 1, 2, 3]
    assert sum(isinstance(event, Edited) for event, _ in iter_events(path)) == 1


def test_a_dead_run_that_had_ended_has_news(leave_behind, path, home, url):
    leave_behind(metric(1), metric(2))
    recover(home, url)
    with Reader.open(url) as reader:
        assert list(reader.get_series(RUN, "a").steps) == [1, 2]


KILLED = """
import os, signal, sys
from pathlib import Path
from registry import tail
from registry.events import Edited, Metrics, RunStarted
from registry.journal import JournalWriter
path, cut, lines = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
tail._find_kind = lambda folder: "ext4"
writer = JournalWriter(path, mapped=True)
writer.append(RunStarted(time=1.0, run_id=path.parent.name, name="x"))
for step in range(lines):
    writer.append(Metrics(time=1.0, step=step // 2, values={"a": 1.0}))  # each line twice
write, end = os.write, writer.file.end
def write_some(fd, data):
    # Another process appends a line of its own between the mark of the move and the move.
    other = JournalWriter(path)
    with_room = write
    os.write = with_room
    other.append(Edited(time=2.0, name="y"))
    other.close()
    if cut:
        write(fd, data[:cut])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = write_some
writer.drain()
"""


@pytest.fixture
def line():
    return len(encode(Metrics(time=1.0, step=0, values={"a": 1.0})))


@pytest.mark.parametrize(
    "cut", [(0, 0), (0, 1), (1, -1), (1, 0), (3, -1), (3, 7), (6, -1), (6, 0), (99, 0)]
)
def test_a_kill_in_the_middle_of_a_drain(path, home, url, start_python, line, cut):
    lines, more_bytes = cut
    child = start_python(KILLED, path, lines * line + more_bytes, 6)
    assert child.wait() == -signal.SIGKILL
    assert [event.step for event in read_events(path) if isinstance(event, Metrics)] == (
        [0, 0, 1, 1, 2, 2]
    )
    recover(home, url)
    assert steps_of(path) == [0, 0, 1, 1, 2, 2]
    assert sum(isinstance(event, Edited) for event, _ in iter_events(path)) == 1
    assert not (path.parent / TAIL_NAME).exists()


KILLED_AGAIN = """
import os, signal, sys
from pathlib import Path
from registry.tail import complete
write, cut = os.write, int(sys.argv[2])
def write_some(fd, data):
    write(fd, data[:cut])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = write_some
complete(Path(sys.argv[1]))
"""


def test_kills_in_the_middle_of_completing(path, start_python, line):
    assert start_python(KILLED, path, line + 5, 6).wait() == -signal.SIGKILL
    for _ in range(3):
        assert start_python(KILLED_AGAIN, path, line + 20).wait() == -signal.SIGKILL
    assert complete(path)
    assert steps_of(path) == [0, 0, 1, 1, 2, 2]


def test_an_exception_from_a_signal_handler_in_the_middle_of_a_drain(writer, path, monkeypatch):
    for step in range(5):
        writer.append(metric(step))
    write = os.write

    def interrupted(fd, data):
        write(fd, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.drain()
    writer.append(metric(5))
    writer.close()
    assert steps_of(path) == list(range(6))


def test_a_full_disk_takes_the_tail_in_pieces(writer, path, monkeypatch):
    monkeypatch.setattr("registry.journal_file._RETRY_S", 0.0)
    for step in range(5):
        writer.append(metric(step))
    write = os.write
    for room in (20, 100, 1, 0, 90):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data, room=room: write(fd, data[:room]))
            assert not writer.drain()
            assert "No space" in writer.file.fault
        writer.append(metric(5 + room))
    assert writer.drain()
    assert steps_of(path) == [0, 1, 2, 3, 4, 25, 105, 6, 5, 95]
    assert (writer.lost, writer.file.fault) == (0, "")


def test_a_journal_that_cannot_be_read_after_a_cut(writer, path, monkeypatch):
    monkeypatch.setattr("registry.journal_file._RETRY_S", 0.0)
    for step in range(5):
        writer.append(metric(step))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
        assert not writer.drain()

    def refuse(fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", refuse)
        writer.append(Heartbeat(time=1.0))
        assert "Too many open files" in writer.file.fault
    writer.append(metric(5))
    writer.close()
    assert steps_of(path) == list(range(6))
    assert writer.lost == 0


def test_a_full_disk_and_a_full_tail(writer, path, monkeypatch):
    monkeypatch.setattr("registry.journal_file._RETRY_S", 0.0)
    monkeypatch.setattr(writer_module, "SIZE", 4096)
    monkeypatch.setattr(tail_module, "SIZE", 4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: 0)
        for step in range(200):
            writer.append(metric(step))
            if step % 50 == 0:
                writer.append(Heartbeat(time=1.0, step=step))
    writer.append(metric(200))
    assert writer.drain()
    assert steps_of(path) == list(range(201))
    assert writer.lost == 0


def test_a_full_disk_at_close_leaves_the_tail_for_the_next(writer, path, monkeypatch):
    for step in range(5):
        writer.append(metric(step))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: 0)
        writer.close()
        assert not complete(path)
    assert writer.lost == 0
    assert has_waiting(path)
    assert complete(path)
    assert steps_of(path) == list(range(5))


def test_no_room_for_a_tail(path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: len(data) // 2)
    writer = JournalWriter(path, mapped=True)
    writer.append(STARTED)
    writer.append(metric(1))
    assert steps_of(path) == [1]
    assert not (path.parent / TAIL_NAME).exists()
    writer.close()


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "nfs4", "fuse.sshfs", "9p", ""])
def test_only_safe_file_systems_are_mapped(path, monkeypatch, kind):
    device = os.stat(path.parent).st_dev
    found = {(os.major(device), os.minor(device)): kind} if kind else {}
    monkeypatch.setattr(tail_module, "_list_mounts", lambda: found)
    writer = JournalWriter(path, mapped=True)
    writer.append(STARTED)
    writer.append(metric(1))
    assert steps_of(path) == [1]
    assert not (path.parent / TAIL_NAME).exists()
    writer.close()


@pytest.mark.parametrize("flags", [0x80000, 0x80010, 0x10, 0, None])
def test_an_overlay_is_mapped_where_ext4_is_below(path, monkeypatch, flags):
    def ioctl(fd, request, data):
        if flags is None:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return flags.to_bytes(8, sys.byteorder)

    monkeypatch.setattr(tail_module, "_find_kind", lambda folder: "overlay")
    monkeypatch.setattr(tail_module.fcntl, "ioctl", ioctl)
    writer = JournalWriter(path, mapped=True)
    writer.append(STARTED)
    writer.append(metric(1))
    is_mapped = flags is not None and bool(flags & 0x80000)
    assert steps_of(path) == ([] if is_mapped else [1])
    assert (path.parent / TAIL_NAME).exists() == is_mapped
    writer.close()
    assert steps_of(path) == [1]


def test_mounts_are_read(tmp_path, monkeypatch):
    monkeypatch.undo()
    found = tail_module._list_mounts()
    if found:  # Linux
        assert all(isinstance(kind, str) for kind in found.values())
        assert "proc" in found.values()


DAMAGED = (
    b"",
    b"short",
    b"\x5a" * SIZE,
    bytes(SIZE),
    b"tsxtail1" + (2**63).to_bytes(8, "little") + bytes(SIZE - 16),
    b"tsxtail1" + (BASE - 8).to_bytes(8, "little") + bytes(SIZE - 16),
    b"tsxtail1" + SIZE.to_bytes(8, "little") + bytes(SIZE - 16),
    b"tsxtail1" + SIZE.to_bytes(8, "little") + b"\xff" * (SIZE - 16),
    b"tsxtail1" + (BASE + 64).to_bytes(8, "little") + bytes(48) + b"\x20" + bytes(7) + b"\x91" * 64,
    b"tsxtail1" + (BASE + 32).to_bytes(8, "little") + b"\xff" * 8,
)


@pytest.mark.parametrize("number", range(len(DAMAGED)))
def test_a_damaged_tail_harms_nothing(path, number):
    path.write_bytes(encode(STARTED))
    (path.parent / TAIL_NAME).write_bytes(DAMAGED[number])
    has_waiting(path)
    assert read_events(path) == [STARTED]
    writer = JournalWriter(path, mapped=True)
    writer.append(Heartbeat(time=2.0))
    for step in range(3):
        writer.append(metric(step))
    writer.close()
    assert steps_of(path) == [0, 1, 2]
    assert len(path.read_bytes()) < 2000


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_something_else_of_that_name(path, tmp_path, kind):
    place = path.parent / TAIL_NAME
    target = tmp_path / "mine"
    target.write_bytes(b"tsxtail1 is mine")
    if kind == "folder":
        place.mkdir()
    elif kind == "link":
        place.symlink_to(target)
    else:
        os.mkfifo(place)
    path.write_bytes(encode(STARTED))
    assert read_events(path) == [STARTED]
    writer = JournalWriter(path, mapped=True)
    writer.append(Heartbeat(time=2.0))
    writer.append(metric(1))
    writer.close()
    assert steps_of(path) == [1]
    assert target.read_bytes() == b"tsxtail1 is mine"


def test_two_tails_of_one_journal(writer, path):
    writer.append(metric(1))
    assert Tail.open(path) is None
    second = JournalWriter(path, mapped=True)
    second.append(metric(2))
    second.append(metric(3))
    second.close()
    writer.close()
    assert sorted(steps_of(path)) == [1, 2, 3]


def test_a_deleted_journal_is_counted(writer, path):
    writer.append(metric(1))
    assert writer.drain()
    path.unlink()
    for step in range(2, 5):
        writer.append(metric(step))
    writer.append(Heartbeat(time=1.0))
    assert writer.file.is_gone
    assert writer.lost == 4
    assert "deleted" in writer.file.fault
    writer.close()
    assert writer.lost == 4


HAMMERED = """
import itertools, signal, sys, time
from pathlib import Path
from registry import tail, writer
from registry.events import Finding, Metrics, RunStarted, Severity
from registry.journal import JournalWriter
tail._find_kind = lambda folder: "ext4"
tail.SIZE = writer.SIZE = 8192
path = Path(sys.argv[1])
journal = JournalWriter(path, mapped=True)
journal.append(RunStarted(time=1.0, run_id=path.parent.name, name="x"))
handled = itertools.count()
def handle(number, frame):  # may itself be interrupted
    journal.append(Metrics(time=1.0, step=next(handled), values={"handler": 1.0}))
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
steps = 0
until = time.monotonic() + 1.0
while time.monotonic() < until:
    journal.append(Metrics(time=1.0, step=steps, values={"main": 1.0}))
    steps += 1
signal.setitimer(signal.ITIMER_REAL, 0)
journal.close()
print(steps, next(handled), journal.lost, flush=True)
"""


def test_signal_handlers_in_the_middle_of_an_append(path, start_python):
    child = start_python(HAMMERED, path)
    steps, handled, lost = map(int, child.stdout.read().split())
    assert lost == 0
    assert handled > 50
    found = {"main": [], "handler": []}
    for event, _ in iter_events(path):
        if isinstance(event, Metrics):
            found[next(iter(event.values))].append(event.step)
    assert found["main"] == list(range(steps))
    assert sorted(found["handler"]) == list(range(handled))


def test_a_signal_handler_that_closes_in_the_middle(writer, path, monkeypatch):
    writer.append(metric(1))
    monkeypatch.setattr(writer, "_busy", True)  # as if it came in the middle of an append
    assert not writer.close()
    monkeypatch.setattr(writer, "_busy", False)
    with pytest.raises(ValueError, match="closed"):
        writer.append(metric(2))
    assert writer.close()
    assert steps_of(path) == [1]
