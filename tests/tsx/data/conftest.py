"""Hand-made data sets in the Time-300B layout, written without the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
def real_corpus() -> Path:
    """Return the folder of real series, or skip where it is missing."""
    if not REAL.is_dir():
        pytest.skip(f"no real series at {REAL}")
    return REAL
