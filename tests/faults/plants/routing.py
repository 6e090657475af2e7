"""Routers of other people's mixtures, and the loss that is to balance them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH
from tests.faults.plant import Loop, Plant

EXPERTS = 4
router = partial(Plant, kind="router", architecture="moe")
scaled = partial(Plant, kind="aux-scale", architecture="moe")


class Mixture(nn.Module):
    """Top-k over softmax scores; keeps its load and its aux."""

    def __init__(self, top_k: int = 1, bias: list[float] | None = None) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(WIDTH, EXPERTS)
        if bias is not None:
            with torch.no_grad():
                self.gate.bias.copy_(torch.tensor(bias))
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        probs = self.score(flat)
        weight, chosen = probs.topk(self.top_k, -1)
        chosen = self.admit(chosen)
        self.load = torch.stack([(chosen == e).float().sum() for e in range(EXPERTS)])
        self.load = self.load / chosen.numel()
        self.aux = self.balance(probs)
        y = flat
        for index, expert in enumerate(self.experts):
            share = (weight * (chosen == index)).sum(-1, keepdim=True)
            y = y + share * expert(flat)
        return y.view_as(x)

    def score(self, flat: Tensor) -> Tensor:
        return self.gate(flat).softmax(-1)

    def admit(self, chosen: Tensor) -> Tensor:
        """Return the choices; -1 is dropped."""
        return chosen

    def balance(self, probs: Tensor) -> Tensor:
        return EXPERTS * (self.load.detach() * probs.mean(0)).sum()


class Crowded(Mixture):
    """Room for a tenth of the tokens per expert; the rest is dropped."""

    def admit(self, chosen: Tensor) -> Tensor:
        room = max(1, len(chosen) // 10)
        for e in range(EXPERTS):
            mine = chosen == e
            chosen = chosen.masked_fill(mine & (mine.cumsum(0) > room), -1)  # fault: no room
        return chosen


class Flat(Mixture):
    """Scores divided by a temperature of a thousand."""

    def score(self, flat: Tensor) -> Tensor:
        return (self.gate(flat) / 1000.0).softmax(-1)  # fault: a temperature of a thousand


class HardBalance(Mixture):
    """Balances what has no gradient."""

    def balance(self, probs: Tensor) -> Tensor:
        hard = F.one_hot(probs.argmax(-1), EXPERTS).float()
        return EXPERTS * hard.mean(0).square().sum()  # fault: counts have no gradient


class Summed(Mixture):
    """Adds over tokens where a mean is meant."""

    def balance(self, probs: Tensor) -> Tensor:
        return EXPERTS * (self.load.detach() * probs.sum(0)).sum()  # fault: sum over tokens


class Two(nn.Module):
    """Two mixtures, one after the other."""

    def __init__(self, first: Mixture, second: Mixture) -> None:
        super().__init__()
        self.layers = nn.ModuleList([first, second])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Balanced(Loop):
    """Adds the aux of its mixtures to the loss, and logs it."""

    weight = 0.01

    def start(self, run: Any, **declared: Any) -> None:
        super().start(run, **declared)
        plain = self.loss
        self.mixtures = [m for m in self.model.modules() if isinstance(m, Mixture)]

        def loss(*args: Tensor) -> Tensor:
            return plain(*args) + self.weight * self.join()

        self.loss = loss

    def join(self) -> Tensor:
        if not all(hasattr(m, "aux") for m in self.mixtures):
            return torch.zeros(())
        return torch.stack([m.aux for m in self.mixtures]).mean()

    def step(self, run: Any, step: int) -> None:
        super().step(run, step)
        run.log({"aux_loss": float(self.join().detach())}, step=step)


class Heavy(Balanced):
    weight = 50.0  # fault: fifty times the loss it helps


class Products(Balanced):
    """Sums loads and probabilities over layers before their product."""

    def join(self) -> Tensor:
        return len(self.mixtures) ** 2 * super().join()  # fault: layers squared


def build(middle: nn.Module, kind: type[Loop] = Balanced) -> Loop:
    return parts.recurrent(middle, kind=kind)


def loads(loop: Loop) -> list[Tensor]:
    with torch.no_grad():
        loop.model(loop.batch(1)[0])
    return [m.load for m in loop.mixtures]


def collapsed(loop: Loop) -> None:
    assert all(float(load.max()) > 0.97 for load in loads(loop))


def hidden_by_sum(loop: Loop) -> None:
    first, second = loads(loop)
    assert float(first.max()) > 0.45
    assert first.gt(0.01).sum() == 2
    assert second.gt(0.01).sum() == 2
    assert ((first + second) / 2).max() < 0.45


def dead_experts(loop: Loop) -> None:
    (load,) = loads(loop)
    assert (load == 0).sum() == 2
    assert 0.05 < load[0] < 0.95


def drops(loop: Loop) -> None:
    (load,) = loads(loop)
    assert 1 - float(load.sum()) > 0.5


def is_flat(loop: Loop) -> None:
    """Probabilities are flat, so the aux reads 1, whatever the load is."""
    (mixture,) = loop.mixtures
    with torch.no_grad():
        loop.model(loop.batch(1)[0])
        probs = mixture.score(torch.randn(50, WIDTH))
    assert (probs - 0.25).abs().max() < 0.01
    assert abs(float(mixture.aux) - 1.0) < 0.02
    assert float(mixture.load.max()) > 0.5


def has_no_gradient(loop: Loop) -> None:
    loop.model(loop.batch(1)[0])
    assert not loop.mixtures[0].aux.requires_grad
    assert loop.mixtures[0].gate.weight.requires_grad


def aux_reads(low: float, high: float):
    """Return a proof about the logged aux, where balanced is 1."""

    def proof(loop: Loop) -> None:
        assert all(low < step.logged["aux_loss"] < high for step in loop.seen[1:])

    return proof


def outweighs(loop: Loop) -> None:
    assert loop.weight * loop.seen[-1].logged["aux_loss"] > 40
    x, y = loop.batch(1)
    with torch.no_grad():
        assert F.mse_loss(loop.model(x), y) < 4


ENTRIES = (
    router(
        name="all-to-one",
        mechanism="collapse",
        module="middle",
        blind=True,
        story="Nearly all tokens go to one expert (a kind of report against training loops of "
        "mixtures, as pytorch/torchtitan 1246).",
        build=lambda: build(Mixture(bias=[6.0, 0.0, 0.0, 0.0])),
        proof=collapsed,
    ),
    router(
        name="opposite-collapse",
        mechanism="collapse-hidden-by-sum",
        module="middle.layers.0",
        story="Two layers, each down to two experts, and over both the load is even.",
        build=lambda: build(
            Two(Mixture(2, bias=[9.0, 9.0, -9.0, -9.0]), Mixture(2, bias=[-9.0, -9.0, 9.0, 9.0]))
        ),
        proof=hidden_by_sum,
    ),
    router(
        name="two-dead",
        mechanism="dead-experts",
        module="middle",
        story="Two of four experts get no token, the other two share them.",
        build=lambda: build(Mixture(bias=[-0.12, 0.0, -40.0, -40.0])),
        proof=dead_experts,
    ),
    router(
        name="tokens-dropped",
        mechanism="dropped-tokens",
        module="middle",
        marker="# fault: no room",
        story="Experts have room for a tenth of the tokens: more than half is dropped.",
        build=lambda: build(Crowded()),
        proof=drops,
    ),
    router(
        name="flat-router",
        mechanism="flat-probabilities",
        module="middle",
        marker="# fault: a temperature of a thousand",
        story="The aux reads a perfect 1 because the probabilities are flat; the load is not even.",
        build=lambda: build(Flat(bias=[1.0, 0.0, 0.0, 0.0])),
        proof=is_flat,
    ),
    scaled(
        name="aux-of-counts",
        mechanism="no-gradient",
        module="middle",
        marker="# fault: counts have no gradient",
        story="The balancing loss is made of counts alone: it is logged, and it moves nothing.",
        build=lambda: build(HardBalance()),
        proof=has_no_gradient,
    ),
    scaled(
        name="aux-summed-over-tokens",
        mechanism="sum-over-tokens",
        module="middle",
        marker="# fault: sum over tokens",
        blind=True,
        story="The aux is near 80 and grows with the batch (a kind of question about mixtures): it "
        "is summed over tokens.",
        build=lambda: build(Summed()),
        proof=aux_reads(60, 400),
    ),
    scaled(
        name="aux-layers-squared",
        mechanism="sum-over-layers",
        marker="# fault: layers squared",
        story="Loads and probabilities are summed over two layers before their product: a flat "
        "router reads 4.",
        build=lambda: build(Two(Mixture(2), Mixture(2)), Products),
        proof=aux_reads(3.5, 6),
    ),
    scaled(
        name="aux-outweighs",
        mechanism="weight-too-large",
        marker="# fault: fifty times the loss it helps",
        story="The balancing loss weighs fifty times the loss: the router balances and nothing is "
        "learned.",
        build=lambda: build(Mixture(2), Heavy),
        proof=outweighs,
    ),
)
