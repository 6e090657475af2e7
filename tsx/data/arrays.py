"""NumPy files: npy (memory-mapped where it lies in order), npz, and npy packed with gzip.

One dimension is one series, two dimensions are a series for each row. Numbers of either byte
order. Pickled objects are never read. No header is believed: an array has as many values as there
are bytes, or it is refused.

Shapes: R rows (series), n stored columns of an array in Fortran order.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import shlex
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from tsx.data.layout import SeriesWriter
from tsx.data.meta import DTYPES, Meta, clip
from tsx.data.parsed import PIECE_POINTS, Report, SourceFile, ignore, open_parsed
from tsx.data.series import DataSet, MapPool, sample
from tsx.data.table import TableWriter

_HEAD_BYTES = 16 << 10  # more than any header of plain numbers takes


class _Header(NamedTuple):
    """What an npy header says, checked; it is not compared with what follows it."""

    dtype: np.dtype[Any]
    rows: int
    points: int  # of each row
    by_column: bool  # stored column by column (Fortran order)
    size: int  # bytes of the header itself

    @property
    def num_values(self) -> int:
        return self.rows * self.points

    @property
    def num_bytes(self) -> int:
        return self.num_values * self.dtype.itemsize


def open_npy(
    name: str, path: Path, pool: MapPool, *, cache: Path, report: Report = ignore
) -> DataSet:
    """Open an .npy file where it lies; one in Fortran order through a parsed copy.

    Raises:
        DataError: no npy file, no one or two dimensions of numbers, or another size than its
            header says.
    """
    source = SourceFile(name, path, report)
    with source.open() as file:
        header = _read_header(file.read(_HEAD_BYTES), source, "")
    expected = header.size + header.num_bytes
    if source.size != expected:
        fault = "truncated" if source.size < expected else "longer than its header says"
        raise source.fault(f"is {fault}: {source.size} bytes, expected {expected}")
    if header.by_column:
        return open_parsed(
            name, path, pool, kind="npy", parse=parse_npy, cache=cache, report=report
        )
    digest = hashlib.sha256(f"npy {header} {sample(path)}".encode()).hexdigest()
    meta = Meta(
        dtype=header.dtype,
        shards=((path.name, header.num_values),),
        offset_S=np.arange(header.rows, dtype=np.int64) * header.points,
        length_S=np.full(header.rows, header.points, np.int64),
        mean_S=None,
        std_S=None,
        digest=digest,
    )
    return DataSet(name, path.parent, meta, pool, digest[:16], start=header.size)


def parse_npy(source: SourceFile, writer: SeriesWriter) -> Sequence[str]:
    """Write the array of a file that cannot be mapped as it is.

    Raises:
        DataError: as `open_npy`.
    """
    with source.open() as file:
        _write_array(file, source, writer, "")
    return ()


def parse_npz(source: SourceFile, writer: SeriesWriter) -> Sequence[str]:
    """Write every array of the archive, in its order.

    Raises:
        DataError: as `open_npy`, with the array's name; or no zip archive, or a damaged one.
    """
    try:
        with zipfile.ZipFile(source.path) as archive:
            members = archive.infolist()
            if not members:
                raise source.fault("holds no array")
            for number, member in enumerate(members):
                what = f"array {clip(repr(member.filename.removesuffix('.npy')))}"
                with archive.open(member) as packed:
                    file = io.BufferedReader(_Unpacked(source, packed), 1 << 20)
                    _write_array(file, source, writer, what)
                source.report((number + 1) / len(members))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise source.fault(f"is no readable npz: {clip(error)}") from None
    return ()


class _Unpacked(io.RawIOBase):
    """Bytes of one member of an archive, counted."""

    def __init__(self, source: SourceFile, packed: Any) -> None:
        self._source, self._packed = source, packed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._packed.read(len(buffer))
        except (OSError, lzma.LZMAError) as error:  # bzip2 says OSError of damaged data
            raise self._source.fault(f"is no readable npz: {clip(error)}") from None
        self._source.spend(len(data))
        buffer[: len(data)] = data
        return len(data)


def _read_header(head: bytes, source: SourceFile, what: str) -> _Header:
    """Read a header from the first bytes; `what` names an array of an archive."""
    where = f"holds {what}, which " if what else ""
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise ValueError(f"version {version} is for records")
        shape, by_column, dtype = reader(file)
    except Exception as error:  # numpy evaluates the text and lets any of Python's errors through
        fault = f"is no npy: {clip(error)}" if head else "is empty"
        raise source.fault(where + fault) from None
    _check_dtype(dtype, source, where)
    if len(shape) not in (1, 2) or min(shape, default=0) < 0:
        raise source.fault(
            f"{where}has shape {clip(shape)}; expected one series, or two dimensions with a "
            "series for each row",
            next_command="reshape it: array.reshape(-1, array.shape[-1])",
        )
    rows, points = (1, shape[0]) if len(shape) == 1 else shape
    if rows and not points:
        raise source.fault(f"{where}has shape {clip(shape)}: no points")
    by_column = by_column and rows > 1 and points > 1  # else both orders are the same
    return _Header(dtype, int(rows), int(points), by_column, file.tell())


def _check_dtype(dtype: np.dtype[Any], source: SourceFile, where: str) -> None:
    """Raise DataError unless the values are plain numbers."""
    if dtype.hasobject:
        path = shlex.quote(str(source.path))
        raise source.fault(
            f"{where}holds pickled Python objects (dtype object), which run code when they are "
            "read; they never are",
            next_command='where you trust the file: python -c "import sys, numpy; '
            "numpy.savez('series.npz', *numpy.load(sys.argv[1], allow_pickle=True))\" "
            f"{path}",
        )
    if dtype.newbyteorder("=").name not in DTYPES:
        raise source.fault(
            f"{where}holds dtype {clip(dtype)}; valid: {', '.join(DTYPES)}",
            next_command="save it as numbers: array.astype('float64')",
        )


def _write_array(
    file: BinaryIO | io.BufferedReader, source: SourceFile, writer: SeriesWriter, what: str
) -> None:
    """Write the rows of one array that is read from its header to its last byte."""
    head = file.read(_HEAD_BYTES)
    header = _read_header(head, source, what)
    values = _Values(file, head[header.size :], header, source, what)
    if header.by_column:
        with TableWriter(writer) as table:
            step = max(1, PIECE_POINTS // header.rows)
            for first in range(0, header.points, step):
                count = min(step, header.points - first)
                table.append(values.take(count * header.rows).reshape(count, -1).T)
            table.finish()
    elif header.points > PIECE_POINTS:
        for _ in range(header.rows):
            writer.append_pieces(values.iter_pieces(header.points))
    else:
        step = max(1, PIECE_POINTS // header.points) if header.rows else 1
        for first in range(0, header.rows, step):
            count = min(step, header.rows - first)
            for row in values.take(count * header.points).reshape(count, -1):
                writer.append(row)
    values.finish()


class _Values:
    """The values behind a header, taken in order; memory follows what is there, not the claim."""

    def __init__(
        self, file: Any, rest: bytes, header: _Header, source: SourceFile, what: str
    ) -> None:
        self._file = file
        self._rest = rest
        self._header = header
        self._source = source
        self._what = f"{what} of it" if what else "it"
        self._num_read = 0

    def take(self, count: int) -> npt.NDArray[Any]:
        """Return the next `count` values."""
        return np.concatenate([*self.iter_pieces(count)] or [np.empty(0)])

    def iter_pieces(self, count: int) -> Iterator[npt.NDArray[Any]]:
        """Yield the next `count` values in pieces of bounded size.

        Raises:
            DataError: the file ends before.
        """
        dtype = self._header.dtype
        for start in range(0, count, PIECE_POINTS):
            wanted = min(PIECE_POINTS, count - start) * dtype.itemsize
            data = self._rest[:wanted]
            self._rest = self._rest[wanted:]
            data += self._file.read(wanted - len(data))
            self._num_read += len(data)
            if len(data) < wanted:
                raise self._source.fault(
                    f"ends too early: {self._what} has {self._num_read} bytes of "
                    f"{self._header.num_bytes}"
                )
            yield np.frombuffer(data, dtype)

    def finish(self) -> None:
        """Raise DataError where there is more than the header says."""
        if self._rest or self._file.read(1):
            raise self._source.fault(f"is longer than the header of {self._what} says")
