"""The tail of a live journal: a small mapped file that takes a log call without a system call.

With cold caches a `write` is more than half of a log call. So metrics are packed into the mapped
file `tail` beside the journal, where the kernel has them at once, and are moved into the journal,
as lines of JSON, about once a second. A kill at any moment, in the middle of a move too, loses
nothing and doubles nothing: `complete` finds out what had been moved and moves the rest.

One process at a time owns a tail: it holds an OS lock on the file, which goes with the process.

Mapped memory is a fault of the whole process (SIGBUS) where the kernel cannot back it. So all
blocks are allocated first, and only these file systems are mapped: ext2, ext3 and ext4 (without
data=journal), tmpfs, and overlay (a container's disk) where the file has ext4's flag. Not xfs and
btrfs, where a copied file shares its blocks and a store may then need room on a full disk; never
network file systems, fuse, 9p and zfs. Nobody may shorten the file while the run lives.

Layout: words of 64 bits, then records. Word 1 is the end of the last whole record, word 2 is 0 or,
while a move is under way, one more than the journal's size before it; word 3 counts moves. A
record is its length in 8 bytes, then metrics in MessagePack or a line of JSON, padded to 8 bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from registry.codec import LineError, encode
from registry.errors import StoreUnavailable
from registry.events import Metrics
from registry.journal_file import JournalFile

TAIL_NAME = "tail"
SIZE = 512 * 1024  # about 2500 lines of eight values
BASE = 64  # where records begin
RECORD_BYTES = 8  # of a record's length
END, BEFORE, MOVES = 1, 2, 3  # words of the header

_MAGIC = int.from_bytes(b"tsxtail1", sys.byteorder)
_PAGE = 4096
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS of 64-bit x86 and ARM; elsewhere it is refused
_EXTENTS = 0x80000  # FS_EXTENT_FL: ext4 alone sets it
_FAR = 2**48  # no journal is longer
NO_WORDS = memoryview(bytes(BASE)).cast("Q")  # of no tail: there is no room
_SAFE = {"ext2", "ext3", "ext4", "tmpfs"}

pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Metrics).decode


class Tail:
    """A mapped tail that this process owns. Its journal's writer holds a lock around it.

    `view` and `words` are the same memory; a record is there once `words[END]` is behind it.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd  # bears the lock; the map keeps another, so that a forked child can let go
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(again, SIZE)
        finally:
            os.close(again)
        self.view = memoryview(self._memory)
        self.words = self.view.cast("Q")
        self.view[BASE::_PAGE] = bytes(len(range(BASE, SIZE, _PAGE)))  # no page fault later
        self.words[END] = BASE
        self.words[0] = _MAGIC

    @classmethod
    def open(cls, journal: Path) -> Tail | None:
        """Make the tail of a journal; None where it cannot be mapped safely or another owns it."""
        path = journal.with_name(TAIL_NAME)
        with contextlib.suppress(OSError, ValueError, StoreUnavailable):
            kind = _find_kind(path.parent)
            if kind not in _SAFE and kind != "overlay":
                return None
            fd = _open_locked(path, os.O_CREAT)
            try:
                if not _complete(fd, journal):
                    os.close(fd)
                    return None
                if os.pwrite(fd, bytes(SIZE), 0) < SIZE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if kind == "overlay" and not _is_on_ext4(fd):
                    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
                return cls(path, fd)
            except BaseException:
                path.unlink()
                os.close(fd)
                raise
        return None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self.words[END] == BASE

    def put(self, record: bytes) -> bool:
        """Add a record; return whether there was room."""
        start = self.words[END]
        end = start + RECORD_BYTES + len(record)
        if end > SIZE:
            return False
        self.words[start >> 3] = len(record)
        self.view[start + RECORD_BYTES : end] = record
        self.words[END] = end + 7 & ~7  # from here on it is there
        return True

    def move(self, file: JournalFile) -> bool:
        """Move the records into the journal; return whether all of them are there.

        Where a full disk or an exception out of a signal handler has cut a move short, the next one
        finds out how far it came.
        """
        lines = _list_lines(self.view, self.words[END])
        unreadable = lines.count(b"")
        if before := self.words[BEFORE]:
            lines = lines[count_moved(lines, file.iter_lines(before - 1)) :]
        else:
            self.words[BEFORE] = file.end + 1
        if file.write(b"".join(lines)):
            return False
        file.lost += unreadable
        self.words[MOVES] += 1
        self.words[END] = BASE
        self.words[BEFORE] = 0
        return True

    def close(self) -> None:
        """Let go of the memory; delete the file if nothing waits in it."""
        if self.is_empty:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the memory and nothing else: in a forked child the file is the parent's."""
        with contextlib.suppress(BufferError):  # a thread that is no more was using it
            self.words.release()
            self.view.release()
            self._memory.close()
        with contextlib.suppress(OSError):  # the program has closed what it did not open
            os.close(self._fd)


