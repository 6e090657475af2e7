"""Parameters that do not move, for a reason that lies in the model: no gradient, or one of zero."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH, Attention
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import stands_still

frozen = partial(Plant, kind="frozen-param", steps=4)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)).detach()  # fault: the graph ends here


class NoGrad(nn.Module):
    """States go through numpy, for a filter that torch does not have."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        smooth = h_BTD.detach().numpy().cumsum(1) / 5.0  # fault: a trip through numpy
        return torch.from_numpy(smooth)


class HardAttention(Attention):
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        best = scores.masked_fill(~seen, -torch.inf).argmax(-1)  # fault: argmax has no gradient
        return F.one_hot(best, scores.shape[-1]).to(scores.dtype)


def no_query_gradient(loop: Loop) -> None:
    """Rows of q and k stand still, those of v move."""
    name = "blocks.0.attention.qkv.weight"
    now, before = loop.model.get_parameter(name), loop.initial[name]
    assert torch.equal(now[: 2 * WIDTH], before[: 2 * WIDTH])
    assert not torch.equal(now[2 * WIDTH :], before[2 * WIDTH :])


def build_hard_attention() -> Loop:
    loop = parts.transformer(HardAttention, both=True)
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    return loop


class DeadUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        nn.init.constant_(self.conv.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(x))


class Adapter(nn.Module):
    """A low-rank update beside a frozen layer; one of its factors should start from noise."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(4, WIDTH))
        self.up = nn.Parameter(torch.zeros(WIDTH, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T  # fault: both factors are zero


class AlphaPool(nn.Module):
    """Attention pooling over time."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, h_BTD: Tensor) -> Tensor:
        weight = self.score(h_BTD).softmax(-1)  # fault: softmax over an axis of one
        return (weight * h_BTD).cumsum(1)


class Unregistered(nn.Module):
    """Layers in a plain list: no parameters of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]  # fault: a list of layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return x


def unregistered(loop: Loop) -> None:
    """The layers run and get gradients, but the model does not know them."""
    known = {id(p) for p in loop.model.parameters()}
    for layer in loop.model.middle.layers:
        assert id(layer.weight) not in known
        assert layer.weight.grad is not None


def build_unregistered() -> Loop:
    return parts.mlp(Unregistered())


class Experts(nn.Module):
    """Four experts, each token to the best one; the fourth is never the best."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        with torch.no_grad():
            self.router.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -50.0]))
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(1, -1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen[:, 0] == index).nonzero().flatten()
            y = y.index_add(0, rows, weight[rows] * expert(x[rows]))
        return x + y


def no_tokens(loop: Loop) -> None:
    for name in ("weight", "bias"):
        now = loop.model.middle.experts[3].get_parameter(name)
        assert torch.equal(now, loop.initial[f"middle.experts.3.{name}"])
        assert not now.grad.any()
    assert not torch.equal(
        loop.model.middle.experts[0].weight, loop.initial["middle.experts.0.weight"]
    )


def build_no_tokens() -> Loop:
    loop = parts.mlp(Experts(), batch=lambda step: parts.rows(step, size=64))
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.05)
    return loop


class Skipped(nn.Module):
    """Two branches, of which the setting always takes the first."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Linear(WIDTH, WIDTH)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.narrow(h_BTD) if h_BTD.shape[1] < 64 else self.wide(h_BTD)


class Gated(nn.Module):
    """A gate that is shut: sigmoid of -200 is exactly 0 in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(-200.0))
        self.extra = nn.Linear(WIDTH, WIDTH)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return h_BTD + self.gate.sigmoid() * self.extra(h_BTD)  # fault: the gate is shut


def build_sgd(loop: Loop) -> Loop:
    """Give a loop plain SGD, which leaves alone what has no gradient."""
    loop.optimizer = torch.optim.SGD(
        [p for p in loop.model.parameters() if p.requires_grad], lr=0.05
    )
    return loop


