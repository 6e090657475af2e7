"""Curves of several runs on one axis."""

from array import array

import pytest

from registry.views import Series
from tsx.compare.align import XAxis, align


def series(steps, values, times=None):
    return Series(
        "train/loss",
        array("q", steps),
        array("d", values),
        array("d", times or [100.0 + step for step in steps]),
    )


def test_the_shared_end_is_where_the_shortest_run_stopped():
    aligned = align([series([1, 5, 9], [3, 2, 1]), series([2, 4, 6], [30, 20, 10])], ["a", "b"])
    assert aligned.shared == 6
    assert aligned.values_there == (2.0, 10.0)
    assert [curve.name for curve in aligned.curves] == ["a", "b"]
    assert aligned.x_label == "step"


def test_a_run_without_points_neither_counts_nor_fails():
    aligned = align([series([1, 5], [3, 2]), series([], [])], ["a", "b"])
    assert aligned.shared == 5
    assert aligned.values_there == (2.0, None)
    assert align([series([], [])], ["a"]).shared is None


def test_a_run_that_starts_later_has_no_value_before():
    aligned = align([series([1], [3]), series([5, 6], [2, 1])], ["a", "b"])
    assert aligned.values_there == (3.0, None)


def test_time_starts_at_zero_and_never_runs_backwards():
    aligned = align([series([1, 2, 3, 4], [1, 1, 1, 1], [50, 60, 55, 70])], ["a"], XAxis.TIME)
    assert list(aligned.curves[0].xs) == [0.0, 10.0, 10.0, 20.0]


def test_tokens_scale_each_run_by_its_own_batch():
    both = [series([1, 2], [1, 2]), series([1, 2], [1, 2])]
    aligned = align(both, ["a", "b"], XAxis.TOKENS, tokens_per_step=[10, 100])
    assert [list(curve.xs) for curve in aligned.curves] == [[10, 20], [100, 200]]
    with pytest.raises(ValueError, match="tokens_per_step"):
        align(both, ["a", "b"], XAxis.TOKENS)
