"""Rows into series: what comes row by row is written as one series for each column.

The turn is made on disk, in a file of the parsed copy's own folder, so memory holds a few blocks
whatever the table's size.

Shapes: K columns, N rows of a block, G columns of a group.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tsx.data.layout import SeriesWriter
from tsx.data.meta import Floats
from tsx.data.parsed import PIECE_POINTS


class TableWriter:
    """Takes blocks of rows and, in the end, writes every column as one series."""

    def __init__(self, writer: SeriesWriter) -> None:
        self._writer = writer
        self._file = tempfile.TemporaryFile(dir=writer.folder)  # noqa: SIM115 - closed by __exit__
        self._waiting: list[Floats] = []
        self._num_waiting = 0
        self._rows: list[int] = []  # of each block in the file
        self._num_columns = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, columns: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]) -> None:
        """Add rows, given as equally long columns; as many columns every time."""
        block_KN = np.asarray(columns, np.float64)
        self._num_columns = len(block_KN)
        self._waiting.append(block_KN)
        self._num_waiting += block_KN.size
        if self._num_waiting >= PIECE_POINTS:
            self._flush()

    def finish(self) -> int:
        """Write the series and return how many rows there were."""
        self._flush()
        num_rows = sum(self._rows)
        step = max(1, 2 * PIECE_POINTS // max(num_rows, 1))
        for first in range(0, self._num_columns, step):
            count = min(step, self._num_columns - first)
            blocks = self._iter_blocks(first, count)
            if count == 1:
                self._writer.append_pieces(block_GN[0] for block_GN in blocks)
            else:
                for column in np.concatenate(list(blocks), axis=1):
                    self._writer.append(column)
        return num_rows

    def _flush(self) -> None:
        if self._num_waiting:
            block_KN = np.concatenate(self._waiting, axis=1)
            self._file.write(block_KN.tobytes())
            self._rows.append(block_KN.shape[1])
        self._waiting, self._num_waiting = [], 0

    def _iter_blocks(self, first: int, count: int) -> Iterator[Floats]:
        """Yield the same few columns of every block, [G, N]."""
        begin = 0
        for rows in self._rows:
            self._file.seek(begin + first * rows * 8)
            yield np.frombuffer(self._file.read(count * rows * 8)).reshape(count, rows)
            begin += self._num_columns * rows * 8
