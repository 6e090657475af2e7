"""What a training process prints: kept in its folder, capped, secrets taken out.

The process writes straight into `stdout.log` and `stderr.log` of its run, so a crash in native
code loses nothing and nobody has to stay alive to read a pipe. Python's own streams go through
CappedStream; what native code writes past it is cleaned when the run ends (`seal`).
"""

from __future__ import annotations

import io
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from registry.redact import Redactor

CAP_BYTES = 4 * 1024 * 1024
FOOTER_BYTES = 64 * 1024  # room above the cap for the last words of a stream
LOG_NAMES = ("stdout.log", "stderr.log")


class CappedStream(io.TextIOBase):
    """A text stream that redacts whole lines and stops writing at a cap, counting what it drops.

    Args:
        target: where the lines go.
        redactor: takes secrets out of each line.
        cap_bytes: how much is written before the rest is dropped.
    """

    def __init__(self, target: TextIO, redactor: Redactor, cap_bytes: int = CAP_BYTES) -> None:
        self._target = target
        self._redactor = redactor
        self._left = cap_bytes
        self._pending = ""
        self._lock = threading.RLock()
        self.dropped_bytes = 0

    def writable(self) -> bool:
        """Return True: this is a stream to write to."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor below, for libraries that ask for one."""
        return self._target.fileno()

    def write(self, text: str) -> int:
        """Take text; lines appear once they end."""
        with self._lock:
            lines, newline, self._pending = (self._pending + text).rpartition("\n")
            if newline:
                self._put(lines + newline)
            if len(self._pending) > 65_536:  # a progress bar that never ends its line
                self._put(self._pending)
                self._pending = ""
        return len(text)

    def flush(self) -> None:
        """Push what has been written; an unfinished line waits for its end."""
        with self._lock, suppress(OSError):
            self._target.flush()

    def finish(self) -> None:
        """Write the unfinished line and say how much was dropped."""
        with self._lock, suppress(OSError):
            if self._pending:
                self._put(self._pending)
                self._pending = ""
            if self.dropped_bytes:
                self._target.write(f"\n[{self.dropped_bytes:,} bytes dropped at the cap]\n")
            self._target.flush()

    def _put(self, text: str) -> None:
        clean = self._redactor.text(text)
        size = len(clean.encode("utf-8", "replace"))
        if size > self._left:
            self.dropped_bytes += size
            return
        self._left -= size
        try:
            self._target.write(clean)
            self._target.flush()
        except OSError:  # a full disk: what a run prints must not end it
            self.dropped_bytes += size


def redirect(redactor: Redactor) -> tuple[CappedStream, CappedStream]:
    """Put capped, redacting streams over this process's stdout and stderr."""
    streams = CappedStream(sys.stdout, redactor), CappedStream(sys.stderr, redactor)
    sys.stdout, sys.stderr = streams
    return streams


def seal(folder: Path, redactor: Redactor) -> None:
    """Cap and redact the logs of a run that is over, native output included."""
    for name in LOG_NAMES:
        path = folder / name
        try:
            size = path.stat().st_size
            with path.open("rb") as log:
                kept = log.read(CAP_BYTES + FOOTER_BYTES)
        except OSError:
            continue
        text = kept.decode("utf-8", "replace")
        clean = redactor.text(text)
        if size > len(kept):
            clean += f"\n[{size - len(kept):,} bytes dropped at the cap]\n"
        if clean != text:
            _replace(path, clean.encode("utf-8", "replace"))


def _replace(path: Path, content: bytes) -> None:
    """Put content in a file's place; on a full disk as much as the file has room for already."""
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        with suppress(OSError), path.open("r+b") as log:
            content = content[: path.stat().st_size]
            log.write(content)
            log.truncate(len(content))
        with suppress(OSError):
            partial.unlink(missing_ok=True)
