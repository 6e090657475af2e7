"""Where configs differ."""

import math

from tsx.compare.configdiff import ABSENT, find_changes, find_differences, flatten, show_value
from tsx.config import RunConfig, to_plain


def test_only_keys_that_differ_are_listed_with_a_value_per_config():
    found = find_differences(
        [{"optim": {"lr": 0.001, "eps": 1e-8}}, {"optim": {"lr": 0.003, "eps": 1e-8}}]
    )
    assert [(d.key, d.values, d.raw) for d in found] == [
        ("optim.lr", ("0.001", "0.003"), (0.001, 0.003))
    ]


def test_a_key_that_one_config_lacks_is_absent_there():
    found = find_differences([{"train": {"steps": 5}}, {"train": {}}, {}])
    assert [(d.key, d.values) for d in found if d.key == "train.steps"] == [
        ("train.steps", ("5", ABSENT, ABSENT))
    ]


def test_none_is_not_the_same_as_absent():
    assert find_differences([{"data": {"path": None}}, {"data": {"other": 1}}])


def test_lists_are_compared_whole():
    found = find_differences([{"model": {"horizons": [1, 8]}}, {"model": {"horizons": [1]}}])
    assert found[0].values == ("[1, 8]", "[1]")


def test_changes_are_against_the_defaults():
    config = to_plain(RunConfig())
    assert find_changes(config) == []
    config["optim"]["lr"] = 0.5
    changes = find_changes(config)
    assert [(change.key, change.values) for change in changes] == [("optim.lr", ("0.001", "0.5"))]


def test_a_config_deeper_than_the_stack_is_flattened():
    deep = leaf = {}
    for _ in range(5000):
        leaf["a"] = {}
        leaf = leaf["a"]
    leaf["x"] = 1
    flat = flatten({"s": deep})
    assert list(flat.values()) == [1]


def test_values_read_as_in_a_recipe():
    shown = [show_value(value) for value in (0.001, 1e-8, 1 / 3, True, None, "zero", [1, "a"])]
    assert shown == ["0.001", "1e-08", "0.3333333333333333", "true", "none", "zero", '[1, "a"]']
    assert show_value(math.inf) == "Infinity"
