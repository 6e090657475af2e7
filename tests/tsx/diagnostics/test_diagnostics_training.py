"""Spikes, plateaus, rates and intervals: in runs of recipes, and beside what is healthy."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

from registry.events import Severity
from tests.faults import parts
from tests.faults.plant import Healthy, list_healthy, list_plants
from tests.faults.watched import list_alarms, play_watched, train_watched
from tsx.diagnostics.loop import schedules
from tsx.diagnostics.loop.intervals import Intervals
from tsx.diagnostics.loop.rates import Rates
from tsx.diagnostics.loss.plateaus import Plateau
from tsx.diagnostics.loss.spikes import LossSpike

pytestmark = pytest.mark.trainer

FAMILY = (LossSpike, Plateau, Rates, Intervals)
KINDS = {kind.name for detector in FAMILY for kind in detector.kinds}
PLANTS = [plant for plant in list_plants() if plant.kind in KINDS]


@pytest.fixture(autouse=True)
def _these_alone(monkeypatch):
    monkeypatch.setattr("tsx.diagnostics.roster.DETECTORS", FAMILY)


def listen_to(build, steps, proof=None):
    """Return what is found in a loop of one's own."""
    loop = Healthy(name="own", architecture="", looks="", build=build, proof=proof, steps=steps)
    return play_watched(loop)


@pytest.mark.parametrize(
    "name", ["tsx-odd-parity", "tsx-interval-past-end", "tsx-endless-warm-up", "tsx-burst"]
)
def test_a_recipes_run_tells_it_once(name):
    plant = next(plant for plant in PLANTS if plant.name == name)
    longer = {"train__steps": max(plant.steps, 6)}
    (found,) = train_watched(dataclasses.replace(plant, config=plant.config | longer))
    assert (found.kind, found.severity) == (plant.kind, Severity.WARNING)
    assert found.evidence["mechanism"] == plant.mechanism


@pytest.mark.parametrize(
    "loop",
    [h for h in list_healthy() if h.path.endswith("loops.py") and not h.slow],
    ids=lambda loop: loop.name,
)
def test_a_healthy_loop_raises_nothing(loop):
    assert list_alarms(play_watched(loop)) == []


def with_optimizer(make):
    """Return a builder of a recurrent loop with this optimizer."""

    def build():
        model = parts.Recurrent(torch.nn.Linear(parts.WIDTH, parts.WIDTH))
        return parts.make_loop(model, parts.waves, optimizer=make(model))

    return build


@pytest.mark.parametrize(
    ("rate", "adjust", "is_right"),
    [
        (0.02, "original", True),
        (0.02, None, True),
        (5e-4, "match_rms_adamw", True),
        (5e-4, "original", False),
        (5e-4, None, False),
        (0.2, "match_rms_adamw", False),
    ],
)
def test_muon_is_judged_with_its_adjustment(rate, adjust, is_right):
    def make(model):
        matrices = [model.middle.weight]
        return torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn=adjust)

    found = [f for f in listen_to(with_optimizer(make), 4) if f.kind == "lr"]
    assert (found == []) is is_right
    assert all(f.evidence["mechanism"] == "family-mismatch" for f in found)


def test_a_group_of_its_own_without_decay_is_no_remark():
    def make(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

    assert listen_to(with_optimizer(make), 3) == []  # no norms at all


@pytest.mark.parametrize("milestone", [2, 6])
def test_a_schedule_by_epochs_is_healthy(milestone):
    """Stepped once in many steps, at the rate that it was given."""

    class ByEpochs(parts.Loop):
        def step(self, run, step):
            super().step(run, step)
            if step % 4 == 0:
                self.decay.step()

    def build():
        loop = parts.mlp(kind=ByEpochs)
        loop.decay = lr_scheduler.MultiStepLR(loop.optimizer, [milestone], 0.1)
        return loop

    assert listen_to(build, 24) == []


def test_a_schedule_that_counts_micro_batches_rightly_is_healthy():
    class ByMicroBatches(parts.Loop):
        def step(self, run, step):
            self.optimizer.zero_grad()
            for number in range(4):
                (run.compute(self.loss, *self.batch(4 * step + number)) / 4).backward()
            self.optimizer.step()
            for _ in range(4):
                self.decay.step()
            run.log({"lr": self.optimizer.param_groups[0]["lr"]}, step=step)

    def build():
        loop = parts.mlp(kind=ByMicroBatches)
        loop.decay = lr_scheduler.LinearLR(loop.optimizer, 1.0, 0.1, total_iters=80)
        return loop

    assert listen_to(build, 20) == []


@pytest.mark.parametrize("kind", ["CosineAnnealingWarmRestarts", "OneCycleLR", "SequentialLR"])
def test_schedules_of_torch_are_healthy(kind):
    def build():
        loop = parts.conv(lr=1e-2)
        optimizer = loop.optimizer
        if kind == "OneCycleLR":
            loop.scheduler = lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=61)
        elif kind == "SequentialLR":
            chain = [
                lr_scheduler.LinearLR(optimizer, 0.01, 1.0, total_iters=10),
                lr_scheduler.CosineAnnealingLR(optimizer, 50),
            ]
            loop.scheduler = lr_scheduler.SequentialLR(optimizer, chain, [10])
        else:
            loop.scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 15)
        return loop

    assert list_alarms(listen_to(build, 60)) == []


