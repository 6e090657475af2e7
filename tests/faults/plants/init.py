"""Weights that start too large, too small or dead, and a first loss that tells."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH, Attention
from tests.faults.plant import Loop, Plant

scale = partial(Plant, kind="init-scale")
first = partial(Plant, kind="loss-at-init")


def gain(module: nn.Module, *shape: int) -> float:
    """Return the size of a fresh module's output for normal input."""
    with torch.no_grad():
        return float(module(torch.randn(*shape)).std())


def fresh(loop: Loop) -> nn.Module:
    """Return the model with its first weights."""
    state = dict([*loop.model.named_parameters(), *loop.model.named_buffers()])
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(loop.initial[name])
    return loop.model


class StackedExperts(nn.Module):
    """Experts in one tensor; each token to the best."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.up = nn.Parameter(draw(torch.empty(4, WIDTH, 2 * WIDTH)))
        self.down = nn.Parameter(draw(torch.empty(4, 2 * WIDTH, WIDTH)))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(1, -1)
        h = F.gelu(torch.einsum("...d,edf->...ef", x, self.up))
        y = torch.einsum("...ef,efd->...ed", h, self.down)
        y = y.gather(-2, chosen[..., None].expand(*chosen.shape, WIDTH))[..., 0, :]
        return x + weight * y


class Tall(nn.Module):
    """Six layers, each drawn by the same rule."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class Unscaled(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        scores = (6 * q) @ (6 * k).mT  # fault: no division by the root of the width
        return self.weigh(scores, self.mask(scores, keep_BT)) @ v


class Same(nn.Module):
    """Filters that all start alike stay alike."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        nn.init.constant_(self.conv.weight, 0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def gain_is(low: float, high: float, *shape: int):
    """Return a proof about the gain of the fresh middle."""

    def proof(loop: Loop) -> None:
        assert low < gain(fresh(loop).middle, *shape) < high
        assert all(step.is_finite for step in loop.seen)

    return proof


def attention_is_sharp(loop: Loop) -> None:
    """Weights of the fresh attention are near one-hot, those of a right one are spread."""
    x = torch.randn(4, 9, WIDTH)
    for attention, is_sharp in ((fresh(loop).blocks[0].attention, True), (Attention(), False)):
        q, k, _ = attention.split(x)
        weight = attention.attend(q, k, torch.eye(9).expand(4, 2, 9, 9), None)
        best = weight[..., 8, :].amax(-1).mean()
        assert bool(best > 0.7) is is_sharp


def filters_are_alike(loop: Loop) -> None:
    weight = loop.initial["middle.conv.weight"]
    assert (weight == weight[:1]).all()
    model = fresh(loop)
    loop.loss(*loop.batch(1)).backward()
    with torch.no_grad():
        maps = model.middle(F.relu(model.stem(loop.batch(1)[0])))
    assert torch.allclose(maps, maps[:, :1].expand_as(maps))


def build_loud_head() -> Loop:
    loop = parts.conv()
    nn.init.normal_(loop.model.head.weight, std=5.0)  # fault: a head of std 5
    return loop


def build_far_target() -> Loop:
    """Temperatures in kelvin, neither centred nor scaled."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        return x, 290.0 + 10.0 * y

    return parts.recurrent(batch=batch)


def build_unit_embedding() -> Loop:
    """Head and embedding share a table of std 1."""
    loop = parts.transformer()
    loop.model.head.weight = loop.model.embed.weight
    with torch.no_grad():
        loop.model.norm.weight.fill_(4.0)
    loop.optimizer = torch.optim.AdamW(loop.model.parameters(), lr=1e-2)
    return loop


def first_loss_above(limit: float):
    """Return a proof about the very first loss."""

    def proof(loop: Loop) -> None:
        assert loop.seen[0].losses[0] > limit
        assert all(step.is_finite for step in loop.seen)

    return proof


def kaiming(tensor: Tensor) -> Tensor:
    return nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))


