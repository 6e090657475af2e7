"""Numbers, times and names as people read them."""

import math
import time

import pytest

from tsx.text import (
    ABSENT,
    count_cells,
    fit,
    format_age,
    format_bytes,
    format_count,
    format_duration,
    format_exact,
    format_step,
    format_value,
    format_when,
    pad,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ABSENT),
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (0.43121, "0.4312"),
        (-0.43121, "-0.4312"),
        (12.3456, "12.35"),
        (23243.4, "23,243"),
        (1e-6, "1.00e-06"),
        (5.3e-4, "5.30e-04"),
        (3.2e12, "3.20e+12"),
        (0.9999999, "1.000"),
        (9999.99, "10,000"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
    ],
)
def test_values_take_few_cells(value, shown):
    assert format_value(value) == shown


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-300, -2.5e17, 5e-324])
def test_exact_values_read_back_the_same(value):
    assert float(format_exact(value)) == value


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0s"),
        (0.4, "0s"),
        (42, "42s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (7620, "2h07m"),
        (86399, "23h59m"),
        (442800, "5d03h"),
    ],
)
def test_durations_have_two_units(seconds, shown):
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "now"), (0, "now"), (42, "42s"), (60, "1m"), (7199, "1h"), (172800, "2d")],
)
def test_ages_have_one_unit(seconds, shown):
    assert format_age(1000.0, 1000.0 + seconds) == shown


def test_moments_are_local_and_absurd_ones_harmless(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert format_when(0.0) == "1970-01-01 09:00:00"
        assert format_when(1e300).startswith("@1000")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_sizes_and_counts_have_units():
    assert [format_bytes(size) for size in (0, 1023, 1536, 5 << 30, 3 << 50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3072.0 TiB",
    ]
    assert [format_count(count) for count in (950, 23243, 113_350_000, 2.42e9, 3e12)] == [
        "950",
        "23.2k",
        "113.35M",
        "2.42B",
        "3.00T",
    ]


def test_steps_without_a_plan_stand_alone():
    assert format_step(5, 10) == "5/10"
    assert format_step(5, 0) == "5"


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("short", 9, "short"),
        ("too long", 5, "too …"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("abc", 0, ""),
        ("abc", 1, "…"),
        ("a\x1bb\nc", 9, "abc"),
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
    ],
)
def test_text_is_cut_to_cells(text, width, shown):
    assert fit(text, width) == shown
    assert count_cells(fit(text, width)) <= width


def test_padding_is_exact_on_either_side():
    assert pad("ab", 5) == "ab   "
    assert pad("ab", 5, right=True) == "   ab"
    assert count_cells(pad("日本語", 5)) == 5
