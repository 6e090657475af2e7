"""Every planted NaN is named: place, line and true cause; healthy loops stay silent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from registry.events import Finding, Severity
from registry.sinks import ListSink
from tests.faults import plant as plants
from tsx.diagnostics.origin import KIND
from tsx.diagnostics.postmortem import Postmortem
from tsx.recording.lines import RunLines
from tsx.recording.watching import Watching

pytestmark = pytest.mark.trainer

PLANTS = [plant for plant in plants.list_plants() if plant.kind == KIND and not plant.slow]
HEALTHY = [loop for loop in plants.list_healthy() if not loop.slow]

# What is not named as planted yet, and why.
OTHER_MODULE = {
    "exploding-states": "the product that overflows stands in another module than the weights",
    "exploding-weights": "all weights explode; the largest names its own module",
    "unbounded-temperature": "a scale that has grown is taken for exploded weights",
}
OTHER_CAUSE = {
    "tsx-bad-target": "a batch of four tensors does not say which of them is the target",
    "unbounded-temperature": "a scale that has grown is taken for exploded weights",
}


class WatchedRun(plants.PlainRun):
    """A run as `tsx.init` gives it, with its events in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.sink = ListSink()
        self.told: list[str] = []
        self._lines = RunLines(self.sink, 0, self.told.append)
        self._watching = Watching(self._lines, self.told.append)

    def watch(self, model, optimizer, **declared):
        self._watching.watch(model, optimizer, causal=declared.get("causal", True), every=None)

    def compute(self, fn, *args):
        plain = super().compute
        return self._watching.compute(lambda *given: plain(fn, *given), *args)

    def log(self, values, step):
        super().log(values, step)
        self._lines.log(values, step, 0.0)
        self._lines.telemetry.step = step

    def close(self):
        self._watching.close()

    @property
    def findings(self) -> list[Finding]:
        return [event for event in self.sink.events if isinstance(event, Finding)]


def play(plant) -> list[Finding]:
    run = WatchedRun()
    try:
        plants.play(plant, run=run)
    finally:
        run.close()
    return run.findings


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_nan_is_named(plant):
    found = [finding for finding in play(plant) if finding.severity is not Severity.INFO]
    assert [finding.kind for finding in found] == [KIND], found
    (finding,) = found
    assert finding.step == plant.steps
    if plant.name not in OTHER_CAUSE:
        assert finding.evidence["mechanism"] in (plant.mechanism, *plant.also)
    if plant.name not in OTHER_MODULE:
        assert finding.module == plant.module
    if plant.marker:
        path, _, line = finding.where.rpartition(":")
        assert (Path(path).name, int(line)) == (Path(plant.path).name, plant.line)


@pytest.mark.parametrize("loop", HEALTHY, ids=lambda loop: loop.name)
def test_a_healthy_loop_is_left_alone(loop):
    assert [finding for finding in play(loop) if finding.severity is not Severity.INFO] == []


def test_the_samples_the_fresh_model_and_the_batch_before_are_told():
    plant = next(plant for plant in PLANTS if plant.name == "dead-pixel")
    (finding,) = play(plant)
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
