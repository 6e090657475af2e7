"""Embedded plants in runs of the real trainer, under the same patch and config."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.events import Metrics, RunPrepared, Status
from tests.faults.embedded import KeptEvents, train_planted
from tests.faults.plant import Plant, list_plants, play

pytestmark = pytest.mark.trainer

EMBEDDED = [plant for plant in list_plants() if plant.architecture == "embedded"]
LOST = [plant for plant in EMBEDDED if plant.kind == "nan-origin"]
FINITE = [
    plant
    for plant in EMBEDDED
    if plant.name in ("tsx-inverted-mask", "tsx-bf16-norms", "tsx-odd-parity", "tsx-one-expert")
]


def named(plants: list[Plant]) -> list[object]:
    return [pytest.param(plant, id=plant.name) for plant in plants]


@pytest.mark.parametrize("plant", named(LOST))
def test_the_trainer_is_lost_at_the_same_step(plant: Plant, tmp_path: Path) -> None:
    outcome = train_planted(plant, tmp_path, KeptEvents())
    assert outcome.status is Status.DIVERGED
    assert outcome.step == plant.steps - 1  # done before the one that is not finite


@pytest.mark.parametrize("plant", named(FINITE))
def test_the_trainer_goes_on_in_silence(plant: Plant, tmp_path: Path) -> None:
    sink = KeptEvents()
    assert train_planted(plant, tmp_path, sink).status is Status.COMPLETED
    assert any(isinstance(event, RunPrepared) for event in sink.events)
    lines = [event.values for event in sink.events if isinstance(event, Metrics)]
    assert sum("train/loss" in values for values in lines) == 6


def test_an_interval_of_odd_parity_scores_only_at_the_end(tmp_path: Path) -> None:
    sink = KeptEvents()
    (plant,) = [plant for plant in FINITE if plant.name == "tsx-odd-parity"]
    train_planted(plant, tmp_path, sink)
    scored = [
        event.step
        for event in sink.events
        if isinstance(event, Metrics) and any(key.startswith("val/") for key in event.values)
    ]
    assert set(scored) <= {6}


def test_the_loop_takes_the_steps_of_the_trainer(tmp_path: Path) -> None:
    (plant,) = [plant for plant in EMBEDDED if plant.name == "tsx-dead-experts"]
    sink = KeptEvents()
    train_planted(plant, tmp_path, sink)
    trained = [
        event.values["train/loss"]
        for event in sink.events
        if isinstance(event, Metrics) and "train/loss" in event.values
    ]
    looped = [step.logged["train/loss"] for step in play(plant, steps=6).seen]
    assert looped == pytest.approx(trained, rel=1e-5)
