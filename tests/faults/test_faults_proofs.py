"""A proof can fail: none of them takes a healthy loop of its plant's architecture for the plant."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.faults import parts
from tests.faults.embedded import build_loop
from tests.faults.plant import Plant, list_plants, play

pytestmark = pytest.mark.trainer

HEALTHY: dict[str, Any] = {
    "attention": parts.transformer,
    "conv": parts.conv,
    "embedded": build_loop,
    "mlp": parts.mlp,
    "moe": parts.recurrent,
    "recurrent": parts.recurrent,
    "vae": parts.mlp,
}
# What a proof raises that asserts, or looks for a part that only the plant has.
REFUSES = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError)
REFUSES += (ValueError, ZeroDivisionError)


@pytest.mark.parametrize("plant", list_plants(), ids=lambda plant: plant.name)
def test_a_healthy_loop_is_not_taken_for_the_plant(plant: Plant) -> None:
    build, steps = HEALTHY[plant.architecture], min(plant.steps, 60)
    loop = play(dataclasses.replace(plant, build=build, raises="", steps=steps))
    with pytest.raises(REFUSES):
        plant.proof(loop)
