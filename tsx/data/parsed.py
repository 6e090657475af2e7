"""Files that are parsed once: a copy in the Time-300B layout, made on first use and read after.

The copy lies under `$TSX_HOME/cache/series/`, named after the format and the SHA-256 of the file,
and may be deleted at any time. Owns that cache, reading through gzip, and the bound on what a
packed file may unpack to. Parsers stream: memory holds a piece of the file, never all of it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from tsx.data.layout import SeriesWriter
from tsx.data.series import NAMES_NAME, DataSet, MapPool, open_dataset
from tsx.errors import DataError

# Series of real measurements pack a few times smaller, of mostly zeros some ten times. What
# unpacks to more than this is taken for a bomb: the disk would fill before anybody noticed.
MAX_UNPACKED_BYTES = 256 << 20
MAX_UNPACKED_RATIO = 100
PIECE_BYTES = 1 << 20  # of text, or of a packed file, read at a time
PIECE_POINTS = 1 << 20  # held as float64 at a time

Report = Callable[[float], None]  # told the share of a file that is parsed, 0 to 1


def ignore(share: float) -> None:
    """Report to nobody."""


class SourceFile:
    """A file that is being parsed: reads it, counts what it unpacks to, names it in errors.

    Args:
        name: of the data set, "<domain>/<dataset>".
        path: the file; `.gz` is unpacked while it is read.
        report: told how far reading has come.
    """

    def __init__(self, name: str, path: Path, report: Report = ignore) -> None:
        self.place = f"data set '{name}'"
        self.path = path
        self.size = self._ask(lambda: path.stat().st_size)
        self.report = report
        self._unpacked = 0

    @property
    def is_packed(self) -> bool:
        """Whether the whole file is gzip."""
        return self.path.suffix.lower() == ".gz"

    def fault(self, what: str, *, next_command: str = "") -> DataError:
        """Return the error that says what is wrong with this file."""
        return DataError(f"{self.place}: {self.path} {what}", next_command=next_command)

    def open(self) -> BinaryIO:
        """Open for reading from the start to the end, unpacked.

        Raises:
            DataError: it cannot be read; reading raises it too, where a packed file is damaged
                or unpacks to too much.
        """
        raw = self._ask(lambda: self.path.open("rb"))
        stream = gzip.GzipFile(fileobj=raw) if self.is_packed else raw
        return io.BufferedReader(_Reader(self, raw, stream), PIECE_BYTES)

    def spend(self, num_bytes: int) -> None:
        """Count bytes that come out of something packed.

        Raises:
            DataError: more than the file's size allows for.
        """
        self._unpacked += num_bytes
        limit = max(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * self.size)
        if self._unpacked > limit:
            raise self.fault(
                f"unpacks to more than {limit >> 20} MiB from {self.size:,} bytes; at most "
                f"{MAX_UNPACKED_RATIO} times its size, or {MAX_UNPACKED_BYTES >> 20} MiB, is taken",
                next_command="where it is meant to be so large, keep it unpacked: npy or jsonl",
            )

    def digest(self) -> str:
        """Return the SHA-256 of the file as it lies on disk."""
        with self._ask(lambda: self.path.open("rb")) as file:
            return str(self._ask(lambda: hashlib.file_digest(file, "sha256").hexdigest()))

    def _ask(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except OSError as error:
            raise DataError(
                f"{self.place}: cannot read {self.path}: {error.strerror or error}"
            ) from None


class _Reader(io.RawIOBase):
    """Bytes of a source file: counted where packed, reported on, failures named."""

    def __init__(self, source: SourceFile, raw: BinaryIO, stream: Any) -> None:
        self._source, self._raw, self._stream = source, raw, stream

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as there are bytes."""
        source = self._source
        try:
            data: bytes = self._stream.read(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise source.fault(f"is damaged gzip: {error}") from None
        except OSError as error:
            raise source.fault(f"cannot be read: {error.strerror or error}") from None
        buffer[: len(data)] = data
        if source.is_packed:
            source.spend(len(data))
        source.report(self._raw.tell() / max(source.size, 1))
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._raw.close()
        super().close()


# Writes every series of a file and returns what they are called, or nothing.
Parse = Callable[[SourceFile, SeriesWriter], Sequence[str]]


def open_parsed(
    name: str,
    path: Path,
    pool: MapPool,
    *,
    kind: str,
    parse: Parse,
    cache: Path,
    report: Report = ignore,
) -> DataSet:
    """Open a file through its parsed copy, which is made on first use.

    Args:
        name: "<domain>/<dataset>".
        path: the file.
        pool: keeps the maps of the whole corpus.
        kind: of format; part of the copy's name.
        parse: reads this kind.
        cache: folder of parsed copies.
        report: told the share that is parsed.

    Raises:
        DataError: the file cannot be read, what `parse` refuses, or the copy cannot be written.
    """
    source = SourceFile(name, path, report)
    digest = source.digest()
    folder = cache / f"{kind}-{digest}"
    if not folder.exists():
        _parse_once(source, folder, parse)
    try:
        names = _read_names(folder)
        return open_dataset(name, folder, pool, fingerprint=digest[:16], names=names)
    except DataError as error:
        # Only the parsed copy can be at fault here, and it can be made again.
        raise DataError(error.message, next_command=f"rm -r {folder}") from None


def _parse_once(source: SourceFile, folder: Path, parse: Parse) -> None:
    """Parse into a folder of our own and move it into place; the first of two writers wins."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with SeriesWriter(partial, dtype="float64") as writer:
            writer.finish(parse(source, writer))
        if not folder.exists():
            partial.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise DataError(
                f"{source.place}: cannot keep the parsed copy of {source.path} in "
                f"{folder.parent}: {error.strerror or error}",
                next_command="TSX_HOME=<a folder with room> tsx run ...",
            ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_names(folder: Path) -> list[str]:
    """Return what the series of a parsed copy are called; nothing where they have no names."""
    try:
        return msgspec.json.decode((folder / NAMES_NAME).read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"cannot read {folder / NAMES_NAME}: {error}") from None
