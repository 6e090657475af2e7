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
from registry.tail import END, NO_WORDS, RECORD_BYTES, SIZE, Tail, complete, count_moved, pack

_PENDING_MAX_BYTES = 16 * 1024 * 1024  # about 50,000 metric lines wait in memory for a full disk


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
        self._dropped = 0  # events that are in no journal
        self._lock = threading.RLock()
        self._busy = False  # somebody is in the middle of it: a signal handler goes past
        self._closed = False
        self._accepted = False
        self._mapped = mapped  # a tail is still to be made
        self._tail: Tail | None = None
        self._view, self._words = memoryview(b""), NO_WORDS  # of the tail
        self._room = 0  # where its records must end; 0 while metrics may not wait there
        self._pending: deque[bytes] = deque()  # lines that come after the tail's
        self._pending_bytes = 0
        complete(path)
        self._file = JournalFile(path)
        _writers.add(self)

    @property
    def end(self) -> int:
        """Byte offset behind the journal's last line, whoever wrote it."""
        return self._file.end

    @property
    def lost(self) -> int:
        """Events that are in no journal."""
        return self._dropped + self._file.lost

    @property
    def fault(self) -> str:
        """Why lines are waiting or lost; empty while all is well."""
        return self._file.fault

    @property
    def is_gone(self) -> bool:
        """Whether the journal was deleted under this writer."""
        return self._file.is_gone

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
                self._file.ask_again()
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
            if self._file.is_closed:
                return True
            self._file.ask_again()
            self._flush()
            self._dropped += len(self._pending)
            self._pending.clear()
            tail = self._let_go()
            if tail is not None:
                tail.close()
            self._file.close()
        return True

    def leave_parent(self) -> None:
        """In a forked child: write lines of its own from now on, and touch nothing else."""
        self._lock = threading.RLock()
        self._busy = self._mapped = False
        self._dropped = self._pending_bytes = 0
        self._pending.clear()
        self._file.leave_parent()
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
            self._dropped += 1
            return
        with self._lock:
            if self._closed:
                raise ValueError(f"the journal {self.path} is closed")
            if self._busy:
                if not self._file.write_through(line):
                    self._keep(line)
                return
            self._busy = True
            try:
                if self._accepted:
                    self._take(line, may_wait=isinstance(event, Metrics | Histogram))
                else:
                    self._file.write_first(line)
                    self._accepted = True
            finally:
                self._busy = False

    def _take(self, line: bytes, *, may_wait: bool) -> None:
        """Put a line behind all others; `may_wait` says that it can stay in the tail."""
        if self._mapped and may_wait:
            self._open_tail()
        if self._pending:
            self._keep(line)
            if self._file.is_due:
                self._flush()
        elif self._tail is None:
            self._keep_rest(self._file.write(line))
        elif self._tail.put(line):
            if not may_wait:
                self._drain()
        elif not self._drain():
            self._keep(line)
        elif not (may_wait and self._tail.put(line)):  # longer than the tail
            self._keep_rest(self._file.write(line))

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
        if not self._file.is_due:
            return False
        lines = tail.list_lines()
        unreadable = lines.count(b"")
        if tail.moving_from is None:
            tail.begin(self._file.end)
        else:  # a full disk took some of them, or an exception came from a signal handler
            lines = lines[count_moved(lines, self._file.iter_lines(tail.moving_from)) :]
        if self._file.write(b"".join(lines)):
            return False
        self._dropped += unreadable
        tail.finish()
        return True

    def _keep_rest(self, left: bytes) -> None:
        """Hold what the disk refused of one line."""
        if left:
            self._keep(left)

    def _keep(self, line: bytes) -> None:
        """Hold a line in memory; past the bound the oldest is lost."""
        self._room = 0  # what comes later waits behind it
        self._pending.append(line)
        self._pending_bytes += len(line)
        while self._pending_bytes > _PENDING_MAX_BYTES:
            self._pending_bytes -= len(self._pending.popleft())
            self._dropped += 1

    def _flush(self) -> bool:
        """Write what is waiting, oldest first, until the disk refuses again."""
        if not self._drain():
            return False
        while self._pending:
            if self._file.write(self._pending[0]):
                return False
            self._pending_bytes -= len(self._pending.popleft())
        if self._tail is not None and not self._closed:
            self._room = SIZE
        return True


_writers: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


def _leave_parents() -> None:
    """Make every writer of a forked child its own."""
    for writer in list(_writers):
        writer.leave_parent()


os.register_at_fork(after_in_child=_leave_parents)
