"""An open journal that lines are appended to, on a disk that may be full or a folder that goes.

Owns what a short write leaves behind: half a line, which is ended, and comes again as a whole.
Other processes may append to the same journal; every line of theirs is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from registry.codec import MAX_LINE_BYTES
from registry.errors import StoreUnavailable

_RETRY_S = 1.0  # a full disk is asked again this often, not on every line


class JournalFile:
    """Appends lines, as many as there are with one `write`. Its writer holds a lock around it.

    Raises:
        StoreUnavailable: the journal cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault = ""  # why lines are waiting or lost; empty while all is well
        self.is_gone = False  # deleted under its writer
        self.lost = 0  # lines that are in no journal
        self._retry_at = 0.0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unavailable(path, error) from error
        self._may_be_torn = True  # the last line may lack its newline

    @property
    def end(self) -> int:
        """Byte offset behind the journal's last byte, whoever wrote it; 0 when closed."""
        with contextlib.suppress(OSError):
            return os.fstat(self._fd).st_size
        return 0

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    @property
    def is_due(self) -> bool:
        """Whether a disk that has refused may be asked again."""
        return not self.fault or time.monotonic() >= self._retry_at

    def ask_again(self) -> None:
        """Make a disk that has refused due."""
        self._retry_at = 0.0

    def write_first(self, line: bytes) -> None:
        """Write the first line of a process, whole or not at all.

        Raises:
            StoreUnavailable: it cannot be written.
        """
        end = self.end
        data = self._end_half_line() + line
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise _unavailable(self.path, error) from error
        if written < len(data):
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, end)
            raise _unavailable(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._may_be_torn = False

    def write(self, lines: bytes) -> bytes:
        """Write whole lines and return those that were not written, whole too."""
        try:
            if os.fstat(self._fd).st_nlink == 0:
                return self._lose(lines)
            newline = self._end_half_line()
            written = os.write(self._fd, newline + lines) - len(newline)
        except OSError as error:
            self.refuse(error)
            return lines
        if written == len(lines):
            self.fault, self._may_be_torn = "", False
            return b""
        self.refuse(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._may_be_torn = True
        if written > 0 and lines[written : written + 1] == b"\n":  # whoever is next ends it
            return lines[written + 1 :]
        return lines[lines.rfind(b"\n", 0, max(written, 0)) + 1 :]

    def write_through(self, line: bytes) -> bool:
        """Write a line at once, in the middle of another write; return whether it is whole."""
        with contextlib.suppress(OSError):
            return os.write(self._fd, line) == len(line)
        return False

    def iter_lines(self, offset: int) -> Iterator[bytes]:
        """Yield the lines behind an offset with their newlines, overlong ones in pieces."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(offset)
            yield from iter(partial(file.readline, MAX_LINE_BYTES), b"")

    def leave_parent(self) -> None:
        """In a forked child: what went wrong so far, and half a line, is the parent's."""
        self.fault = ""
        self.lost = 0
        self._may_be_torn = False

    def refuse(self, error: OSError) -> None:
        """Note why the disk took less than it was given."""
        self.fault = f"{self.path}: {error.strerror or error}"
        self._retry_at = time.monotonic() + _RETRY_S

    def close(self) -> None:
        """End half a line, hand everything to the disk and close."""
        with contextlib.suppress(OSError):
            os.write(self._fd, self._end_half_line())
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.fsync(fd)
        with contextlib.suppress(OSError):
            os.close(fd)

    def _end_half_line(self) -> bytes:
        """Return the newline that the journal's last line lacks, nothing where it is whole."""
        if self._may_be_torn and self.end:
            with contextlib.suppress(OSError):
                if os.pread(self._fd, 1, self.end - 1) != b"\n":
                    return b"\n"
        return b""

    def _lose(self, lines: bytes) -> bytes:
        """Count lines that cannot be written anywhere any more; nothing is left of them."""
        self.is_gone = True
        self.fault = f"{self.path} was deleted while its run was writing it"
        self.lost += lines.count(b"\n")
        return b""


def _unavailable(path: Path, error: OSError) -> StoreUnavailable:
    """Return the error that says which journal cannot be written and why."""
    return StoreUnavailable(
        f"cannot write the journal {path}: {error.strerror or error}",
        next_command="make room there, or set TSX_HOME to a folder that can be written",
    )
