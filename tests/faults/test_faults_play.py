"""How loops are played: the same each time, for any run, and without a trace outside."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tests.faults.plant import Plant, list_healthy, list_plants, play

pytestmark = pytest.mark.trainer

PLANTS = {plant.name: plant for plant in list_plants()}
ONE_EACH = list({p.architecture: p for p in PLANTS.values() if not p.slow}.values())


class CountingRun:
    """A run of another kind than PlainRun."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.declared: dict[str, Any] = {}

    def watch(self, model: Any, optimizer: Any, **declared: Any) -> None:
        self.calls.append("watch")
        self.declared = declared

    def compute(self, fn: Any, *args: Any) -> Any:
        self.calls.append("compute")
        return fn(*args)

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(f"log {step}")


@pytest.mark.parametrize("plant", ONE_EACH, ids=lambda plant: plant.architecture)
def test_two_plays_are_bit_for_bit_the_same(plant: Plant) -> None:
    first, second = (play(plant) for _ in range(2))
    losses = [[step.losses for step in loop.seen] for loop in (first, second)]
    np.testing.assert_equal(*losses)  # NaN equals NaN
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_playing_leaves_the_generators_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    play(PLANTS["noise-seeded-each-step"])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_any_run_sees_the_loop() -> None:
    run = CountingRun()
    play(PLANTS["no-mask"], run=run)
    assert run.calls == ["watch", *(call for n in (1, 2, 3) for call in ("compute", f"log {n}"))]
    assert run.declared == {"causal": True}


def test_each_optimizer_is_watched_and_each_micro_batch_computed() -> None:
    run = CountingRun()
    play(PLANTS["other-optimizer-not-zeroed"], run=run)
    play(PLANTS["mean-of-means"], run=run)
    assert Counter(run.calls)["watch"] == 2 + 1
    assert Counter(run.calls)["compute"] == 6 + 4 * 6


def test_what_a_user_declares_reaches_the_run() -> None:
    run = CountingRun()
    (loop,) = [loop for loop in list_healthy() if loop.name == "encoder-declared"]
    play(loop, run=run, steps=1)
    assert run.declared == {"causal": False}


def test_an_error_that_is_promised_must_come() -> None:
    plant = dataclasses.replace(PLANTS["no-mask"], raises="alloc")
    with pytest.raises(AssertionError, match="should have raised 'alloc'"):
        play(plant)


def test_an_error_that_is_not_promised_goes_on() -> None:
    plant = dataclasses.replace(PLANTS["all-pairs"], raises="another text")
    with pytest.raises(RuntimeError, match="alloc"):
        play(plant)