def test_schedulers_are_as_torch_made_them_when_nobody_listens():
    before = {kind: vars(kind).get("step") for kind in (lr_scheduler.LRScheduler,)}

    class Ear:
        def __init__(self):
            self.heard = []

        def hear(self, scheduler, where):
            self.heard.append(where)

    ear = Ear()
    schedules.listen(ear.hear)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    assert ear.heard == []  # the first step is torch's own
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert [Path(where.rpartition(":")[0]).name for where in ear.heard] == [Path(__file__).name]
    assert "step" not in scheduler.state_dict()
    schedules.stop(ear.hear)
    assert {kind: vars(kind).get("step") for kind in before} == before
    schedules.listen(ear.hear)
    del ear
    schedules.stop(print)
    assert {kind: vars(kind).get("step") for kind in before} == before


def test_a_state_that_is_loaded_again_is_not_lost():
    class Resumes(parts.Loop):
        def step(self, run, step):
            if step == 60:
                self.optimizer.load_state_dict(self.optimizer.state_dict())
            super().step(run, step)

    def build():
        return parts.mlp(
            kind=Resumes, batch=lambda step: parts.rows(1), declares={"fixed_batch": True}
        )

    assert listen_to(build, 64) == []


def test_a_leap_without_a_cause_says_so():
    class Leaps(parts.Loop):
        def step(self, run, step):
            if step == 50:
                with torch.no_grad():
                    self.model.last.weight.mul_(30.0)
            super().step(run, step)

    (found,) = listen_to(lambda: parts.mlp(kind=Leaps), 52)
    assert (found.kind, found.step) == ("loss-spike", 50)
    assert found.evidence["mechanism"] == "unexplained"


def test_a_declared_interval_longer_than_the_run_is_told_at_its_end():
    (found,) = listen_to(lambda: parts.mlp(declares={"intervals": {"val/loss": 50}}), 12)
    assert found.evidence["mechanism"] == "interval-longer-than-run"
    assert found.evidence["key"] == "val/loss"


def test_a_declared_interval_that_fires_is_healthy():
    class Scores(parts.Loop):
        def step(self, run, step):
            super().step(run, step)
            if step % 6 == 0:
                run.log({"val/loss": 0.0}, step=step)

    build = lambda: parts.mlp(kind=Scores, declares={"intervals": {"val/loss": 6}})  # noqa: E731
    assert listen_to(build, 6) == []
    assert listen_to(build, 20) == []


def test_a_loop_that_logs_elsewhere_is_not_told_of():
    class Silent(parts.Loop):
        def step(self, run, step):
            self.optimizer.zero_grad()
            run.compute(self.loss, *self.batch(step)).backward()
            self.update()

    assert listen_to(lambda: parts.mlp(kind=Silent), 12) == []


def test_a_regression_whose_targets_are_noise_is_a_plateau():
    def batch(step):
        x, y = parts.rows(step, size=2048)
        return x, torch.randn(y.shape, generator=torch.Generator().manual_seed(step))

    def build():
        loop = parts.mlp(batch=batch, lr=1e-4)
        torch.nn.init.zeros_(loop.model.last.weight)  # starts at the best guess
        return loop

    (found,) = listen_to(build, 80)
    assert (found.kind, found.evidence["mechanism"]) == ("plateau", "labels-independent")
    assert math.isclose(found.evidence["constant_guess"], 1.0, abs_tol=0.2)
