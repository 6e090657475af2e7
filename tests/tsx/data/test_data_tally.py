"""What is odd is counted right, however the points are cut into spans."""

from __future__ import annotations

import numpy as np
import pytest

from tsx.data import series as series_module
from tsx.data.series import MapPool, open_dataset
from tsx.data.tally import HUGE, Tally

pytestmark = pytest.mark.trainer

NAN, INF = float("nan"), float("inf")
SERIES = [
    [1, 2, 3, 4],
    [],
    [5, 5, 5, 5, 5, 5, 5],
    [7],
    [NAN, 7, 7, NAN, -INF],
    [NAN, NAN],
    [0, -2 * HUGE, 3 * HUGE, INF, 1, 2],
    [0, 0],
    [1, 2],
    [],
]


@pytest.fixture(params=[1, 2, 3, 5, 100])
def tally(request, tmp_path, make_set, monkeypatch):
    monkeypatch.setattr(series_module, "_CHUNK_POINTS", request.param)
    folder = make_set(tmp_path / "a" / "b", SERIES, dtype="float64", shards=3)
    dataset = open_dataset("a/b", folder, MapPool())
    spans = list(dataset.iter_spans())
    points = [value for series in SERIES for value in series]
    np.testing.assert_array_equal(np.concatenate([span.values for span in spans]), points)
    tally = Tally(dataset.length_S)
    for span in spans:
        tally.add(span)
    return tally


def test_everything_odd_is_counted(tally):
    assert (tally.nonfinite, tally.nonfinite_series) == (6, 3)
    assert tally.first_nonfinite[:2] == (4, 0)
    assert np.isnan(tally.first_nonfinite[2])
    assert (tally.constant, tally.constant_first) == (3, [2, 4, 7])
    assert (tally.huge, tally.first_huge, tally.largest) == (2, 6, 3 * HUGE)


def test_spans_undo_mean_and_std_of_each_series(tmp_path, make_set):
    scales = [{"mean": 10.0, "std": 2.0}, {}, {"mean": -1.0, "std": 0.5}]
    folder = make_set(tmp_path / "a", [[1, 2], [3], [4, 5]], scales=scales)
    (span,) = open_dataset("a/a", folder, MapPool()).iter_spans()
    assert span.values.tolist() == [12, 14, 3, 1, 1.5]


def test_series_that_overlap_are_read_one_by_one(tmp_path, make_set):
    folder = make_set(tmp_path / "a", [[1, 2, 3, 4]])
    meta = folder / "meta.json"
    meta.write_text(
        '{"num_sequences": 3, "dtype": "float32", "files": {"data-1-of-1.bin": 4}, "scales": ['
        '{"offset": 1, "length": 3}, {"offset": 0, "length": 2}, {"offset": 2, "length": 2}]}'
    )
    spans = list(open_dataset("a/a", folder, MapPool()).iter_spans())
    assert [span.first for span in spans] == [0, 1]
    assert [value for span in spans for value in span.values] == [2, 3, 4, 1, 2, 3, 4]
