"""A file on its way: it grows under `.download/parts`, and is hashed while it does."""

from __future__ import annotations

import glob
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tsx.data.hub import RemoteFile
from tsx.data.record import FOLDER, Digest
from tsx.errors import TsxError

_KEY_DIGITS = 16  # of the digest, in a part's name: another content is another part


class Stopped(Exception):
    """A worker leaves off because the download ends."""


@dataclass
class Progress:
    """How far a download is; counted by its workers, read by the thread that shows it."""

    phase: str = ""  # "checking" what is on disk, then "fetching"
    bytes_total: int = 0
    bytes_before: int = 0  # of these, left by an earlier download
    bytes_done: int = 0  # those before included
    files_total: int = 0
    files_done: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, phase: str, files: Sequence[RemoteFile], bytes_before: int = 0) -> None:
        """Start to count towards all of these files."""
        self.phase = phase
        self.bytes_total = sum(file.size for file in files)
        self.bytes_before = self.bytes_done = bytes_before
        self.files_total, self.files_done = len(files), 0

    def move(self, count: int) -> None:
        """Count bytes, from any thread; fewer than none where some are thrown away.

        Raises:
            Stopped: the download ends.
        """
        with self.lock:
            self.bytes_done += count
        if self.stop.is_set():
            raise Stopped


class Part:
    """The binary file that the client writes to; appends only, or begins again."""

    def __init__(self, folder: Path, file: RemoteFile, progress: Progress) -> None:
        self._path = locate_part(folder, file)
        self._folder, self._remote, self._progress = folder, file, progress
        self._digest = Digest(file.digest.partition(":")[0], file.size)
        self.size = 0

    def __enter__(self) -> Part:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{glob.escape(self._path.name[:-_KEY_DIGITS])}{'[0-9a-f]' * _KEY_DIGITS}"
        for other in self._path.parent.glob(name):
            if other != self._path:  # of another commit
                other.unlink()
        self.size = count_kept(self._folder, self._remote)
        self._file = self._path.open("ab" if self.size else "wb", buffering=0)
        if self.size:
            self._digest.read(self._path, lambda _: self._progress.move(0))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> int:
        """Append bytes.

        Raises:
            Stopped: the download ends.
            TsxError: more bytes than the file has.
            OSError: the disk is full, or fails.
        """
        if self.size + len(chunk) > self._remote.size:
            raise TsxError(
                f"{self._remote.path} is longer than the {self._remote.size:,} bytes that the Hub "
                "lists for it"
            )
        rest = memoryview(chunk)
        while rest:
            count = self._file.write(rest) or 0
            self._digest.update(rest[:count])
            self.size += count
            self._progress.move(count)
            rest = rest[count:]
        return len(chunk)

    def tell(self) -> int:
        """Return the bytes there are."""
        return self.size

    def seek(self, position: int) -> int:
        """Go back to the beginning; where else a part is written is its end."""
        if position:
            raise ValueError(f"a part does not seek to {position}")
        return 0

    def truncate(self) -> int:
        """Throw everything away: the server begins again at the first byte."""
        self._file.seek(0)
        self._file.truncate()
        size, self.size = self.size, 0
        self._digest.reset()
        self._progress.move(-size)
        return 0

    def is_right(self) -> bool:
        """Tell whether this is all of the file, and nothing else."""
        return self.size == self._remote.size and str(self._digest) == self._remote.digest


def locate_part(folder: Path, file: RemoteFile) -> Path:
    """Return where a file grows."""
    key = file.digest.partition(":")[2][:_KEY_DIGITS]
    return folder / FOLDER / "parts" / f"{file.path}.{key}"


def count_kept(folder: Path, file: RemoteFile) -> int:
    """Return the bytes of a file's part that can be gone on with."""
    try:
        size = locate_part(folder, file).stat().st_size
    except OSError:
        return 0
    return size if size <= file.size else 0
