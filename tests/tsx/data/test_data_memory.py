"""A million windows cost arrays: no object per window or per series is kept."""

from __future__ import annotations

import gc
import json
import tracemalloc

import numpy as np
import pytest

from tsx.config import DataConfig
from tsx.data.corpus import open_corpus

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    ("series", "points", "stride"), [(100, 10_512, 1), (200_000, 4, 1), (8, 64_000_000, 512)]
)
def test_index_costs_arrays(tmp_path, series, points, stride):
    folder = tmp_path / "corpus" / "a" / "b"
    folder.mkdir(parents=True)
    with (folder / "data-1-of-1.bin").open("wb") as shard:
        shard.truncate(series * points * 4)  # sparse: takes no room on disk
    scales = ", ".join(f'{{"offset": {i * points}, "length": {points}}}' for i in range(series))
    files = json.dumps({"data-1-of-1.bin": series * points})
    (folder / "meta.json").write_text(
        f'{{"num_sequences": {series}, "dtype": "float32", "files": {files}, "scales": [{scales}]}}'
    )
    config = DataConfig(path=str(folder), context_length=512, stride=stride)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        corpus = open_corpus(config, home=tmp_path)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    gc.collect()
    assert len(corpus.train) + len(corpus.val) >= 200_000
    assert len(gc.get_objects()) - objects < 5000
    assert kept < 1_000_000 + 90 * series
    last = corpus.train.get_batch(np.array([len(corpus.train) - 1]))
    assert last.input_BC.shape == (1, 512)
