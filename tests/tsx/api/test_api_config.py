"""A config of any kind becomes plain data within bounds."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
import types

import msgspec
import numpy as np
import pytest

from tsx.errors import ConfigError
from tsx.recording.plain_config import MAX_CHARS, MAX_TEXT, MAX_VALUES, to_plain_config


@dataclasses.dataclass
class Inner:
    width: int = 4


@dataclasses.dataclass
class Data:
    lr: float = 1e-3
    inner: Inner = dataclasses.field(default_factory=Inner)


class Struct(msgspec.Struct):
    lr: float = 1e-3


class Plain:
    lr = 1e-3
    _hidden = 1

    def method(self):
        """Not a value."""

    @property
    def computed(self):
        raise RuntimeError("a property is not read")


class Slotted:
    __slots__ = ("lr",)

    def __init__(self):
        self.lr = 1e-3


class Duck:
    def keys(self):
        return ["lr"]

    def __getitem__(self, key):
        return 1e-3


class Mode(enum.Enum):
    FAST = "fast"


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no text")

    @property
    def shape(self):
        raise RuntimeError("no shape")


@pytest.mark.parametrize(
    "config",
    [
        {"lr": 1e-3},
        types.MappingProxyType({"lr": 1e-3}),
        argparse.Namespace(lr=1e-3),
        Struct(),
        Plain,
        Plain(),
        Slotted(),
        Duck(),
    ],
)
def test_everything_with_named_values_is_a_config(config):
    assert to_plain_config(config) == ({"lr": 1e-3}, "")


def test_values_within_become_plain_too():
    config = {
        "data": Data(),
        "mode": Mode.FAST,
        "number": np.float32(0.5),
        "array": np.zeros((3, 4)),
        "fn": math.sqrt,
        "list": (1, {"a": None}),
        1: True,
        "bad": Unshowable(),
    }
    plain, cut = to_plain_config(config)
    assert cut == ""
    assert plain == {
        "data": {"lr": 1e-3, "inner": {"width": 4}},
        "mode": "fast",
        "number": 0.5,
        "array": "ndarray(shape=(3, 4), dtype=float64)",
        "fn": "math.sqrt",
        "list": [1, {"a": None}],
        "1": True,
        "bad": "[a Unshowable that cannot be shown]",
    }


def test_no_config_is_an_empty_one():
    assert to_plain_config(None) == ({}, "")


@pytest.mark.parametrize("config", [3, "lr=1", [1, 2], object()])
def test_what_has_no_names_is_refused_with_the_value(config):
    with pytest.raises(ConfigError, match="has no named values") as caught:
        to_plain_config(config)
    assert caught.value.next_command


def test_a_config_of_50_mb_is_cut_and_the_cut_is_told():
    plain, cut = to_plain_config({"text": "x" * 50_000_000, "lr": 1.0})
    assert plain["lr"] == 1.0
    assert len(plain["text"]) < MAX_TEXT + 100
    assert cut == "text: 10,000 of 50,000,000 characters kept"


@pytest.mark.parametrize(
    "config",
    [
        {"items": list(range(10**6))},
        {str(number): number for number in range(10**5)},
        {"rows": ["x" * 9000] * 10_000},
        {"x" * 2_000_000: 1},
    ],
)
def test_whatever_is_large_stays_within_the_bounds(config):
    plain, cut = to_plain_config(config)
    assert cut
    assert len(msgspec.json.encode(plain)) < 2 * MAX_CHARS
    assert len(plain) <= MAX_VALUES


def test_a_config_that_holds_itself_has_an_end():
    config = {}
    config.update(a=config, b=[config], c=1)
    plain, cut = to_plain_config(config)
    assert plain == {"a": "[left out]", "b": ["[left out]"], "c": 1}
    assert "a: holds itself" in cut
