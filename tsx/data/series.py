"""One data set: its shards memory-mapped, its series read by number, its fingerprint.

Most are a folder in the Time-300B layout, a user's own or the parsed copy of another format; an
.npy file is a single shard whose values begin behind a header.

Maps are opened when first touched and the least recently used are let go, so a corpus of
thousands of shards needs neither thousands of file descriptors nor the memory of all. Values come
out as float64, with the data set's own mean and std undone (x * std + mean).

Shapes: S series.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import mmap
import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tsx.data.meta import Floats, Ints, Meta, clip, read_meta
from tsx.data.record import offer_resume
from tsx.errors import DataError

META_NAME = "meta.json"
NAMES_NAME = "names.json"  # beside the meta of a parsed copy: what its series are called
_SAMPLE_BYTES = 4096  # read at head, middle and tail of a shard for the fingerprint
_CHUNK_POINTS = 1 << 20  # of a long series held as float64 at a time

Shard = npt.NDArray[Any]


class MapPool:
    """Memory maps of shards, the least recently used closed first. Safe across threads."""

    def __init__(self, capacity: int | None = None) -> None:
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A map keeps a descriptor open; leave most of them to everybody else.
        self._capacity = capacity or min(1024, max(16, soft_limit // 4))
        self._maps: OrderedDict[Path, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._maps)

    def clear(self) -> None:
        """Let all maps go, and with them the resident memory that their pages count as."""
        with self._lock:
            self._maps.clear()

    def get(self, path: Path, dtype: np.dtype[Any], size: int, start: int = 0) -> Shard:
        """Return the shard as a read-only array of `size` elements from byte `start` on.

        Raises:
            DataError: the file is gone, or is not of that size any more.
        """
        with self._lock:
            shard = self._maps.get(path)
            if shard is not None:
                self._maps.move_to_end(path)
                return shard
            shard = _map_shard(path, dtype, size, start)
            self._maps[path] = shard
            if len(self._maps) > self._capacity:
                self._maps.popitem(last=False)
            return shard


class Span(NamedTuple):
    """Points of neighbouring series, or a piece of a long one."""

    first: int  # series
    start: int  # point of the first series that the values begin with
    length_S: Ints  # points of each series
    values: Floats  # one after another


class DataSet:
    """The series of one folder in the Time-300B layout, or of one .npy file.

    Args:
        name: "<domain>/<dataset>".
        folder: of the shards.
        meta: what they hold.
        pool: keeps the maps of the whole corpus.
        fingerprint: 16 hex digits.
        start: bytes of each shard before its values.
        names: what the series are called, where they are columns of a table.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        meta: Meta,
        pool: MapPool,
        fingerprint: str,
        *,
        start: int = 0,
        names: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.domain = name.partition("/")[0]
        self.folder = folder
        self.fingerprint = fingerprint
        self.dtype = meta.dtype
        self.length_S = meta.length_S
        self._start = start
        self._names = names
        self._meta = meta
        self._pool = pool
        self._paths = [folder / shard for shard, _ in meta.shards]
        self._sizes = [size for _, size in meta.shards]
        self._starts = [0, *itertools.accumulate(self._sizes)][:-1]

    @property
    def place(self) -> str:
        """How errors name this data set."""
        return f"data set '{self.name}'"

    @property
    def num_series(self) -> int:
        """Number of series, those too short for a window included."""
        return len(self.length_S)

    @property
    def num_elements(self) -> int:
        """Number of values its shards hold, in a series or not."""
        return sum(self._sizes)

    def label(self, series: int) -> str:
        """Return how errors and reports call a series: by number, and by name where it has one."""
        name = f" {clip(repr(self._names[series]))}" if self._names else ""
        return f"series {series}{name}"

    def fill(self, out: Floats, series: int, start: int) -> None:
        """Write `len(out)` points of a series from `start` on into `out`.

        The caller keeps start + len(out) within the series.
        """
        meta = self._meta
        self._copy(out, int(meta.offset_S[series]) + start)
        if meta.mean_S is not None and meta.std_S is not None:
            out *= meta.std_S[series]
            out += meta.mean_S[series]

    def iter_chunks(self, series: int) -> Iterator[Floats]:
        """Yield a series in pieces of bounded size, in order."""
        length = int(self.length_S[series])
        for start in range(0, length, _CHUNK_POINTS):
            out = np.empty(min(_CHUNK_POINTS, length - start))
            self.fill(out, series, start)
            yield out

    def iter_spans(self) -> Iterator[Span]:
        """Yield every point once, in pieces of bounded size, short series many at a time."""
        meta, num_series = self._meta, self.num_series
        breaks = np.flatnonzero(meta.offset_S[1:] != (meta.offset_S + meta.length_S)[:-1]) + 1
        total_S = np.concatenate([[0], np.cumsum(meta.length_S)])
        first = 0
        while first < num_series:
            if meta.length_S[first] > _CHUNK_POINTS:
                start = 0
                for chunk in self.iter_chunks(first):
                    yield Span(first, start, np.array([len(chunk)]), chunk)
                    start += len(chunk)
                first += 1
                continue
            run = int(np.searchsorted(breaks, first, side="right"))
            last = int(breaks[run]) if run < len(breaks) else num_series
            fits = np.searchsorted(total_S, total_S[first] + _CHUNK_POINTS, side="right") - 1
            last = max(first + 1, min(last, int(fits)))
            length_S = meta.length_S[first:last]
            values = np.empty(int(length_S.sum()))
            self._copy(values, int(meta.offset_S[first]))
            if meta.mean_S is not None and meta.std_S is not None:
                values *= np.repeat(meta.std_S[first:last], length_S)
                values += np.repeat(meta.mean_S[first:last], length_S)
            yield Span(first, 0, length_S, values)
            first = last

    def check_finite(self) -> None:
        """Read every point once, through a small buffer, and refuse the first that is not finite.

        Raises:
            DataError: names the data set, the series, the position and the value.
        """
        if self.dtype.kind != "f":
            return
        for path, begin in zip(self._paths, self._starts, strict=True):
            with path.open("rb") as file:
                file.seek(self._start)
                while len(values := np.fromfile(file, self.dtype, _CHUNK_POINTS)):
                    bad = np.flatnonzero(~np.isfinite(values))
                    if len(bad):
                        self._blame(bad + begin, values[bad])
                    begin += len(values)

    def explain_nonfinite(self, series: int, position: int, value: float) -> DataError:
        """Return the error for a point that is not finite."""
        return DataError(
            f"{self.place}: {self.label(series)} is {value} at point {position} of "
            f"{self.length_S[series]}",
            next_command="add --allow-nonfinite to leave such points out, or "
            f"--set 'data.exclude=[\"{self.name}\"]'",
        )

    def _blame(self, bad: Ints, values: Shard) -> None:
        """Raise for the first series that holds one of these positions; gaps belong to none."""
        offset_S = self._meta.offset_S
        first_S = np.searchsorted(bad, offset_S)
        held = np.flatnonzero(first_S < np.searchsorted(bad, offset_S + self.length_S))
        if len(held):
            series, at = int(held[0]), int(first_S[held[0]])
            raise self.explain_nonfinite(series, int(bad[at] - offset_S[series]), float(values[at]))

    def _copy(self, out: Floats, position: int) -> None:
        """Copy elements from `position` of the joined shards on, across as many as it takes."""
        done, wanted = 0, len(out)
        shard = bisect.bisect_right(self._starts, position) - 1
        while done < wanted:
            values = self._pool.get(self._paths[shard], self.dtype, self._sizes[shard], self._start)
            begin = position + done - self._starts[shard]
            part = values[begin : begin + wanted - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1


def open_dataset(
    name: str, folder: Path, pool: MapPool, *, fingerprint: str = "", names: Sequence[str] = ()
) -> DataSet:
    """Open one folder of meta.json and shards; nothing but the meta is read.

    Args:
        name: "<domain>/<dataset>".
        folder: holds meta.json and its shards.
        pool: keeps the maps of the whole corpus.
        fingerprint: of what this folder was made from; default: of the folder itself.
        names: of the series.

    Raises:
        DataError: see `read_meta`; also a shard that is missing, or whose size on disk is not
            the one that the meta says.
    """
    place = f"data set '{name}'"
    meta = read_meta(folder / META_NAME, place=place)
    digest = hashlib.sha256(meta.digest.encode())
    for shard, size in meta.shards:
        path = folder / shard
        try:
            _check_size(path, size * meta.dtype.itemsize, place)
            if not fingerprint:
                digest.update(f"\n{shard} {size} {sample(path)}".encode())
        except OSError as error:
            raise DataError(f"{place}: cannot read shard {path}: {error.strerror}") from None
    return DataSet(name, folder, meta, pool, fingerprint or digest.hexdigest()[:16], names=names)


def _check_size(path: Path, expected: int, place: str) -> None:
    """Raise DataError unless the shard is a plain file of the expected size."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(
            f"{place}: shard {path} is missing", next_command=offer_resume(path)
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{place}: shard {path} is not a file")
    if status.st_size != expected:
        fault = "truncated" if status.st_size < expected else "longer than its meta says"
        raise DataError(
            f"{place}: shard {path} is {fault}: {status.st_size} bytes, expected {expected}"
        )


def sample(path: Path) -> str:
    """Return a digest of a shard's head, middle and tail.

    Meta and sizes alone would take two data sets with series of equal lengths for copies.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        tail = max(0, size - _SAMPLE_BYTES)
        for start in (0, tail // 2, tail):
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, start))
    return digest.hexdigest()


def _map_shard(path: Path, dtype: np.dtype[Any], size: int, start: int) -> Shard:
    """Map a shard read-only."""
    if size == 0:
        return np.empty(0, dtype)
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot map shard {path}: {error}") from None
    expected = start + size * dtype.itemsize
    if len(mapped) != expected:
        raise DataError(
            f"shard {path} changed while it was in use: {len(mapped)} bytes, expected {expected}"
        )
    return np.frombuffer(mapped, dtype, offset=start)
