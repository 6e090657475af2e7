"""Do our readers give what the official ones give? Part of `python -m benchmarks.parity --corpus`.

Every series, window and mask of a corpus in the Time-300B layout. The official `zero` scaling
takes mean and deviation in the data's own fp32, ours in fp64. So windows are compared unscaled, and
with our scaling handed to the official data set, to the last bit; and with its own, to rounding.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsx.config import DataConfig, Scaling
from tsx.data.catalog import Entry, list_entries
from tsx.data.scaling import SeriesScaler
from tsx.data.series import DataSet, MapPool, open_dataset
from tsx.data.windows import Part, WindowSet

CONTEXT, STRIDE = 512, 512
GOLDEN_CONTEXT, GOLDEN_STRIDE = 16, 8
GOLDEN_LENGTHS = (30, 1, 2, 100, 17, 16, 41)
BATCH = 256


def compare_readers(corpus: Path) -> Iterator[tuple[str, str, float, float]]:
    """Yield case, what was compared, the largest difference and its limit."""
    folder = importlib.import_module("time_moe.datasets.time_moe_dataset").TimeMoEDataset
    for entry in list_entries(corpus):
        ours = open_dataset(entry.name, entry.path, MapPool())
        theirs = folder(str(entry.path))
        yield entry.name, f"{len(theirs)} series", _compare_series(ours, theirs), 0.0
        yield from _compare_windows(entry, ours, folder)


def make_golden_windows(folder: Path) -> dict[str, torch.Tensor]:
    """Write a tiny data set with series across shards; return the official series and windows."""
    folder.mkdir(parents=True, exist_ok=True)
    points = np.random.default_rng(3).normal(50, 9, sum(GOLDEN_LENGTHS)).astype(np.float32)
    offsets = np.cumsum((0, *GOLDEN_LENGTHS[:-1])).tolist()
    scales = [
        {"offset": offset, "length": length}
        for offset, length in zip(offsets, GOLDEN_LENGTHS, strict=True)
    ]
    scales[3] |= {"mean": 3.25, "std": 0.5}
    names = [f"data-{index}-of-3.bin" for index in (1, 2, 3)]
    shards = np.split(points, [50, 120])
    for name, shard in zip(names, shards, strict=True):
        shard.tofile(folder / name)
    meta = {
        "num_sequences": len(scales),
        "dtype": "float32",
        "files": {name: len(shard) for name, shard in zip(names, shards, strict=True)},
        "scales": scales,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    module = importlib.import_module("time_moe.datasets.time_moe_dataset")
    theirs = module.TimeMoEDataset(str(folder))
    module = importlib.import_module("time_moe.datasets.time_moe_window_dataset")
    windows = module.TimeMoEWindowDataset(theirs, GOLDEN_CONTEXT, stride=GOLDEN_STRIDE)
    items = list(windows)
    tensors = {
        f"windows.{key}": torch.from_numpy(np.stack([item[key] for item in items]))
        for key in ("input_ids", "labels", "loss_masks")
    }
    return tensors | {
        f"series.{index}": torch.from_numpy(np.array(series, np.float64))
        for index, series in enumerate(theirs)
    }


def _compare_series(ours: DataSet, theirs: Any) -> float:
    """Return the largest difference of any point of any series; inf where lengths differ."""
    if ours.num_series != len(theirs):
        return float("inf")
    return max(_gap(_read(ours, index), theirs[index]) for index in range(ours.num_series))


def _compare_windows(
    entry: Entry, ours: DataSet, folder: Any
) -> Iterator[tuple[str, str, float, float]]:
    """Compare windows and masks under each way to scale."""
    scaler = SeriesScaler(ours, Scaling.ZERO, allow_nonfinite=False)
    # The official data set hands a series to its scaler without its number: found by content.
    known = {_key(_read(ours, index)): scaler.get(index) for index in range(ours.num_series)}

    def scale(series: Any) -> Any:
        shift, size = known[_key(np.asarray(series))]
        return (np.asarray(series, np.float64) - shift) / size

    cases = (
        ("unscaled", Scaling.NONE, None, 0.0),
        ("our scaling", Scaling.ZERO, scale, 0.0),
        ("official scaling, in fp32", Scaling.ZERO, "zero", 2e-6),
    )
    for what, scaling, method, limit in cases:
        gap, count = _compare_set(ours, scaling, folder(str(entry.path), method))
        yield entry.name, f"{count} windows and their masks, {what}", gap, limit


def _compare_set(ours: DataSet, scaling: Scaling, theirs: Any) -> tuple[float, int]:
    """Return the largest difference of inputs, targets and masks, and how many windows there are.

    A mask that differs anywhere counts as 1, another number of windows as infinite.
    """
    module = importlib.import_module("time_moe.datasets.time_moe_window_dataset")
    official = module.TimeMoEWindowDataset(theirs, context_length=CONTEXT, stride=STRIDE)
    config = DataConfig(context_length=CONTEXT, stride=STRIDE, scaling=scaling)
    windows = WindowSet([Part(ours, np.flatnonzero(ours.length_S > 1))], config)
    if len(windows) != len(official):
        return float("inf"), len(windows)
    gap = 0.0
    for start in range(0, len(windows), BATCH):
        index_B = np.arange(start, min(start + BATCH, len(windows)))
        batch = windows.get_batch(index_B)
        items = [official[int(index)] for index in index_B]
        for found, key in (
            (batch.input_BC, "input_ids"),
            (batch.target_BC, "labels"),
            (batch.target_mask_BC, "loss_masks"),
        ):
            gap = max(gap, _gap(found, np.stack([item[key] for item in items])))
    return gap, len(windows)


def _read(dataset: DataSet, index: int) -> Any:
    """Return one series, whole."""
    out = np.zeros(int(dataset.length_S[index]))
    dataset.fill(out, index, 0)
    return out


def _key(series: Any) -> bytes:
    return np.asarray(series, np.float32).tobytes()


def _gap(a: Any, b: Any) -> float:
    """Return the largest difference, inf where shapes differ."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape:
        return float("inf")
    return float(np.abs(left - right).max(initial=0.0))
