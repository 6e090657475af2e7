"""Appending and reading a journal: torn lines, full disks, damage."""

from __future__ import annotations

import errno
import os

import pytest

from registry.codec import MAX_LINE_BYTES
from registry.errors import StoreUnavailable
from registry.events import Heartbeat, Metrics
from registry.journal import JournalWriter, encode, iter_events
from registry.sinks import JournalSink


def metric(step):
    return Metrics(time=1.0, step=step, values={"a": float(step)})


def steps_of(path):
    return [event.step for event, _ in iter_events(path)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


@pytest.fixture
def disk(monkeypatch):
    """A disk with room for `room` more bytes; None is plenty."""

    class Disk:
        room = None

        def write(self, fd, data):
            if self.room is not None:
                data = data[: self.room]
                if not data:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.room -= len(data)
            return write(fd, data)

    made, write = Disk(), os.write
    monkeypatch.setattr("registry.journal_file.os.write", made.write)
    monkeypatch.setattr("registry.journal_file._RETRY_S", 0.0)
    return made


def append(writer, event):
    writer.append(event)
    return writer.file.end


def test_the_end_is_behind_the_last_line(path):
    writer = JournalWriter(path)
    ends = [append(writer, metric(step)) for step in range(3)]
    writer.close()
    assert ends == [end for _, end in iter_events(path)]
    assert ends[-1] == path.stat().st_size


def test_reading_from_an_offset(path):
    writer = JournalWriter(path)
    ends = [append(writer, metric(step)) for step in range(5)]
    assert [event.step for event, _ in iter_events(path, ends[2])] == [3, 4]
    assert list(iter_events(path, ends[4])) == []
    writer.append(metric(5))
    assert [event.step for event, _ in iter_events(path, ends[4])] == [5]
    writer.close()


def test_a_torn_last_line_is_left_and_then_closed_off(path):
    path.write_bytes(encode(metric(1)) + encode(metric(2))[:-9])
    assert steps_of(path) == [1]
    writer = JournalWriter(path)
    writer.append(metric(3))
    writer.close()
    bad = []
    assert [event.step for event, _ in iter_events(path, on_bad=bad.append)] == [1, 3]
    assert [line.number for line in bad] == [2]


def test_a_last_line_that_lacks_only_its_newline_is_saved(path):
    path.write_bytes(encode(metric(1)) + encode(metric(2))[:-1])
    writer = JournalWriter(path)
    writer.append(metric(3))
    writer.close()
    assert steps_of(path) == [1, 2, 3]


def test_opening_ends_a_torn_line_and_changes_nothing_else(path):
    path.write_bytes(b'{"torn')
    for _ in range(3):
        JournalWriter(path).close()
    assert path.read_bytes() == b'{"torn\n'


def test_damage_is_passed_over(path):
    overlong = b"x" * (MAX_LINE_BYTES + 5)
    lines = [encode(metric(1)), b"\xff\x00\n", b"\n", overlong + b"\n", encode(metric(2))]
    path.write_bytes(b"".join(lines))
    bad = []
    found = list(iter_events(path, on_bad=bad.append))
    assert [event.step for event, _ in found] == [1, 2]
    assert found[-1][1] == path.stat().st_size
    assert [line.number for line in bad] == [2, 3, 4]
    assert "longer" in bad[-1].reason


def test_a_full_disk_before_the_first_event_raises(path, disk):
    disk.room = 0
    with pytest.raises(StoreUnavailable, match="No space"):
        JournalWriter(path).append(metric(1))
    disk.room = 10
    with pytest.raises(StoreUnavailable, match="No space"):
        JournalWriter(path).append(metric(1))
    assert path.read_bytes() == b""


def test_dev_full(path):
    path.symlink_to("/dev/full")
    with pytest.raises(StoreUnavailable, match="No space"):
        JournalWriter(path).append(metric(1))


def test_a_full_disk_later_loses_nothing_once_there_is_room(path, disk):
    writer = JournalWriter(path)
    writer.append(metric(0))
    disk.room = len(encode(metric(1))) + 20  # line 2 is cut in the middle
    for step in range(1, 50):
        writer.append(metric(step))
    assert "No space" in writer.file.fault
    assert steps_of(path) == [0, 1]
    disk.room = 100
    writer.append(metric(50))
    disk.room = None
    writer.append(metric(51))
    assert steps_of(path) == list(range(52))
    assert (writer.lost, writer.file.fault) == (0, "")
    writer.close()


@pytest.mark.parametrize("room", range(0, 130, 7))
def test_any_cut_heals(path, disk, room):
    writer = JournalWriter(path)
    writer.append(metric(0))
    disk.room = room
    for step in range(1, 5):
        writer.append(metric(step))
    disk.room = None
    writer.close()
    assert steps_of(path) == list(range(5))
    assert writer.lost == 0


def test_memory_is_bounded_and_what_is_dropped_is_counted(path, disk, monkeypatch):
    line = len(encode(metric(100)))
    monkeypatch.setattr("registry.writer._BACKLOG_MAX_BYTES", 10 * line)
    writer = JournalWriter(path)
    writer.append(metric(0))
    disk.room = 5  # the first of them is cut
    for step in range(100, 150):
        writer.append(metric(step))
    disk.room = None
    assert writer.drain()
    assert steps_of(path) == [0, *range(140, 150)]
    assert writer.lost == 40
    writer.close()


def test_what_a_full_disk_never_took_is_lost_at_close(path, disk):
    writer = JournalWriter(path)
    writer.append(metric(0))
    disk.room = 0
    for step in range(1, 4):
        writer.append(metric(step))
    writer.close()
    assert writer.lost == 3
    with pytest.raises(ValueError, match="closed"):
        writer.append(Heartbeat(time=1.0))


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="file"):
        JournalSink(tmp_path / "file" / "run")
    with pytest.raises(StoreUnavailable, match="journal"):
        JournalWriter(tmp_path / "absent" / "events.jsonl")
