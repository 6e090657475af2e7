"""Which values are numbers, how nested dicts flatten, what a histogram is."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import tsx
from tsx.recording.values import MAX_LEAVES, HistogramValue, sort_values


class Hostile(dict):
    def items(self):
        raise RuntimeError("no \x1b[31mitems")


class NoFloat:
    def __float__(self):
        raise ZeroDivisionError("never")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1.5, 1.5),
        (3, 3.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.float64(0.25), 0.25),
        (np.int64(7), 7.0),
        (np.bool_(True), 1.0),
        (np.array(2.0), 2.0),
        (Decimal("1.25"), 1.25),
        (Fraction(1, 4), 0.25),
        (-math.inf, -math.inf),
        (10**400, math.inf),
        (-(10**400), -math.inf),
    ],
)
def test_a_number_in_any_dress_is_a_float(value, number):
    found = sort_values({"x": value})
    assert found.numbers == {"x": number}
    assert type(found.numbers["x"]) is float
    assert not found.refused


def test_nan_stays_nan():
    assert math.isnan(sort_values({"x": np.float16("nan")}).numbers["x"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("0.5", "is a str"),
        (b"1", "is a bytes"),
        (None, "is None"),
        ([1.0], "is a list"),
        (1j, "is a complex"),
        (np.complex64(1), "complex"),
        (np.clongdouble(1j), "not a number"),
        (np.timedelta64(5, "ns"), "not a number"),
        (np.ma.masked, "is a masked value"),
        (np.zeros(3), "of shape (3,)"),
        (np.array("text"), "is a ndarray"),
        (np.datetime64("2026-01-01"), "not a number"),
        (object(), "is a object"),
        (NoFloat(), "gives no number: never"),
    ],
)
def test_anything_else_is_left_out_with_its_type(value, reason):
    found = sort_values({"good": 1.0, "bad": value})
    assert found.numbers == {"good": 1.0}
    assert reason in found.refused["bad"]


def test_nested_dicts_flatten_and_keys_become_text():
    found = sort_values({"a": {"b": 1, "c": {"d": 2.0}}, 3: 4, "e": {}})
    assert found.numbers == {"a/b": 1.0, "a/c/d": 2.0, "3": 4.0}


def test_a_dict_that_holds_itself_is_left_out_there():
    values = {"x": 1.0}
    values["again"] = values
    found = sort_values(values)
    assert found.numbers == {"x": 1.0}
    assert "is a dict" in found.refused["again"]


def test_values_that_are_no_dict_are_told():
    assert "log takes a dict" in sort_values(3.0).refused["log"]
    assert "no ␛[31mitems" in sort_values(Hostile()).refused["log"]


def test_the_values_of_one_call_are_bounded():
    found = sort_values({str(number): 1.0 for number in range(MAX_LEAVES + 1)})
    assert len(found.numbers) == MAX_LEAVES
    assert "more than 100,000" in found.refused["log"]


def test_a_histogram_counts_every_value():
    held = tsx.histogram([0.0, 0.5, 1.0, 1.0, math.nan, math.inf], bins=2)
    assert held == HistogramValue((0.0, 0.5, 1.0), (1, 3), 2)


@pytest.mark.parametrize(
    "values",
    [
        [5.0, 5.0],
        [1e300, 1e300],
        [-1.7e308, 1.7e308],
        [1.0, math.nextafter(1.0, 2.0)],
        np.arange(12).reshape(3, 4),
        [True, False],
        [5e-324, 0.0],
    ],
)
def test_edges_of_a_histogram_rise_whatever_the_range(values):
    held = tsx.histogram(values)
    assert held.fault == ""
    assert sum(held.counts) == np.size(values)
    assert len(held.edges) == len(held.counts) + 1
    assert all(math.isfinite(edge) for edge in held.edges)
    assert all(low < high for low, high in zip(held.edges, held.edges[1:], strict=False))
    assert held.edges[0] <= np.min(values)
    assert held.edges[-1] >= np.max(values)


def test_a_histogram_of_nothing_finite_has_no_bins():
    assert tsx.histogram([math.nan]) == HistogramValue((), (), 1)
    assert tsx.histogram([]) == HistogramValue((), (), 0)


@pytest.mark.parametrize(("values", "bins"), [("text", 8), ([1j], 8), ([1.0], 0), ([1.0], 10**9)])
def test_a_histogram_that_cannot_be_is_told_where_it_is_logged(values, bins):
    found = sort_values({"h": tsx.histogram(values, bins=bins), "x": 1.0})
    assert found.histograms == {}
    assert "is no histogram of" in found.refused["h"]
    assert found.numbers == {"x": 1.0}


@pytest.mark.trainer
def test_tensors_of_no_dimension_are_numbers_and_others_are_not():
    torch = pytest.importorskip("torch")
    found = sort_values(
        {
            "grad": torch.tensor(0.5, requires_grad=True),
            "half": torch.tensor(0.25, dtype=torch.bfloat16),
            "int": torch.tensor(3),
            "bool": torch.tensor(True),
            "row": torch.zeros(1),
            "complex": torch.tensor(1j),
            "meta": torch.tensor(1.0, device="meta"),
        }
    )
    assert found.numbers == {"grad": 0.5, "half": 0.25, "int": 3.0, "bool": 1.0}
    assert set(found.refused) == {"row", "complex", "meta"}
    assert "of shape (1,)" in found.refused["row"]


@pytest.mark.trainer
def test_a_histogram_takes_tensors_of_every_kind():
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.arange(4.0, requires_grad=True),
        torch.arange(4).to(torch.bfloat16),
        torch.arange(4, dtype=torch.float64),
        torch.arange(4),
    ):
        assert tsx.histogram(tensor, bins=3).counts == (1, 1, 2)
