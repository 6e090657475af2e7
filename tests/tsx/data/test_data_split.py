"""Validation by series: disjoint, stable, about the share asked for."""

from __future__ import annotations

import numpy as np
import pytest

from tsx.data.split import hold_out

pytestmark = pytest.mark.trainer


def every(*counts):
    return [np.ones(count, bool) for count in counts]


def test_share_is_about_what_was_asked():
    held = hold_out(["a/b", "c/d"], every(20_000, 5000), 0.1)
    assert [len(mask) for mask in held] == [20_000, 5000]
    assert 0.09 < held[0].mean() < 0.11
    assert 0.08 < held[1].mean() < 0.12


def test_growing_corpus_moves_no_series():
    before = hold_out(["a/b", "c/d"], every(500, 300), 0.05)
    after = hold_out(["a/b", "a/new", "c/d"], every(900, 700, 300), 0.05)
    assert np.array_equal(after[0][:500], before[0])
    assert np.array_equal(after[2], before[1])


def test_larger_share_keeps_what_was_held_out():
    small, large = (hold_out(["a/b"], every(2000), share)[0] for share in (0.02, 0.2))
    assert small.any()
    assert not (small & ~large).any()


def test_data_sets_of_equal_length_are_split_apart():
    held = hold_out(["a/b", "a/c"], every(1000, 1000), 0.2)
    assert not np.array_equal(held[0], held[1])


@pytest.mark.parametrize("counts", [(2,), (1, 1), (3,), (2, 5)])
@pytest.mark.parametrize("share", [1e-12, 0.01, 0.5, 0.999999])
def test_two_series_leave_one_on_each_side(counts, share):
    names = [f"x/{index}" for index in range(len(counts))]
    total = sum(int(mask.sum()) for mask in hold_out(names, every(*counts), share))
    assert 1 <= total <= sum(counts) - 1


@pytest.mark.parametrize("share", [0.01, 0.999999])
def test_single_series_is_trained_on(share):
    assert not hold_out(["a/b"], every(1), share)[0].any()


def test_nothing_asked_nothing_held():
    assert not hold_out(["a/b"], every(100), 0.0)[0].any()


@pytest.mark.parametrize("share", [1e-12, 0.3, 0.999999])
def test_series_without_windows_are_never_held_out(share):
    mask = np.arange(200) % 3 == 0
    held = hold_out(["a/b", "c/d"], [mask, np.zeros(50, bool)], share)
    assert not (held[0] & ~mask).any()
    assert held[0].any()
    assert not held[1].any()
