"""Writes series in the Time-300B layout: raw shards and a meta.json, one series at a time.

Used for the demo corpus and for the parsed copies of other formats. Memory does not grow with the
number of points. Raises OSError as it comes; callers say what could not be written.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tsx.data.series import META_NAME, NAMES_NAME


class SeriesWriter:
    """Appends series to a folder; the meta is written by `finish`, without which nothing counts.

    Args:
        folder: made if it is not there.
        dtype: of the shards, "float32" for example.
        points_per_shard: where the next shard begins, in the middle of a series or not.
    """

    def __init__(self, folder: Path, *, dtype: str, points_per_shard: int = 1 << 30) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._dtype = np.dtype(dtype)
        self._limit = points_per_shard
        self._sizes = [0]
        self._length_S = array("q")
        self._scale_S: dict[int, tuple[float, float]] = {}
        self._file: BinaryIO = self._part(0).open("wb")

    def __enter__(self) -> SeriesWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(
        self, values: npt.NDArray[Any], *, mean: float | None = None, std: float | None = None
    ) -> None:
        """Write one series; with `mean` and `std` the reader gives values * std + mean."""
        if mean is not None and std is not None:
            self._scale_S[len(self._length_S)] = (mean, std)
        self.append_pieces([values])

    def append_pieces(self, pieces: Iterable[npt.NDArray[Any]]) -> None:
        """Write one series that comes in pieces."""
        length = 0
        for piece in pieces:
            self._write(piece)
            length += len(piece)
        self._length_S.append(length)

    def finish(self, names: Sequence[str] = ()) -> None:
        """Give the shards their names and write meta.json.

        Args:
            names: of the series, one each, where they have any.
        """
        self._file.close()
        count = len(self._sizes)
        shards = [f"data-{index + 1}-of-{count}.bin" for index in range(count)]
        for index, shard in enumerate(shards):
            self._part(index).rename(self.folder / shard)
        files = dict(zip(shards, self._sizes, strict=True))
        with (self.folder / META_NAME).open("w", encoding="utf-8") as file:
            file.write(
                f'{{"num_sequences": {len(self._length_S)}, "dtype": "{self._dtype.name}", '
                f'"files": {json.dumps(files)}, "scales": ['
            )
            offset = 0
            for series, length in enumerate(self._length_S):
                file.write(", " if series else "")
                file.write(f'{{"offset": {offset}, "length": {length}')
                if series in self._scale_S:
                    mean, std = self._scale_S[series]
                    file.write(f', "mean": {mean!r}, "std": {std!r}')
                file.write("}")
                offset += length
            file.write("]}")
        if names:
            (self.folder / NAMES_NAME).write_text(json.dumps(list(names)), encoding="utf-8")

    def _write(self, values: npt.NDArray[Any]) -> None:
        """Write points, and begin the next shard wherever one is full."""
        points = np.ascontiguousarray(values, self._dtype.newbyteorder("<"))
        while len(points):
            room = self._limit - self._sizes[-1]
            if room == 0:
                self._file.close()
                self._sizes.append(0)
                self._file = self._part(len(self._sizes) - 1).open("wb")
                continue
            self._file.write(points[:room].tobytes())
            self._sizes[-1] += len(points[:room])
            points = points[room:]

    def _part(self, index: int) -> Path:
        return self.folder / f"shard-{index}.part"