ENTRIES = (
    scale(
        name="randn-experts",
        architecture="moe",
        mechanism="no-fan-in",
        module="middle",
        story="Stacked experts are drawn by randn: what they add is many times their input.",
        build=lambda: parts.mlp(StackedExperts(nn.init.normal_)),
        proof=gain_is(4, 1e3, 64, WIDTH),
    ),
    scale(
        name="kaiming-experts",
        architecture="moe",
        mechanism="fan-in-of-three-axes",
        module="middle",
        story="Stacked experts are drawn by kaiming, which takes two axes of a 3-D tensor for the "
        "fan: they add next to nothing.",
        build=lambda: parts.recurrent(StackedExperts(kaiming)),
        proof=lambda loop: _adds_nothing(loop),
    ),
    scale(
        name="fading-layers",
        architecture="mlp",
        mechanism="vanishing",
        module="middle.layers.0",
        story="Six layers of std 0.02: what comes out is a millionth of what goes in.",
        build=lambda: parts.mlp(Tall(0.02)),
        proof=gain_is(0, 1e-5, 64, WIDTH),
    ),
    scale(
        name="growing-layers",
        architecture="conv",
        mechanism="exploding",
        module="middle.layers.0",
        story="Six layers of std 1, whatever their fan-in: activations grow a hundredfold.",
        build=lambda: _conv_of_vectors(Tall(1.0)),
        proof=lambda loop: _grows(loop),
    ),
    scale(
        name="unscaled-scores",
        architecture="attention",
        mechanism="missing-scale",
        module="blocks.0.attention",
        marker="# fault: no division by the root of the width",
        causal=True,
        story="Scores are not divided by the root of the head's width: the fresh softmax is "
        "one-hot.",
        build=lambda: parts.transformer(Unscaled),
        proof=attention_is_sharp,
    ),
    scale(
        name="filters-alike",
        architecture="conv",
        mechanism="symmetric",
        module="middle.conv",
        story="Every filter starts with the same constant; they see the same for ever.",
        build=lambda: parts.conv(Same()),
        proof=filters_are_alike,
    ),
    first(
        name="loud-head",
        architecture="conv",
        mechanism="head-too-large",
        module="head",
        marker="# fault: a head of std 5",
        story="The first loss of four classes should be log 4 = 1.4.",
        build=build_loud_head,
        proof=first_loss_above(3.0),
    ),
    first(
        name="far-target",
        architecture="recurrent",
        mechanism="target-not-centred",
        blind=True,
        story="The first loss of a regression is 84,000 (a kind of question in forums): targets "
        "are in kelvin, the output starts at 0.",
        build=build_far_target,
        proof=first_loss_above(8e4),
    ),
    first(
        name="unit-embedding",
        architecture="attention",
        mechanism="head-too-large",
        module="head",
        causal=True,
        blind=True,
        story="A language model of 11 tokens starts far above log 11 (a kind of report against "
        "small language models): a table of std 1 is also its head.",
        build=build_unit_embedding,
        proof=first_loss_above(6.0),
    ),
)


def _adds_nothing(loop: Loop) -> None:
    middle = fresh(loop).middle
    x = torch.randn(64, WIDTH)
    with torch.no_grad():
        assert (middle(x) - x).std() < 0.02
    assert middle.up.std() < 0.2 / math.sqrt(WIDTH)


class _OnVectors(nn.Module):
    """Applies layers to the channels of maps."""

    def __init__(self, tall: Tall) -> None:
        super().__init__()
        self.enter = nn.Conv2d(8, WIDTH, 1)
        self.layers = tall.layers
        self.leave = nn.Conv2d(WIDTH, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).movedim(1, -1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.leave(x.movedim(-1, 1))


def _conv_of_vectors(tall: Tall) -> Loop:
    return parts.conv(_OnVectors(tall))


def _grows(loop: Loop) -> None:
    middle, x = fresh(loop).middle, torch.randn(64, WIDTH)
    with torch.no_grad():
        for layer in middle.layers:
            x = F.relu(layer(x))
    assert x.std() > 50
