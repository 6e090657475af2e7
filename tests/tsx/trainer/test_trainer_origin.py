"""A planted NaN in the real trainer is named: place, line and true cause."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from registry.events import Finding, Status
from registry.sinks import ListSink
from tests.faults import plant as plants
from tests.faults.embedded import train_planted
from tsx.data.stream import BatchStream
from tsx.trainer import optim

pytestmark = pytest.mark.trainer

PLANTS = [
    plant
    for plant in plants.list_plants()
    if plant.kind == "nan-origin" and plant.patch is not None and not plant.slow
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_the_step_that_diverges_names_its_fault(plant, tmp_path):
    sink = ListSink()
    outcome = train_planted(plant, tmp_path, sink)
    assert outcome.status is Status.DIVERGED
    (finding,) = [
        event for event in sink.events if isinstance(event, Finding) and event.kind == plant.kind
    ]
    assert finding.evidence["mechanism"] in (plant.mechanism, *plant.also)
    assert finding.module == plant.module
    if plant.marker:
        path, _, line = finding.where.rpartition(":")
        assert (Path(path).name, int(line)) == (Path(plant.path).name, plant.line)
    assert finding.cause in outcome.reason


@pytest.fixture
def bad_target(monkeypatch):
    """Put an infinite target into one sample of the training batch at a position."""

    def plant(position, sample):
        get_batch = BatchStream.get_batch

        def poisoned(self, at):
            batch = get_batch(self, at)
            if at == position:
                target_BC = np.array(batch.target_BC)
                target_BC[sample, 3] = np.inf
                batch = dataclasses.replace(batch, target_BC=target_BC)
            return batch

        monkeypatch.setattr(BatchStream, "get_batch", poisoned)

    return plant


def find_origin(sink):
    (finding,) = [found for found in sink.of(Finding) if found.kind == "nan-origin"]
    return finding


def test_the_window_that_brings_it_about_is_named(tmp_path):
    plant = next(plant for plant in PLANTS if plant.name == "tsx-inverted-by-hand")
    sink = ListSink()
    train_planted(plant, tmp_path, sink)
    (known,) = [
        event.evidence
        for event in sink.events
        if isinstance(event, Finding) and event.kind == plant.kind
    ]
    assert known["fresh_model"] == "fails"  # no matter of the weights
    assert known["previous_batch"] == "passes"
    assert (known["samples"], known["num_samples"]) == ([0], 1)  # the first that is not padded
    assert known["windows"] == ["waves/series.jsonl: series 0 from point 0"]
    assert "micro_batch" not in known


def test_the_micro_batch_is_named_and_the_one_before_passes(lab, bad_target):
    bad_target(3, sample=2)  # the second of step 2
    ran = lab.run(train__grad_accum_steps=2)
    known = find_origin(ran.sink).evidence
    assert known["micro_batch"] == "2 of 2"
    assert known["previous_batch"] == "passes"
    assert known["samples"] == [2]


def test_the_batch_before_is_known_in_the_first_step_of_a_resumed_run(lab, bad_target):
    lab.run(train__steps=3, train__checkpoint_every=3)
    bad_target(3, sample=1)
    ran = lab.run(train__checkpoint_every=3, resume=True)
    finding = find_origin(ran.sink)
    assert finding.step == 4
    assert finding.evidence["previous_batch"] == "passes"


def test_no_batch_is_before_the_first(lab, bad_target):
    bad_target(0, sample=1)
    known = find_origin(lab.run().sink).evidence
    assert "previous_batch" not in known
    assert known["fresh_model"] == "fails"


def test_weights_that_ran_away_fail_on_the_batch_before_too(lab, monkeypatch):
    clip = optim.clip_gradients
    seen = []

    def break_weights(parameters, *rest):
        params = list(parameters)
        clip(params, *rest)
        seen.append(1)
        if len(seen) == 2:
            with torch.no_grad():
                for param in params:
                    param.mul_(1e18)

    monkeypatch.setattr(optim, "clip_gradients", break_weights)
    ran = lab.run()
    finding = find_origin(ran.sink)
    assert finding.step == 3
    known = finding.evidence
    assert (known["fresh_model"], known["previous_batch"]) == ("passes", "fails")
    assert "samples" not in known
