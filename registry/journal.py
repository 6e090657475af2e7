"""The journal of a run: `events.jsonl`, one event a line, the truth everything else is made from.

Owns appending (one `write` a line, so a killed process loses nothing it was told is written) and
reading (torn, overlong and malformed lines are passed over, never fatal).
Does not cover a power cut: lines are with the kernel, not yet on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from registry.codec import MAX_LINE_BYTES, LineError, decode, encode
from registry.errors import StoreUnavailable
from registry.events import Event

JOURNAL_NAME = "events.jsonl"

_PENDING_MAX_BYTES = 16 * 1024 * 1024  # about 50,000 metric lines wait in memory for a full disk
_RETRY_S = 1.0  # a full disk is asked again this often, not on every line
_CHUNK_BYTES = 1024 * 1024


class Line(NamedTuple):
    """One complete line of a journal."""

    text: bytes | None  # without the newline; None when it is longer than an event can be
    end: int  # byte offset behind its newline


class BadLine(NamedTuple):
    """A line that is no event."""

    number: int  # counted from where reading began, from 1
    end: int  # byte offset behind its newline
    reason: str


class JournalWriter:
    """Appends events to a journal. Not thread-safe: its sink holds a lock around it.

    The first append must succeed or raise; from then on none raises. Lines that a full disk
    refuses wait in memory, up to 16 MiB, and are written when there is room; beyond that the oldest
    are dropped and counted in `lost`.

    Raises:
        StoreUnavailable: the journal cannot be opened, or its first line cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0  # events that are in no journal
        self.fault = ""  # why lines are waiting; empty while all is well
        self._accepted = False
        self._rest = b""  # end of a line that was cut by a full disk; never dropped
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._retry_at = 0.0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._end = os.fstat(self._fd).st_size
        except OSError as error:
            raise _unavailable(path, error) from error
        self._close_torn_line()

    @property
    def end(self) -> int:
        """Byte offset behind the last line written."""
        return self._end

    def append(self, event: Event) -> int:
        """Write one event and return the journal's end, in bytes.

        Raises:
            StoreUnavailable: nothing was accepted yet and this cannot be written either.
            ValueError: the journal is closed.
        """
        if self._fd < 0:
            raise ValueError(f"the journal {self.path} is closed")
        try:
            line = encode(event)
        except LineError:
            if not self._accepted:
                raise
            self.lost += 1
            return self._end
        if not self._accepted:
            self._append_first(line)
        elif self._rest or self._pending:
            self._keep(line)
            if time.monotonic() >= self._retry_at:
                self._flush()
        else:
            rest = self._write(line)
            if rest is line:
                self._keep(line)
            else:
                self._rest = rest
        return self._end

    def retry(self) -> bool:
        """Try to write what a full disk refused; return whether nothing is waiting any more."""
        if self._fd >= 0 and (self._rest or self._pending):
            self._flush()
        return not (self._rest or self._pending)

    def close(self) -> None:
        """Write what is waiting, if there is room now, and close; what is left over is lost."""
        if self._fd < 0:
            return
        self.retry()
        # A line that lacks only its newline is whole: the next writer ends it.
        self.lost += len(self._pending) + (self._rest not in (b"", b"\n"))
        self._pending.clear()
        self._rest = b""
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.fsync(fd)
        with contextlib.suppress(OSError):
            os.close(fd)

    def _close_torn_line(self) -> None:
        """End a line that a kill cut short, so that the next one starts on its own."""
        if self._end == 0:
            return
        with contextlib.suppress(OSError):
            if os.pread(self._fd, 1, self._end - 1) != b"\n":
                self._rest = b"\n"

    def _append_first(self, line: bytes) -> None:
        """Write the first line of this process, whole or not at all."""
        data = self._rest + line
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise _unavailable(self.path, error) from error
        if written < len(data):
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise _unavailable(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._rest = b""
        self._end += written
        self._accepted = True

    def _keep(self, line: bytes) -> None:
        """Hold a line in memory; past the bound the oldest is lost."""
        self._pending.append(line)
        self._pending_bytes += len(line)
        while self._pending_bytes > _PENDING_MAX_BYTES:
            self._pending_bytes -= len(self._pending.popleft())
            self.lost += 1

    def _flush(self) -> None:
        """Write what is waiting, oldest first, until the disk refuses again."""
        while self._rest or self._pending:
            line = self._rest or self._pending[0]
            rest = self._write(line)
            if not self._rest and rest != line:
                self._pending_bytes -= len(self._pending.popleft())
            if self._rest or rest != line:
                self._rest = rest
            if rest:
                return

    def _write(self, data: bytes) -> bytes:
        """Write `data` and return what of it was not written."""
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self.fault = f"{self.path}: {error.strerror or error}"
            self._retry_at = time.monotonic() + _RETRY_S
            return data
        self._end += written
        if written == len(data):
            self.fault = ""
            return b""
        self.fault = f"{self.path}: {os.strerror(errno.ENOSPC)}"
        self._retry_at = time.monotonic() + _RETRY_S
        return data[written:]


def iter_lines(path: Path, offset: int = 0) -> Iterator[Line]:
    """Yield the complete lines from a byte offset on; a torn last line is left for later."""
    carry, carry_bytes = b"", 0  # carry_bytes counts an overlong line whose text is thrown away
    end = offset
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while chunk := file.read(_CHUNK_BYTES):
            *whole, tail = chunk.split(b"\n")
            for piece in whole:
                size = carry_bytes + len(piece)
                end += size + 1
                yield Line(carry + piece if size <= MAX_LINE_BYTES else None, end)
                carry, carry_bytes = b"", 0
            carry_bytes += len(tail)
            carry = carry + tail if carry_bytes <= MAX_LINE_BYTES else b""


def iter_events(
    path: Path, offset: int = 0, *, on_bad: Callable[[BadLine], None] | None = None
) -> Iterator[tuple[Event, int]]:
    """Yield (event, byte offset behind it) from a byte offset on.

    A torn last line is left for later; a line that is no event is told to `on_bad` and skipped.
    """
    for number, line in enumerate(iter_lines(path, offset), start=1):
        try:
            yield decode_line(line), line.end
        except LineError as error:
            if on_bad is not None:
                on_bad(BadLine(number, line.end, str(error)))


def decode_line(line: Line) -> Event:
    """Return the event of a line; LineError where there is none, the overlong included."""
    if line.text is None:
        raise LineError(f"longer than {MAX_LINE_BYTES} bytes")
    return decode(line.text)


def _unavailable(path: Path, error: OSError) -> StoreUnavailable:
    """Return the error that says which journal cannot be written and why."""
    return StoreUnavailable(
        f"cannot write the journal {path}: {error.strerror or error}",
        next_command="make room there, or set TSX_HOME to a folder that can be written",
    )


__all__ = [
    "JOURNAL_NAME",
    "BadLine",
    "JournalWriter",
    "Line",
    "decode",
    "decode_line",
    "encode",
    "iter_events",
    "iter_lines",
]