ENTRIES = (
    frozen(
        name="detached-features",
        architecture="conv",
        mechanism="no-gradient",
        module="middle",
        marker="# fault: the graph ends here",
        story="A detach left over from a comparison of features ends the graph: stem and middle "
        "never learn, the head does.",
        build=lambda: parts.conv(Detached()),
        proof=stands_still("stem.weight", "stem.bias", "middle.conv.weight", "middle.conv.bias"),
    ),
    frozen(
        name="through-numpy",
        architecture="recurrent",
        mechanism="no-gradient",
        module="middle",
        marker="# fault: a trip through numpy",
        story="A filter from numpy in the middle of the model: the GRU before it gets no gradient.",
        build=lambda: parts.recurrent(NoGrad()),
        proof=stands_still(
            *(f"rnn.{n}_l0" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        ),
    ),
    frozen(
        name="hard-attention",
        architecture="attention",
        mechanism="no-gradient",
        module="blocks.0.attention",
        marker="# fault: argmax has no gradient",
        story="Attention takes the best key by argmax: values learn, queries and keys do not, and "
        "they sit in the same matrix.",
        build=build_hard_attention,
        proof=no_query_gradient,
    ),
    frozen(
        name="dead-units",
        architecture="conv",
        mechanism="zero-gradient",
        module="middle.conv",
        story="A bias of -100 turns every rectified unit off: gradients are there and exactly 0.",
        build=lambda: build_sgd(parts.conv(DeadUnits())),
        proof=stands_still("middle.conv.weight", "middle.conv.bias"),
    ),
    frozen(
        name="zero-adapter",
        architecture="mlp",
        mechanism="zero-gradient",
        module="middle",
        marker="# fault: both factors are zero",
        blind=True,
        story="An adapter never learns anything (a kind of report against low-rank tuning): both "
        "its factors start from zero, so the gradient of each is zero for ever.",
        build=lambda: build_sgd(parts.mlp(Adapter())),
        proof=stands_still("middle.base.weight", "middle.base.bias", "middle.down", "middle.up"),
    ),
    frozen(
        name="softmax-of-one",
        architecture="recurrent",
        mechanism="zero-gradient",
        module="middle",
        marker="# fault: softmax over an axis of one",
        blind=True,
        story="An attention pooling gives all weights 1 (a kind of report against tutorials of "
        "attention): its softmax runs over the axis of size 1, and its scores get no gradient.",
        build=lambda: build_sgd(parts.recurrent(AlphaPool())),
        proof=stands_still("middle.score.weight", "middle.score.bias"),
    ),
    frozen(
        name="list-of-layers",
        architecture="mlp",
        mechanism="not-registered",
        module="middle",
        marker="# fault: a list of layers",
        blind=True,
        story="Some layers stay random (a kind of report by newcomers to torch): they stand in a "
        "plain list instead of a ModuleList, so no optimizer has them.",
        build=build_unregistered,
        proof=unregistered,
    ),
    frozen(
        name="expert-without-tokens",
        architecture="moe",
        mechanism="no-tokens",
        also=("zero-gradient",),
        module="middle.experts.3",
        story="Expert 3 gets no token, so it has a gradient of zero; the fault is the router's.",
        build=build_no_tokens,
        proof=no_tokens,
    ),
    frozen(
        name="branch-not-taken",
        architecture="recurrent",
        mechanism="no-gradient",
        module="middle.wide",
        story="A layer for long windows never runs: its gradient is None.",
        build=lambda: parts.recurrent(Skipped()),
        proof=stands_still("middle.wide.weight", "middle.wide.bias"),
    ),
    frozen(
        name="shut-gate",
        architecture="recurrent",
        mechanism="zero-gradient",
        module="middle",
        marker="# fault: the gate is shut",
        story="A learned gate starts at -200; its sigmoid is 0 in fp32, so neither gate nor what "
        "is behind it gets a gradient.",
        build=lambda: build_sgd(parts.recurrent(Gated())),
        proof=stands_still("middle.gate", "middle.extra.weight", "middle.extra.bias"),
    ),
)
