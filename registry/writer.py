"""Append events to a run's journal: the path that a log call takes.

Metrics are packed into the mapped tail where there is one (see registry.tail), which costs no
system call; every other event is written at once, behind what waits there. Owns the order of
lines, what waits for room on a full disk, and who may be in the middle of it: other threads wait,
a signal handler goes past, a forked child leaves it to its parent.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from pathlib import Path

from registry.codec import LineError, encode
from registry.events import Event, Histogram, Metrics
from registry.journal_file import JournalFile
from registry.tail import END, NO_WORDS, RECORD_BYTES, SIZE, Tail, complete, pack

_BACKLOG_MAX_BYTES = 16 * 1024 * 1024  # about 50,000 metric lines wait for a full disk


class Backlog:
    """Lines that wait in memory for room on the disk, oldest first; too many drop the oldest."""

    def __init__(self) -> None:
        self.dropped = 0
        self._lines: deque[bytes] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: bytes) -> None:
        """Add a line."""
        self._lines.append(line)
        self._bytes += len(line)
        while self._bytes > _BACKLOG_MAX_BYTES:
            self._bytes -= len(self._lines.popleft())
            self.dropped += 1

    def drop(self) -> None:
        """Give up all that wait."""
        self.dropped += len(self._lines)
        self._lines.clear()
        self._bytes = 0

    def write(self, file: JournalFile) -> bool:
        """Write the lines until the disk refuses one; return whether none is left."""
        while self._lines and not file.write(self._lines[0]):
            self._bytes -= len(self._lines.popleft())
        return not self._lines


class JournalWriter:
    """Appends events to a journal. Safe from threads, signal handlers and forked children.

    The first append must succeed or raise; from then on none raises. Lines that a full disk
    refuses wait in memory, up to 16 MiB, and are written when there is room; beyond that the oldest
    are dropped and counted in `lost`. A line that a signal handler appends in the middle of another
    append is written at once, before what waits in the tail.

    Args:
        path: the journal.
        mapped: metrics and histograms may wait in a mapped tail, as safe from a kill as in the
            journal, until the next `drain` or the next event of another kind.

    Raises:
        StoreUnavailable: the journal cannot be opened, or its first line cannot be written.
    """

    def __init__(self, path: Path, *, mapped: bool = False) -> None:
        self.path = path
        self._refused = 0  # events that can be no line
        self._lock = threading.RLock()
        self._busy = False  # somebody is in the middle of it: a signal handler goes past
        self._closed = False
        self._accepted = False
        self._mapped = mapped  # a tail is still to be made
        self._tail: Tail | None = None
        self._view, self._words = memoryview(b""), NO_WORDS  # of the tail
        self._room = 0  # where its records must end; 0 while metrics may not wait there
        self._backlog = Backlog()  # what comes after the tail's records
        complete(path)
        self.file = JournalFile(path)
        _writers.add(self)

    @property
    def lost(self) -> int:
        """Events that are in no journal."""
        return self._refused + self._backlog.dropped + self.file.lost

    def append(self, event: Event) -> None:
        """Record one event: it survives a kill of this process once this returns.

        Raises:
            StoreUnavailable: nothing was accepted yet and this cannot be written either.
            ValueError: the journal is closed.
        """
        if self._room and type(event) is Metrics:
            try:
                record = pack(event)
            except (TypeError, ValueError, OverflowError, RecursionError):
                pass  # a numpy scalar, a tensor, an integer beyond 64 bits: `encode` knows
            else:
                size = len(record)
                with self._lock:
                    if not self._busy:
                        self._busy = True
                        try:  # Tail.put, without the cost of calling it
                            words = self._words
                            start = words[END]
                            end = start + RECORD_BYTES + size
                            if end <= self._room:
                                words[start >> 3] = size
                                self._view[start + RECORD_BYTES : end] = record
                                words[END] = end + 7 & ~7
                                return
                        finally:
                            self._busy = False
        self._append_line(event)

    def drain(self) -> bool:
        """Write what is waiting, in the tail or for room on the disk; return whether none is."""
        with self._lock:
            if self._busy or self._closed:
                return False
            self._busy = True
            try:
                self.file.ask_again()
                return self._flush()
            finally:
                self._busy = False

    def close(self) -> bool:
        """Write what is waiting, if there is room now, and close; what is left over is lost.

        Lines that stay in the tail are not lost: whoever opens the journal next writes them.

        Returns:
            False when a signal handler calls this in the middle of an append: nobody can append
            any more, and the next call closes.
        """
        with self._lock:
            self._closed = True
            self._room = 0
            if self._busy:
                return False
            if self.file.is_closed:
                return True
            self.file.ask_again()
            self._flush()
            self._backlog.drop()
            tail = self._let_go()
            if tail is not None:
                tail.close()
            self.file.close()
        return True

    def leave_parent(self) -> None:
        """In a forked child: write lines of its own from now on, and touch nothing else."""
        self._lock = threading.RLock()
        self._busy = self._mapped = False
        self._refused, self._backlog = 0, Backlog()
        self.file.leave_parent()
        tail = self._let_go()
        if tail is not None:
            tail.abandon()

    def _let_go(self) -> Tail | None:
        """Stop using the tail and return it."""
        self._room, self._view, self._words = 0, memoryview(b""), NO_WORDS
        tail, self._tail = self._tail, None
        return tail

    def _append_line(self, event: Event) -> None:
        """Append one event as a line; see append."""
        try:
            line = encode(event)
        except LineError:
            if not self._accepted:
                raise
            self._refused += 1
            return
        with self._lock:
            if self._closed:
                raise ValueError(f"the journal {self.path} is closed")
            if self._busy:
                if not self.file.write_through(line):
                    self._keep(line)
                return
            self._busy = True
            try:
                if self._accepted:
                    self._take(line, may_wait=isinstance(event, Metrics | Histogram))
                else:
                    self.file.write_first(line)
                    self._accepted = True
            finally:
                self._busy = False

    def _take(self, line: bytes, *, may_wait: bool) -> None:
        """Put a line behind all others; `may_wait` says that it can stay in the tail."""
        if self._mapped and may_wait:
            self._open_tail()
        if self._backlog:
            self._keep(line)
            if self.file.is_due:
                self._flush()
        elif self._tail is None:
            self._write(line)
        elif self._tail.put(line):
            if not may_wait:
                self._drain()
        elif not self._drain():
            self._keep(line)
        elif not (may_wait and self._tail.put(line)):  # longer than the tail
            self._write(line)

    def _open_tail(self) -> None:
        """Map the tail, once."""
        self._mapped = False
        self._tail = Tail.open(self.path)
        if self._tail is not None:
            self._view, self._words, self._room = self._tail.view, self._tail.words, SIZE

    def _drain(self) -> bool:
        """Move the tail into the journal; return whether nothing is left there."""
        tail = self._tail
        if tail is None or tail.is_empty:
            return True
        try:
            return self.file.is_due and tail.move(self.file)
        except OSError as error:  # a disk that cannot be read, too many open files
            self.file.refuse(error)
            return False

    def _write(self, line: bytes) -> None:
        """Write a line to the journal, or keep it."""
        if left := self.file.write(line):
            self._keep(left)

    def _keep(self, line: bytes) -> None:
        """Hold a line in memory; what comes later waits behind it."""
        self._room = 0
        self._backlog.add(line)

    def _flush(self) -> bool:
        """Write what is waiting, oldest first, until the disk refuses again."""
        if not (self._drain() and self._backlog.write(self.file)):
            return False
        if self._tail is not None and not self._closed:
            self._room = SIZE
        return True


_writers: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


def _leave_parents() -> None:
    """Make every writer of a forked child its own."""
    for writer in list(_writers):
        writer.leave_parent()


os.register_at_fork(after_in_child=_leave_parents)
