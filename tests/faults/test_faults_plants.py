"""Every plant shows what it says, by plain torch, and where it says."""

from __future__ import annotations

import warnings

import pytest

from tests.faults.oracle import Blame, find_first_nonfinite
from tests.faults.plant import Plant, list_plants, play

pytestmark = pytest.mark.trainer

PLANTS = list_plants()
# Whose first such value is made by a line that is not at fault: weights have grown too large.
NO_GUILTY_LINE = "exploding-weights"


def params(plants: list[Plant]) -> list[object]:
    """Return plants as parameters, named; slow ones marked."""
    return [
        pytest.param(plant, id=plant.name, marks=[pytest.mark.slow] if plant.slow else [])
        for plant in plants
    ]


@pytest.mark.parametrize("plant", params(PLANTS))
def test_the_fault_is_there(plant: Plant) -> None:
    with warnings.catch_warnings(record=bool(plant.warns)):
        loop = play(plant)
        plant.proof(loop)
    assert plant.module in dict(loop.model.named_modules())


@pytest.mark.parametrize("plant", params([p for p in PLANTS if p.kind == "nan-origin"]))
def test_the_first_such_value_is_made_where_the_table_says(plant: Plant) -> None:
    blame = find_first_nonfinite(plant)
    if plant.mechanism == NO_GUILTY_LINE:
        assert (blame.phase, blame.module) == ("forward", plant.module)
    elif plant.marker:
        assert (blame.file, blame.line, blame.module) == (plant.path, plant.line, plant.module)
    else:
        assert blame == Blame("forward")  # it came in from outside
