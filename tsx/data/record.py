"""What a download leaves beside the data: `.download/record.json`, its lock and its parts.

The record says from which repository and commit each partition came, which request was completed,
and of every file its digest, so that nothing is read again to know that it is whole. A record that
cannot be read counts as none: the files are then hashed, not trusted. The folder is hidden, so the
readers of series pass it over.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct, field

from tsx.errors import TsxError

FOLDER = ".download"
_CHUNK_BYTES = 1 << 20


class FileRecord(Struct):
    """A file that was found whole; another size or time on disk means that it was touched."""

    size: int
    mtime_ns: int
    digest: str


class PartitionRecord(Struct):
    """A partition all of whose files were checked and that the readers open."""

    commit: str
    files: int
    bytes: int
    verified_at: str  # UTC, ISO 8601
    fingerprint: str


class Record(Struct):
    """All that is known of the downloads into one folder."""

    repo: str
    revision: str  # as asked for
    commit: str  # what it resolved to, of the last request
    asked: list[str] = field(default_factory=list)  # its patterns
    completed: dict[str, str] = field(default_factory=dict)  # pattern -> commit
    partitions: dict[str, PartitionRecord] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)

    def trusts(self, folder: Path, name: str, digest: str) -> bool:
        """Tell whether the file of this name is known to hold the content of this digest."""
        known = self.files.get(name)
        if known is None or known.digest != digest:
            return False
        try:
            status = (folder / name).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns)

    def note(self, folder: Path, name: str, digest: str) -> None:
        """Remember a file that was just found whole."""
        status = (folder / name).stat()
        self.files[name] = FileRecord(status.st_size, status.st_mtime_ns, digest)


def find_record(folder: Path) -> Record | None:
    """Return the record of a folder; None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / FOLDER / "record.json").read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def offer_resume(path: Path) -> str:
    """Return the command that goes on with the download a file belongs to, "" where there is none.

    Args:
        path: a file of a data set, `<folder>/<domain>/<dataset>/<file>`.
    """
    for folder in path.parents[1:4]:
        if (record := find_record(folder)) is not None and record.asked:
            words = ["tsx", "data", "download", "--partitions", ",".join(record.asked)]
            words += ["--repo", record.repo, "--revision", record.revision]
            return shlex.join([*words, "--time300b-dir", str(folder.absolute())])
    return ""


def write_record(folder: Path, record: Record) -> None:
    """Put the record on disk, whole or not at all."""
    path = folder / FOLDER / "record.json"
    draft = path.with_suffix(".part")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    draft.replace(path)


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Keep a second download out of the same folder.

    Raises:
        TsxError: another process is downloading into it.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with (folder / FOLDER / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TsxError(
                f"another tsx data download is writing to {folder}",
                next_command="wait for it, or take another --time300b-dir",
            ) from None
        except OSError:
            pass  # a file system without locks; parts are still only ever renamed when whole
        yield


class Digest:
    """The digest that the Hub lists for a file: `sha256:` of large ones, `git:` of the others."""

    def __init__(self, kind: str, size: int) -> None:
        self._kind, self._size = kind, size
        self.reset()

    def reset(self) -> None:
        """Begin again."""
        self._hash = hashlib.sha256() if self._kind == "sha256" else hashlib.sha1()  # noqa: S324
        if self._kind == "git":
            self._hash.update(b"blob %d\0" % self._size)

    def update(self, content: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(content)

    def read(self, path: Path, moved: Callable[[int], None]) -> None:
        """Take all bytes of a file; `moved` is told of each piece."""
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                self._hash.update(chunk)
                moved(len(chunk))

    def __str__(self) -> str:
        return f"{self._kind}:{self._hash.hexdigest()}"


def holds(path: Path, digest: str, size: int, moved: Callable[[int], None]) -> bool:
    """Read a file and tell whether it is the content of this digest."""
    try:
        if os.path.getsize(path) != size:
            return False
        found = Digest(digest.partition(":")[0], size)
        found.read(path, moved)
    except OSError:
        return False
    return str(found) == digest
