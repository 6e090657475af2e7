"""Windows against a plain reference written from the rules, scaling, masks and refusals."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from tsx.config import DataConfig, Scaling, ScalingScope
from tsx.data import series as series_module
from tsx.data.series import MapPool, open_dataset
from tsx.data.windows import Part, WindowSet
from tsx.errors import DataError

pytestmark = pytest.mark.trainer


def scale(values, basis, scaling):
    """(x - mean) / std or x / max|x| of `basis`, as the reference has it."""
    if scaling == "none" or not basis:
        return list(values)
    if scaling == "max":
        top = max(abs(value) for value in basis) or 1.0
        return [value / top for value in values]
    mean, std = statistics.fmean(basis), statistics.pstdev(basis)
    return [(value - mean) / (std or 1.0) for value in values]


def plain_windows(series, context, stride, scaling, scope):
    """List (input, target, input mask, target mask) one by one."""
    windows = []
    for values in series:
        if len(values) < 2:
            continue
        starts = [0, *range(stride, len(values) - (context + 1) + 1, stride)]
        for start in starts:
            window = values[start : start + context + 1]
            basis = values if scope == "series" else window[:context]
            scaled = scale(window, basis, scaling)
            padding = [0.0] * (context + 1 - len(window))
            mask = [True] * len(window) + [False] * len(padding)
            scaled += padding
            windows.append((scaled[:-1], scaled[1:], mask[:-1], mask[1:]))
    return windows


def open_windows(folders, **keys):
    pool = MapPool()
    parts = []
    for index, folder in enumerate(folders):
        dataset = open_dataset(f"d{index}/x", folder, pool)
        parts.append(Part(dataset, np.flatnonzero(dataset.length_S > 1)))
    return WindowSet(parts, DataConfig(**keys))


def draw_series(rng):
    lengths = [0, 1, 2, 3, rng.randint(2, 9), rng.randint(10, 60), rng.randint(60, 300)]
    rng.shuffle(lengths)
    return [[round(rng.gauss(5, 30), 3) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("scope", ["series", "context"])
@pytest.mark.parametrize("scaling", ["zero", "max", "none"])
@pytest.mark.parametrize("case", range(4))
def test_equals_the_plain_reference(tmp_path, make_set, case, scaling, scope):
    rng = random.Random(case)
    context, stride = rng.choice([1, 4, 16, 33]), rng.choice([1, 5, 16, 64])
    every = [draw_series(rng), draw_series(rng)]
    folders = [
        make_set(tmp_path / str(index), series, shards=rng.randint(1, 5), dtype="float64")
        for index, series in enumerate(every)
    ]
    expected = [
        window
        for series in every
        for window in plain_windows(series, context, stride, scaling, scope)
    ]
    windows = open_windows(
        folders,
        context_length=context,
        stride=stride,
        scaling=Scaling(scaling),
        scaling_scope=ScalingScope(scope),
    )
    assert len(windows) == len(expected)
    order = list(range(len(expected)))
    rng.shuffle(order)
    batch = windows.get_batch(np.array(order))
    names = ("input_BC", "target_BC", "input_mask_BC", "target_mask_BC")
    for column, name in enumerate(names):
        found = getattr(batch, name)
        want = np.array([expected[index][column] for index in order])
        np.testing.assert_allclose(found, want, rtol=2e-6, atol=2e-6, err_msg=name)


def test_types_shapes_and_memory_order(tmp_path, make_set):
    folder = make_set(tmp_path / "a", [[1, 2, 3, 4, 5, 6]])
    batch = open_windows([folder], context_length=4, stride=1).get_batch(np.array([0, 1]))
    for array, dtype in (
        (batch.input_BC, np.float32),
        (batch.target_BC, np.float32),
        (batch.input_mask_BC, np.bool_),
        (batch.target_mask_BC, np.bool_),
    ):
        assert array.shape == (2, 4)
        assert array.dtype == dtype
        assert array.flags.c_contiguous


@pytest.mark.parametrize(
    ("length", "count"), [(2, 1), (8, 1), (9, 1), (11, 1), (12, 2), (14, 2), (15, 3), (16, 3)]
)
def test_count_of_windows(tmp_path, make_set, length, count):
    folder = make_set(tmp_path / "a", [list(range(length))])
    assert len(open_windows([folder], context_length=8, stride=3)) == count


def test_short_series_is_padded_on_the_right(tmp_path, make_set):
    folder = make_set(tmp_path / "a", [[3, 4, 5]])
    windows = open_windows([folder], context_length=5, scaling=Scaling.NONE)
    batch = windows.get_batch(np.array([0]))
    assert batch.input_BC.tolist() == [[3, 4, 5, 0, 0]]
    assert batch.input_mask_BC.tolist() == [[True, True, True, False, False]]
    assert batch.target_BC.tolist() == [[4, 5, 0, 0, 0]]
    assert batch.target_mask_BC.tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize("scope", list(ScalingScope))
@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -7.0, 0.0])
def test_constant_series_is_only_centred(tmp_path, make_set, value, scope):
    folder = make_set(tmp_path / "a", [[value] * 1001])
    windows = open_windows([folder], context_length=1000, scaling_scope=scope)
    assert np.abs(windows.get_batch(np.array([0])).input_BC).max() == 0.0


def test_zero_series_under_max_is_unchanged(tmp_path, make_set):
    folder = make_set(tmp_path / "a", [[0.0] * 5])
    windows = open_windows([folder], context_length=4, scaling=Scaling.MAX)
    assert windows.get_batch(np.array([0])).input_BC.tolist() == [[0.0] * 4]


@pytest.mark.parametrize("scaling", [Scaling.ZERO, Scaling.MAX])
def test_context_scaling_never_sees_what_comes_after(tmp_path, make_set, scaling):
    keys = {"context_length": 4, "scaling": scaling, "scaling_scope": ScalingScope.CONTEXT}
    one = make_set(tmp_path / "a", [[1, 2, 4, 3, 9, 2]])
    two = make_set(tmp_path / "b", [[1, 2, 4, 3, -50, 700]])
    inputs = [
        open_windows([folder], **keys).get_batch(np.array([0])).input_BC for folder in (one, two)
    ]
    np.testing.assert_array_equal(*inputs)


def test_statistics_of_a_series_in_pieces_are_those_of_the_whole(tmp_path, make_set, monkeypatch):
    values = np.random.default_rng(3).normal(1e5, 2, 1000).tolist()
    folder = make_set(tmp_path / "a", [values], dtype="float64", shards=3)
    whole = open_windows([folder], context_length=999).get_batch(np.array([0])).input_BC
    monkeypatch.setattr(series_module, "_CHUNK_POINTS", 7)
    pieces = open_windows([folder], context_length=999).get_batch(np.array([0])).input_BC
    np.testing.assert_allclose(pieces, whole, rtol=1e-6, atol=1e-6)
    assert abs(float(whole.std()) - 1) < 0.01


def test_large_offset_keeps_its_signal(tmp_path, make_set):
    """In float32 a mean near 1e6 would be off by a sixteenth."""
    values = [1e6 + (index % 2) * 0.25 for index in range(64)]
    folder = make_set(tmp_path / "a", [values])
    batch = open_windows([folder], context_length=63).get_batch(np.array([0]))
    np.testing.assert_allclose(np.abs(batch.input_BC), 1.0, rtol=1e-6)


@pytest.mark.parametrize("scaling", list(Scaling))
@pytest.mark.parametrize("scope", list(ScalingScope))
def test_nonfinite_is_refused_by_name(tmp_path, make_set, scaling, scope):
    folder = make_set(tmp_path / "a", [[1, 2, 3], [4, 5, float("nan"), 7]])
    windows = open_windows(
        [folder], context_length=2, stride=1, scaling=scaling, scaling_scope=scope
    )
    windows.get_batch(np.array([0]))
    with pytest.raises(DataError, match="'d0/x': series 1 is nan at point 2 of 4"):
        windows.get_batch(np.array([0, 1]))


@pytest.mark.parametrize("scope", list(ScalingScope))
def test_nonfinite_is_masked_where_allowed(tmp_path, make_set, scope):
    inf = float("inf")
    folder = make_set(tmp_path / "a", [[1, float("nan"), 3, inf, 2, -inf]])
    windows = open_windows([folder], context_length=5, scaling_scope=scope, allow_nonfinite=True)
    batch = windows.get_batch(np.array([0]))
    root = math.sqrt(1.5)
    np.testing.assert_allclose(batch.input_BC, [[-root, 0, root, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(batch.target_BC, [[0, root, 0, 0, 0]], rtol=1e-6)
    assert batch.input_mask_BC.tolist() == [[True, False, True, False, True]]
    assert batch.target_mask_BC.tolist() == [[False, True, False, True, False]]


@pytest.mark.parametrize("scope", list(ScalingScope))
def test_nothing_finite_at_all_is_all_masked(tmp_path, make_set, scope):
    folder = make_set(tmp_path / "a", [[float("nan")] * 4])
    windows = open_windows([folder], context_length=3, scaling_scope=scope, allow_nonfinite=True)
    batch = windows.get_batch(np.array([0]))
    assert not batch.target_mask_BC.any()
    assert batch.input_BC.tolist() == [[0, 0, 0]]


def test_values_beyond_float32_are_refused(tmp_path, make_set):
    folder = make_set(tmp_path / "a", [[1.0, 1e300, 2.0]], dtype="float64")
    windows = open_windows([folder], context_length=2, scaling=Scaling.NONE)
    with pytest.raises(DataError, match="series 0 does not fit float32 at point 1"):
        windows.get_batch(np.array([0]))


@pytest.mark.parametrize("index", [-1, 3, 2**40])
def test_number_out_of_range(tmp_path, make_set, index):
    windows = open_windows([make_set(tmp_path / "a", [[1, 2, 3]] * 3)], context_length=4)
    with pytest.raises(IndexError, match=f"window {index} of 3"):
        windows.get_batch(np.array([0, index]))


def test_description_adds_up(tmp_path, make_set):
    folders = [
        make_set(tmp_path / "a", [list(range(20)), [1], [2, 3]]),
        make_set(tmp_path / "b", [list(range(9))]),
    ]
    windows = open_windows(folders, context_length=4, stride=4)
    assert windows.domains == ("d0", "d1")
    assert windows.describe() == {
        "series": 3,
        "points": 31,
        "windows": 7,
        "domains": {
            "d0": {"series": 2, "points": 22, "windows": 5},
            "d1": {"series": 1, "points": 9, "windows": 2},
        },
    }
