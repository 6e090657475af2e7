"""The journal of a run: `events.jsonl`, one event a line, the truth everything else is made from.

Owns reading: torn, overlong and malformed lines are passed over, never fatal. Appending is
`registry.writer`'s: a line is with the kernel when `append` returns, in the journal or in its
mapped tail, so a killed process loses nothing it was told is written.
Does not cover a power cut: lines are with the kernel, not yet on the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from registry.codec import MAX_LINE_BYTES, LineError, decode, encode
from registry.events import Event
from registry.tail import read_waiting
from registry.writer import JournalWriter

JOURNAL_NAME = "events.jsonl"

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


def read_events(path: Path) -> list[Event]:
    """Return every event of a journal, with those that wait in its tail: what a kill would leave.

    Lines that are no events are left out.
    """
    mark, waiting = read_waiting(path)
    while True:
        events = [event for event, _ in iter_events(path)] if path.exists() else []
        again, newer = read_waiting(path)
        if again == mark:
            for line in waiting:
                with contextlib.suppress(LineError):
                    events.append(decode(line))
            return events
        mark, waiting = again, newer


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
    "read_events",
]
