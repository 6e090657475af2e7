"""Series and windows against what the official readers made of the same files.

`tests/assets/official/corpus` and the golden beside it were written by `benchmarks/parity.py
--write-golden`, which also compares whole corpora where the official code is at hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tsx.config import DataConfig, Scaling
from tsx.data.series import MapPool, open_dataset
from tsx.data.windows import Part, WindowSet

pytestmark = pytest.mark.trainer

OFFICIAL = Path(__file__).parents[2] / "assets" / "official"
CONTEXT, STRIDE = 16, 8
SCALED = 3  # the series whose meta.json has a mean and a std


@pytest.fixture(scope="module")
def golden():
    return load_file(OFFICIAL / "golden.safetensors")


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("other/tiny", OFFICIAL / "corpus" / "other" / "tiny", MapPool())


def test_every_series_is_the_official_one(golden, dataset):
    assert dataset.num_series == sum(name.startswith("series.") for name in golden) == 7
    for index in range(dataset.num_series):
        found = np.zeros(int(dataset.length_S[index]))
        dataset.fill(found, index, 0)
        # The official reader undoes mean and std in fp32, ours in fp64: rounding, of one series.
        expected = golden[f"series.{index}"]
        np.testing.assert_allclose(found, expected, rtol=1e-7 if index == SCALED else 0)


def test_every_window_and_mask_is_the_official_one(golden, dataset):
    config = DataConfig(context_length=CONTEXT, stride=STRIDE, scaling=Scaling.NONE)
    windows = WindowSet([Part(dataset, np.flatnonzero(dataset.length_S > 1))], config)
    assert len(windows) == len(golden["windows.labels"]) == 20
    batch = windows.get_batch(np.arange(len(windows)))
    scaled_B = np.repeat([False, True, False], [3, 11, 6])
    for found, expected in (
        (batch.input_BC, golden["windows.input_ids"]),
        (batch.target_BC, golden["windows.labels"]),
    ):
        np.testing.assert_array_equal(found[~scaled_B], expected[~scaled_B])
        np.testing.assert_allclose(found[scaled_B], expected[scaled_B], rtol=1e-7)
    np.testing.assert_array_equal(batch.target_mask_BC, golden["windows.loss_masks"])
    assert not batch.target_mask_BC.all()
