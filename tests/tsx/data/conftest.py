"""Hand-made data sets in the Time-300B layout, written without the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsx.data.formats import open_series
from tsx.data.series import DataSet, MapPool

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "mini300b"

MakeSet = Callable[..., Path]


@pytest.fixture
def make_set() -> MakeSet:
    """Return a writer: folder, series, number of shards, dtype, extra keys per scale."""

    def write(
        folder: Path,
        series: Sequence[Sequence[float]],
        *,
        shards: int = 1,
        dtype: str = "float32",
        scales: Sequence[dict[str, Any]] = (),
    ) -> Path:
        folder.mkdir(parents=True)
        joined = np.concatenate([np.asarray(one, np.dtype(dtype)) for one in series])
        files = {}
        for index, part in enumerate(np.array_split(joined, shards)):
            name = f"data-{index + 1}-of-{shards}.bin"
            (folder / name).write_bytes(part.tobytes())
            files[name] = len(part)
        offset, entries = 0, []
        for index, one in enumerate(series):
            extra = scales[index] if scales else {}
            entries.append({"offset": offset, "length": len(one), **extra})
            offset += len(one)
        meta = {
            "num_sequences": len(series),
            "dtype": dtype,
            "files": files,
            "scales": entries,
        }
        (folder / "meta.json").write_text(json.dumps(meta))
        return folder

    return write


@pytest.fixture
def open_file(tmp_path: Path) -> Callable[..., DataSet]:
    """Return a function that writes bytes to a file and opens it as a data set."""

    def open_(name: str, content: bytes | str) -> DataSet:
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return open_series(f"files/{name}", path, MapPool(), cache=tmp_path / "cache")

    return open_


@pytest.fixture
def read() -> Callable[[DataSet], list[list[float]]]:
    """Return a function from a data set to the points of all its series."""

    def read_all(dataset: DataSet) -> list[list[float]]:
        return [
            [value for chunk in dataset.iter_chunks(series) for value in chunk.tolist()]
            for series in range(dataset.num_series)
        ]

    return read_all


@pytest.fixture
def real_corpus() -> Path:
    """Return the folder of real series, or skip where it is missing."""
    if not REAL.is_dir():
        pytest.skip(f"no real series at {REAL}")
    return REAL
