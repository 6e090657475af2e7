"""Routers over a run, and their balancing loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from tests.faults.watched import WatchedLines
from tsx.diagnostics.routing import aux_scale, expert_load

pytestmark = pytest.mark.trainer

WIDTH, EXPERTS = 8, 4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Mixture(nn.Module):
    """Chooses in one of the usual ways; adds `tilt` to its scores."""

    def __init__(self, style: str = "softmax", top_k: int = 2) -> None:
        super().__init__()
        self.style, self.top_k = style, top_k
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.tilt = torch.zeros(EXPERTS)
        self.is_broken = False

    def forward(self, x):
        scores = self.gate(x) + self.tilt
        if self.style == "logits":
            value, chosen = torch.topk(scores, self.top_k, dim=-1)
            weight, probs = value.softmax(-1), scores.softmax(-1)
        elif self.style == "argmax":
            probs = scores.softmax(-1)
            chosen = probs.argmax(-1, keepdim=True)
            weight = probs.gather(-1, chosen)
        else:
            probs = scores.softmax(-1) if self.style == "softmax" else scores.sigmoid()
            weight, chosen = probs.topk(self.top_k, -1)
        if self.is_broken:
            raise ValueError("broken in the middle of a forward pass")
        hits = F.one_hot(chosen, EXPERTS).to(x.dtype)
        self.load, self.prob = hits.mean((0, 1)), probs.mean(0)
        self.aux = EXPERTS * (self.load * self.prob).sum()
        share = (hits * weight[..., None]).sum(1)
        return x + sum(share[:, e : e + 1] * expert(x) for e, expert in enumerate(self.experts))


class Rig:
    """A watched loop over mixtures, one after the other."""

    def __init__(self, *mixtures: nn.Module) -> None:
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *mixtures)
        self.run = WatchedLines()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.run.watch(self.model, self.optimizer)
        self.count = 0

    def step(self, loss=None, *, log=None, calls=1):
        """Take a step; `log` makes the value that is logged as aux."""
        self.count += 1
        self.optimizer.zero_grad()
        for _ in range(calls):
            x = torch.randn(64, WIDTH)
            self.run.compute(loss or self.score, x).backward()
        self.optimizer.step()
        if log is not None:
            self.run.log({"train/aux": float(log())}, self.count)
        else:
            self.run.log({}, self.count)

    def score(self, x):
        return self.model(x).square().mean()

    def found(self):
        self.run.close()
        kinds = (expert_load.KIND.name, aux_scale.KIND.name, "detector-failed")
        found = [f for f in self.run.findings if f.kind in kinds]
        return list(dict.fromkeys((f.evidence.get("mechanism"), f.module) for f in found))


@pytest.mark.parametrize("style", ["softmax", "logits", "sigmoid", "argmax"])
def test_a_router_that_collapses_late_is_found_between_traces(style):
    mixture = Mixture(style)
    rig = Rig(mixture)
    for _ in range(8):
        rig.step()
    assert not rig.run.findings
    mixture.tilt[:] = torch.tensor([40.0, 0.0, 0.0, 0.0])
    if style == "sigmoid":
        mixture.tilt[:] = torch.tensor([40.0, -40.0, -40.0, -40.0])
    for _ in range(4):
        rig.step()
    assert rig.count < 16  # the next one that is traced
    assert rig.found() == [("collapse", "1")]


def test_experts_that_are_only_few_or_come_back_are_not_dead():
    mixture = Mixture(top_k=1)
    rig = Rig(mixture)
    for step in range(10):
        mixture.tilt[:] = torch.tensor([0.0, 0.0, 0.0, -40.0 if step % 3 else 0.0])
        rig.step()
    assert rig.found() == []


def test_dead_experts_of_two_layers_are_one_finding():
    first, second = Mixture(top_k=1), Mixture(top_k=1)
    rig = Rig(first, second)
    first.tilt[2:] = second.tilt[2:] = -40.0
    for _ in range(4):
        rig.step()
    assert rig.found() == [("dead-experts", "1")]


def test_a_router_that_starts_at_zero_is_not_flat():
    mixture = Mixture()
    nn.init.zeros_(mixture.gate.weight)
    nn.init.zeros_(mixture.gate.bias)
    rig = Rig(mixture)
    for _ in range(6):
        rig.step()
    assert rig.found() == []


def test_a_failing_forward_leaves_nobody_listening():
    mixture = Mixture()
    rig = Rig(mixture)
    for _ in range(4):
        rig.step()
    mixture.is_broken = True
    with pytest.raises(ValueError, match="broken"):
        rig.step()
    assert _get_current_function_mode_stack() == []
    mixture.is_broken = False
    rig.step()
    assert _get_current_function_mode_stack() == []
    assert rig.found() == []


def test_micro_batches_count_as_one_step():
    mixture = Mixture()
    mixture.tilt[0] = 40.0
    rig = Rig(mixture)
    rig.step(calls=8)
    assert not rig.run.findings
    for _ in range(3):
        rig.step(calls=2)
    assert rig.found() == [("collapse", "1")]


def test_a_best_class_is_no_router():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(WIDTH, EXPERTS)

        def forward(self, x):
            scores = self.out(x) * torch.tensor([100.0, 0, 0, 0]) + torch.tensor([50.0, 0, 0, 0])
            self.best = scores.softmax(-1).argmax(-1)
            return scores

    rig = Rig(Head())
    for _ in range(4):
        rig.step()
    assert rig.found() == []


def list_aux(*mixtures):
    return [mixture.aux.detach() for mixture in mixtures]


@pytest.mark.parametrize(
    "reduce",
    [
        lambda a, b: (a.aux + b.aux) / 2,
        lambda a, b: a.aux + b.aux,
        lambda a, b: 2 * (a.aux + b.aux) / 2,  # f is summed over the chosen
        lambda a, b: EXPERTS * ((a.load + b.load) / 2 * (a.prob + b.prob) / 2).sum(),
    ],
)
def test_usual_conventions_of_an_aux_are_right(reduce):
    first, second = Mixture(), Mixture()
    rig = Rig(first, second)
    for _ in range(4):
        rig.step(
            lambda x: rig.score(x) + 0.01 * reduce(first, second),
            log=lambda: reduce(first, second).detach(),
        )
    assert rig.found() == []


def test_an_aux_of_micro_batches_is_judged_by_its_size():
    mixtures = [Mixture() for _ in range(6)]
    rig = Rig(*mixtures)
    for _ in range(2):
        rig.step(calls=4, log=lambda: 36 * sum(list_aux(*mixtures)) / 6)
    assert rig.found() == [("sum-over-layers", "")]


def test_an_aux_that_is_only_logged_needs_no_gradient():
    mixture = Mixture()
    rig = Rig(mixture)

    def loss(x):
        score = rig.score(x)
        with torch.no_grad():
            mixture.shown = EXPERTS * mixture.load.square().sum()
        return score

    for _ in range(4):
        rig.step(loss, log=lambda: mixture.shown)
    assert rig.found() == []


@pytest.mark.parametrize(
    ("key", "is_aux"),
    [
        *(("aux", True), ("train/aux_loss", True), ("load_balancing_loss", True)),
        *(("val/aux", False), ("router/layer0/aux", False), ("auxiliary_head", False)),
    ],
)
def test_an_aux_is_known_by_its_name(key, is_aux):
    is_found = bool(aux_scale.KEY.search(key)) and not aux_scale.NOT_KEY.search(key)
    assert is_found is is_aux
