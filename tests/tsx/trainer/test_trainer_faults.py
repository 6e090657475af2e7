"""Faults planted in runs of the real trainer: the diaries' troubles, each with its true cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.events import Severity
from tests.faults.healthy.embedded import RECIPES
from tests.faults.plant import list_plants
from tests.faults.watched import list_alarms, train_recipe_watched, train_watched

pytestmark = pytest.mark.trainer

PLANTS = [plant for plant in list_plants() if plant.architecture == "embedded"]

# What a run of the trainer answers otherwise than the loop of tests/faults, and why.
NOT_FOUND: dict[str, str] = {}
OTHER_LINE: dict[str, str] = {
    "tsx-group-lost": "the line that made the optimizer has run before anything was watched",
    "tsx-odd-parity": "no function that is under way holds the test of parity",
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_fault_in_a_run_is_named(plant):
    found = train_watched(plant)
    of_kind = [finding for finding in found if finding.kind == plant.kind]
    if plant.name in NOT_FOUND:
        assert not of_kind, f"{plant.name} is found now: take it out of NOT_FOUND"
        return
    assert of_kind, found
    first = of_kind[0]
    assert first.severity == plant.severity
    assert first.evidence["mechanism"] in {plant.mechanism, *plant.also}
    if first.phase != "config":  # there the module is the key
        assert first.module == plant.module
    if plant.marker:
        path, _, line = first.where.rpartition(":")
        is_right = (Path(path).name, line) == (Path(plant.path).name, str(plant.line))
        assert is_right != (plant.name in OTHER_LINE), first
    others = [f for f in list_alarms(found) if f.kind != plant.kind]
    assert others == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_raises_no_alarm(name, tmp_path_factory):
    home = tmp_path_factory.getbasetemp() / "demo-home"  # one corpus for all of them
    home.mkdir(exist_ok=True)
    found = train_recipe_watched(name, home)
    assert [finding for finding in found if finding.severity is not Severity.INFO] == []