def complete(journal: Path) -> bool:
    """Move what a dead process left in the tail into its journal; return whether it is all there.

    False also where the owner lives, or the disk refuses: then the tail stays as it is.
    """
    path = journal.with_name(TAIL_NAME)
    try:
        fd = _open_locked(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        if _complete(fd, journal):
            path.unlink()
            return True
    except (OSError, StoreUnavailable):
        pass
    finally:
        os.close(fd)
    return False


def has_waiting(journal: Path) -> bool:
    """Tell whether the tail of a journal holds anything."""
    words = _read_words(_read(journal, BASE))
    return bool(words) and words[END] > BASE


def read_waiting(journal: Path) -> tuple[tuple[int, ...], list[bytes]]:
    """Return a mark of the tail's state and the lines that are not in the journal yet.

    They belong to a journal that was read before and after while the mark was the same.
    """
    data = _read(journal, SIZE)
    words = _read_words(data)
    if not words:
        return (), []
    lines = _list_lines(data, words[END])
    if words[BEFORE]:
        with contextlib.suppress(OSError), journal.open("rb") as file:
            file.seek(words[BEFORE] - 1)
            # A last line that lacks its newline is not read there yet.
            whole = (line for line in file if line.endswith(b"\n"))
            lines = lines[count_moved(lines, whole) :]
    return (words[MOVES], words[BEFORE]), lines


def _open_locked(path: Path, flags: int = 0) -> int:
    """Open a tail and take its lock, which says that this process owns it.

    Raises:
        OSError: BlockingIOError while another process owns it; it cannot be opened.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner deleted it just before: there may be another by now


def _complete(fd: int, journal: Path) -> bool:
    """Move what is left in a tail into its journal; return whether it is all there."""
    data = os.pread(fd, SIZE, 0)
    words = _read_words(data)
    if not words or words[END] == BASE:
        return True
    lines = _list_lines(data, words[END])
    file = JournalFile(journal)
    try:
        if words[BEFORE]:
            lines = lines[count_moved(lines, file.iter_lines(words[BEFORE] - 1)) :]
        else:
            os.pwrite(fd, (file.end + 1).to_bytes(8, sys.byteorder), 8 * BEFORE)
        if file.write(b"".join(lines)) or file.is_gone:
            return False
    finally:
        file.close()
    os.pwrite(fd, BASE.to_bytes(8, sys.byteorder), 8 * END)
    return True


def count_moved(lines: Sequence[bytes], found: Iterable[bytes]) -> int:
    """Return how many of the lines are among those found in the journal since the move began.

    They were written in order; lines of other processes may stand between them. The last one may
    lack its newline, which whoever writes next puts there.
    """
    moved = 0
    for line in found:
        while moved < len(lines) and not lines[moved]:
            moved += 1
        if moved == len(lines):
            break
        moved += line in (lines[moved], lines[moved][:-1])
    return moved


def _read(journal: Path, size: int) -> bytes:
    """Return the first bytes of a journal's tail; nothing where there is none."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(journal.with_name(TAIL_NAME), flags)
    except OSError:
        return b""
    try:
        return os.read(fd, size)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _read_words(data: bytes) -> tuple[int, ...]:
    """Return the words of a header; nothing where it is none."""
    if len(data) < BASE:
        return ()
    words = tuple(memoryview(data)[:BASE].cast("Q"))
    is_whole = words[0] == _MAGIC and BASE <= words[END] <= SIZE and words[BEFORE] <= _FAR
    return words if is_whole else ()


def _list_lines(data: bytes | memoryview, end: int) -> list[bytes]:
    """Return the records up to `end` as lines; empty bytes for one that cannot be a line."""
    lines = []
    start = BASE
    while start + RECORD_BYTES <= end:
        size = int.from_bytes(data[start : start + RECORD_BYTES], sys.byteorder)
        start += RECORD_BYTES
        lines.append(_to_line(bytes(data[start : min(start + size, end)])))
        start += size + 7 & ~7
    return lines


def _to_line(record: bytes) -> bytes:
    """Return a record as a line, with its newline; the same bytes whenever it is asked."""
    if record[:1] == b"{":
        return record
    try:
        try:
            event = _unpack(record)
        except msgspec.ValidationError:  # a value that is no float: encode makes one of it
            plain = msgspec.msgpack.decode(record)
            plain.pop("type")
            event = Metrics(**plain)
        return encode(event)
    except (LineError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return b""


def _find_kind(folder: Path) -> str:
    """Return the type of a folder's file system, nothing where it is unknown or never safe."""
    device = os.stat(folder).st_dev
    return _list_mounts().get((os.major(device), os.minor(device)), "")


def _is_on_ext4(fd: int) -> bool:
    """Tell whether a file is mapped by extents as ext4 does it; overlay passes the question on."""
    flags = fcntl.ioctl(fd, _GET_FLAGS, bytes(8))
    return bool(int.from_bytes(flags, sys.byteorder) & _EXTENTS)


def _list_mounts() -> dict[tuple[int, int], str]:
    """Return the type of every mounted file system by its device number (Linux)."""
    found = {}
    with contextlib.suppress(OSError), Path("/proc/self/mountinfo").open() as file:
        for line in file:
            # "36 35 98:0 /root /mount rw,noatime [optional]... - ext4 /dev/vda rw,data=journal"
            left, _, right = line.partition(" - ")
            major, _, minor = left.split(" ", 3)[2].partition(":")
            kind, _, options = right.partition(" ")
            safe = "data=journal" not in options
            found[int(major), int(minor)] = kind if safe else ""
    return found
