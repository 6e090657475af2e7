"""A program's stdout and stderr on their way through us: passed on at once, kept, read.

Both are pipes, on a terminal too. A pty would show the program a terminal (colors, line buffering),
but its bytes would then differ between a terminal and a log, the kept log would be full of escape
codes, and full-screen programs would set the wrong terminal. Through a pipe a run says the same
everywhere; progress bars that end in a carriage return work, and who wants colors asks the
program for them. stdin stays the terminal.
"""

from __future__ import annotations

import codecs
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from registry.redact import Redactor
from tsx.launch.capture import CAP_BYTES, CappedStream

GRACE_S = 1.0  # how long output of those whom the program left behind is waited for
_CHUNK_BYTES = 64 * 1024
_OWED_BYTES = 64 * 1024  # what a pipe holds: the program's own last words
_TAIL_BYTES = 4096
_LOOK_MS = 100  # how often a silent stream looks whether its program is gone


class StreamLog:
    """One stream's log in the run's folder: capped, secrets taken out; a full disk only drops.

    Not thread-safe.
    """

    def __init__(self, path: Path, redactor: Redactor) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stream: CappedStream | None = None
        self._tail = b""
        with suppress(OSError):
            file = path.open("a", encoding="utf-8", newline="")
            room = CAP_BYTES - os.fstat(file.fileno()).st_size
            self._stream = CappedStream(file, redactor, room)
            self._file = file

    def feed(self, data: bytes) -> None:
        """Keep a piece of the stream, as far as there is room."""
        self._tail = (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        if self._stream is None:
            return
        if self._stream.dropped_bytes:  # a log ends at its cap: what follows is only counted
            self._stream.dropped_bytes += len(data)
        else:
            self._stream.write(self._decode(data))

    def finish(self) -> None:
        """Write what is left and close."""
        if self._stream is None:
            return
        with suppress(OSError, ValueError):
            self._stream.write(self._decode(b"", True))
            self._stream.finish()
            self._file.close()

    def find_last_line(self) -> str:
        """Return the last line that says anything, bounded; empty when there is none."""
        lines = self._tail.decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


class Pump(threading.Thread):
    """Copies one stream until nobody writes it any more, or until its program is gone.

    Args:
        source: the pipe's read end, closed at the end.
        target: where it goes; when nobody reads there any more it is only kept.
        log: keeps it.
        see: is given each piece, after it was passed on.
    """

    def __init__(
        self,
        source: int,
        target: int,
        log: StreamLog,
        see: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__(name=f"tsx-exec-{target}", daemon=True)
        self._source = source
        self._target = target
        self.log = log
        self._see = see
        self._gone_at: float | None = None

    def end_soon(self) -> None:
        """Tell that the program is gone: what it left in the pipe is passed on, then it ends.

        Whom the program left behind may hold the pipe open for ever: their output is waited for
        only for GRACE_S.
        """
        self._gone_at = self._gone_at or time.monotonic()

    def run(self) -> None:
        """Copy; the thread's body."""
        owed = _OWED_BYTES
        while self._wait():
            data = os.read(self._source, _CHUNK_BYTES)
            if not data:
                break
            self._pass_on(data)
            self.log.feed(data)
            self._show(data)
            if self._is_late():
                owed -= len(data)
                if owed <= 0:
                    break
        os.close(self._source)

    def _show(self, data: bytes) -> None:
        """Let the piece be read; a fault there must not take the program's output from it."""
        if self._see is not None:
            try:
                self._see(data)
            except Exception:
                self._see = None

    def _is_late(self) -> bool:
        """Tell whether the grace after the program's end is over."""
        return self._gone_at is not None and time.monotonic() >= self._gone_at + GRACE_S

    def _wait(self) -> bool:
        """Wait for data or the pipe's end; False when neither came in the grace."""
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        while not poll.poll(_LOOK_MS):
            if self._is_late():
                return False
        return True

    def _pass_on(self, data: bytes) -> None:
        """Write all of it, waiting where the reader is slow."""
        rest = memoryview(data)
        while rest and self._target >= 0:
            try:
                rest = rest[os.write(self._target, rest) :]
            except BlockingIOError:  # somebody made the terminal non-blocking
                select.select([], [self._target], [], 1.0)
            except OSError:  # nobody reads there any more: the program goes on all the same
                self._target = -1
