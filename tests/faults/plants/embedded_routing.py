"""The diaries' faults of routing and of its loss, in tsx's own mixture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.faults.embedded import plant, replace
from tests.faults.plant import Loop
from tsx.model.experts import Experts
from tsx.model.router import Router, RouterStats, Routing


class OneExpert(Router):
    """Adds to the logits what makes expert 0 the best of every token."""

    def forward(self, x_ND: Tensor) -> Routing:
        logits = x_ND @ self.proj.weight.T + torch.tensor([30.0, 0.0, 0.0, -30.0])
        probs_NE = logits.softmax(-1)  # fault: a bias decides
        weights_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
        counts_E = experts_NK.flatten().bincount(minlength=4)
        return Routing(probs_NE, weights_NK, experts_NK, counts_E)


def load_of(loop: Loop) -> list[Tensor]:
    """Return each layer's load."""
    x_BC, seen_BC, *_ = loop.batch(1)
    with torch.no_grad():
        return [stats.load_E for stats in loop.model(x_BC, seen_BC).routing]


def one_takes_all(loop: Loop) -> None:
    for load_E in load_of(loop):
        assert load_E[0] == 0.5  # one of the two choices of every token
        assert load_E[3] == 0.0


class SplitRouter(Router):
    """Each layer goes to one pair of experts, the next layer to the other."""

    layers = 0

    def __init__(self, hidden_size: int, num_experts: int, top_k: int) -> None:
        super().__init__(hidden_size, num_experts, top_k)
        self.sign = 1.0 if SplitRouter.layers % 2 == 0 else -1.0
        SplitRouter.layers += 1

    def forward(self, x_ND: Tensor) -> Routing:
        bias = self.sign * torch.tensor([30.0, 30.0, -30.0, -30.0])
        probs_NE = (x_ND @ self.proj.weight.T + bias).softmax(-1)  # fault: each layer its pair
        weights_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
        counts_E = experts_NK.flatten().bincount(minlength=4)
        return Routing(probs_NE, weights_NK, experts_NK, counts_E)


def hides_in_the_sum(loop: Loop) -> None:
    first, second = load_of(loop)
    assert first.gt(0).sum() == second.gt(0).sum() == 2
    assert torch.allclose((first + second) / 2, torch.full((4,), 0.25))


def multiply_aux(routing: Any, reduction: Any, top_k: int) -> Tensor:
    """Return the product of sums over layers, as one diary had it."""
    f_E = torch.stack([stats.load_E for stats in routing]).sum(0)
    r_E = torch.stack([stats.prob_E for stats in routing]).sum(0)
    return len(f_E) * (f_E * r_E).sum()  # fault: sums over layers are multiplied


def aux_is_squared(loop: Loop) -> None:
    """A flat router reads layers squared instead of 1: 144 of 12 layers, 4 of these two."""
    flat = torch.full((4,), 0.25)
    stats = [RouterStats(flat, flat, torch.ones(())) for _ in range(12)]
    assert float(multiply_aux(stats, None, 2)) == 144.0
    assert all(3.5 < step.logged["train/aux"] < 8 for step in loop.seen)


class Renormalised(Experts):
    """The fast path renormalises the weights of the chosen; the loop that is read does not."""

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        weights = routing.weights_NK / routing.weights_NK.sum(-1, keepdim=True)
        return super().forward(x_ND, routing._replace(weights_NK=weights))  # fault: other weights


def variants_differ(loop: Loop) -> None:
    moe, x = loop.model.blocks[0].moe, torch.randn(32, 16)
    with torch.no_grad():
        routing = moe.router(x)
        fast, read = moe.experts(x, routing), moe.experts.run_loop(x, routing)
    assert not torch.allclose(fast, read, rtol=0.1)


ENTRIES = (
    plant(
        name="tsx-one-expert",
        kind="router",
        mechanism="collapse",
        module="blocks.0.moe.router",
        marker="# fault: a bias decides",
        story="Every token goes to the same two experts; the third gets none.",
        patch=replace("tsx.model.moe.Router", OneExpert),
        proof=one_takes_all,
    ),
    plant(
        name="tsx-opposite-layers",
        kind="router",
        mechanism="collapse-hidden-by-sum",
        module="blocks.0.moe.router",
        marker="# fault: each layer its pair",
        blind=True,
        story="The load over all layers is perfect (a kind of report against auxiliary losses, as "
        "QwenLM/Qwen3 1418): each layer has collapsed, the two onto opposite experts.",
        patch=replace("tsx.model.moe.Router", SplitRouter),
        config={"model__aux_reduction": "concatenated"},
        proof=hides_in_the_sum,
    ),
    plant(
        name="tsx-aux-squared",
        kind="aux-scale",
        mechanism="sum-over-layers",
        marker="# fault: sums over layers are multiplied",
        story="The diary's aux of 144, incredibly high: sums over 12 layers are multiplied, and a "
        "flat router reads 144. The load was never looked at.",
        patch=replace("tsx.model.losses.reduce_aux", multiply_aux),
        proof=aux_is_squared,
    ),
    plant(
        name="tsx-variants-differ",
        severity="error",
        kind="variant-equivalence",
        mechanism="weights-renormalised",
        module="blocks.0.moe.experts",
        marker="# fault: other weights",
        story="The fast experts renormalise the weights of the chosen, the loop that is read does "
        "not: two answers for one set of weights.",
        patch=replace("tsx.model.moe.Experts", Renormalised),
        proof=variants_differ,
    ),
)
