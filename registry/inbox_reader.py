"""Take over a run's inbox: while its program runs, or after whoever recorded it was killed.

Each event bears the byte offset behind its line (`inbox_end`), so that whoever goes on takes no
line twice and leaves none. A line that is no event is told with its number and a reason; the rest
is kept. Does not cover a file that is rewritten: what was overwritten before it was read is gone.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from registry.codec import LineError
from registry.events import Event, Finding, Metrics, Severity
from registry.inbox import INBOX_NAME, MAX_INBOX_LINE_BYTES, decode_inbox_line
from registry.journal import JOURNAL_NAME, decode_line, iter_lines

_CHUNK_BYTES = 1024 * 1024
_CHUNKS_AT_ONCE = 16  # then whoever reads looks after other things


class Mark(NamedTuple):
    """How far an inbox was taken over."""

    end: int = 0  # bytes
    step: int = 0  # of the last metrics line; a line without a step comes one after it


class BadInboxLine(NamedTuple):
    """A line that was left out, or a value of it."""

    number: int  # of the line, from 1
    reason: str


class InboxReader:
    """Takes over an inbox while it grows. Not thread-safe.

    Args:
        path: the inbox; need not exist yet.
        mark: how far it was taken over before.
        on_bad: told of each line, or value, that is left out.
    """

    def __init__(
        self,
        path: Path,
        mark: Mark = Mark(),  # noqa: B008 - immutable
        on_bad: Callable[[BadInboxLine], None] | None = None,
    ) -> None:
        self._path = path
        self._on_bad = on_bad
        self._file: IO[bytes] | None = None
        self._position = mark.end  # in the file
        self._rewritten_bytes = 0  # what was in the file before it was cut, for `inbox_end`
        self._carry = b""
        self._overlong = False
        self._number = 0
        self._first: BadInboxLine | None = None
        self._told = False  # of the first
        self.step = mark.step
        self.bad_count = 0
        self.has_metrics = False

    def iter_new(self, now: float, *, chunks: int = _CHUNKS_AT_ONCE) -> Iterator[Event]:
        """Yield the events of the lines that were completed since the last call.

        Yields nothing where the inbox cannot be read. Reads at most `chunks` MiB.
        """
        try:
            if self._file is None:
                self._open()
            for _ in range(chunks):
                chunk = self._read_chunk()
                if not chunk:
                    return
                yield from self._take_chunk(chunk, now)
        except OSError:
            return

    def iter_rest(self, now: float) -> Iterator[Event]:
        """Yield what is left once the program is gone: a last line without newline, and a finding.

        The finding `bad-event` tells how many lines were left out beyond the one told at once.
        """
        yield from self.iter_new(now, chunks=sys.maxsize)
        if self._carry and not self._overlong:
            line, self._carry = self._carry, b""
            yield from self._take_line(line, 0, now)
        yield from self._list_first_finding(now)
        if self._first is not None and self.bad_count > 1:
            yield self._make_finding(self._first, now, self.bad_count - 1)
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        """Open the file and count the lines that were taken over before."""
        self._file = self._path.open("rb", buffering=0)
        left = self._position
        while left > 0 and (chunk := self._file.read(min(left, _CHUNK_BYTES))):
            self._number += chunk.count(b"\n")
            left -= len(chunk)

    def _read_chunk(self) -> bytes:
        """Return the next bytes; a file that became shorter is read anew from its beginning."""
        assert self._file is not None
        chunk = self._file.read(_CHUNK_BYTES)
        if chunk:
            self._position += len(chunk)
            return chunk
        if self._file.seek(0, 2) < self._position:
            self._rewritten_bytes += self._position
            self._position, self._carry, self._overlong = 0, b"", False
            self._tell_bad(f"{INBOX_NAME} was cut: append to it (>> in a shell)")
        self._file.seek(self._position)
        return b""

    def _take_chunk(self, chunk: bytes, now: float) -> Iterator[Event]:
        """Yield the events of the lines that end in a chunk."""
        start = self._position - len(chunk)
        *whole, tail = chunk.split(b"\n")
        for piece in whole:
            start += len(piece) + 1
            line, self._carry = self._carry + piece, b""
            if self._overlong or len(line) > MAX_INBOX_LINE_BYTES:
                self._number += 1
                self._overlong = False
                self._tell_bad(f"longer than {MAX_INBOX_LINE_BYTES:,} bytes")
                yield from self._list_first_finding(now)
                continue
            yield from self._take_line(line, self._position - start, now)
        self._carry += tail
        if len(self._carry) > MAX_INBOX_LINE_BYTES:
            self._carry, self._overlong = b"", True

    def _take_line(self, line: bytes, bytes_behind: int, now: float) -> Iterator[Event]:
        """Yield the event of a line, or a finding for the first that is none."""
        self._number += 1
        end = self._rewritten_bytes + self._position - bytes_behind
        try:
            events = decode_inbox_line(
                line, end, now=now, previous_step=self.step, left_out=self._tell_bad
            )
        except LineError as error:
            events = []
            self._tell_bad(str(error))
        for event in events:
            if isinstance(event, Metrics):
                self.step, self.has_metrics = event.step, True
            yield event
        yield from self._list_first_finding(now)

    def _tell_bad(self, reason: str) -> None:
        """Count something that is left out."""
        self.bad_count += 1
        bad = BadInboxLine(self._number, reason)
        self._first = self._first or bad
        if self._on_bad is not None:
            self._on_bad(bad)

    def _list_first_finding(self, now: float) -> list[Finding]:
        """Return the finding for the first fault, once: a kill must not hide that there was one."""
        if self._first is None or self._told:
            return []
        self._told = True
        return [self._make_finding(self._first, now, 1)]

    def _make_finding(self, bad: BadInboxLine, now: float, count: int) -> Finding:
        """Return what the registry keeps of lines that were left out; equal findings count up."""
        return Finding(
            time=now,
            kind="bad-event",
            severity=Severity.WARNING,
            step=self.step,
            where=f"{INBOX_NAME}:{bad.number}",
            cause=f"line {bad.number}: {bad.reason}",
            fix="docs/events.md has the form of a line",
            count=count,
        )


def find_mark(journal: Path) -> Mark:
    """Return how far the journal says that its run's inbox was taken over."""
    end = step = 0
    for line in iter_lines(journal):
        if line.text is None or b'"inbox_end"' not in line.text:
            continue
        try:
            event = decode_line(line)
        except LineError:
            continue
        end = max(end, getattr(event, "inbox_end", 0))
        if isinstance(event, Metrics) and event.inbox_end:
            step = event.step
    return Mark(end, step)


def iter_left(folder: Path) -> Iterator[Event]:
    """Yield what the journal of a run that is over lacks of its inbox, for its time of writing."""
    inbox = folder / INBOX_NAME
    try:
        written = inbox.stat()
        mark = find_mark(folder / JOURNAL_NAME)
    except OSError:
        return
    if stat.S_ISREG(written.st_mode) and written.st_size > mark.end:
        yield from InboxReader(inbox, mark).iter_rest(written.st_mtime)
