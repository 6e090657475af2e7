"""What is said beside the origin of a NaN, and that training goes on as if nobody had looked."""

from __future__ import annotations

import math

import pytest
import torch

from tests.faults import plant as plants
from tests.faults.watched import WatchedRun, play_watched
from tsx.diagnostics.nonfinite.origin import KIND
from tsx.diagnostics.nonfinite.postmortem import Postmortem

pytestmark = pytest.mark.trainer

PLANTS = [plant for plant in plants.list_plants() if plant.kind == KIND and not plant.slow]


def test_the_samples_the_fresh_model_and_the_batch_before_are_told():
    plant = next(plant for plant in PLANTS if plant.name == "dead-pixel")
    (finding,) = play_watched(plant)
    assert finding.evidence["samples"]
    assert finding.evidence["fresh_model"] == "fails"
    assert finding.evidence["previous_batch"] == "passes"
    assert math.isnan(finding.evidence["loss"])


def test_training_goes_on_as_if_nobody_had_looked():
    plant = next(plant for plant in PLANTS if plant.name == "guarded-root")
    watched, plain = WatchedRun(), plants.PlainRun()
    one, two = (plants.play(plant, run=run) for run in (watched, plain))
    watched.close()
    for (name, left), right in zip(
        one.model.state_dict().items(), two.model.state_dict().values(), strict=True
    ):
        assert torch.equal(left.nan_to_num(), right.nan_to_num()), name
    assert watched.findings


def test_a_step_of_another_model_ends_no_step_of_this_one():
    run, model, other = WatchedRun(), torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    run.watch(model, mine)
    run.steps.append(plants.Step())
    loss = run.compute(lambda x: (model(x) * 0).sqrt().sum(), torch.ones(3, 2))
    loss.backward()
    other(torch.ones(1, 2)).sum().backward()
    theirs.step()
    mine.step()
    run.close()
    (finding,) = run.findings
    assert (finding.kind, finding.evidence["mechanism"]) == (KIND, "sqrt-at-zero")


def test_arguments_on_an_accelerator_are_not_held_on_to():
    model = torch.nn.Linear(2, 1, device="meta")  # any device that is not the host's
    calls = Postmortem(model, lambda result: result)
    calls.begin_call(model, (torch.zeros(1, 2),), {})
    assert not calls._calls
    model.to_empty(device="cpu")
    calls.begin_call(model, (torch.zeros(1, 2),), {})
    assert len(calls._calls) == 1
