"""What is served: targets of another time, and batches that say nothing."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import at_step
from tests.faults.plant import Loop, Plant

shift = partial(Plant, kind="target-shift", causal=True)
quality = partial(Plant, kind="data-quality")


def is_shifted_by(lag: int):
    """Return a proof that target t is input t + lag (1 is right) and no other."""

    def proof(loop: Loop) -> None:
        found = set()
        for step in loop.seen:
            x, y = (value.squeeze(-1) for value in step.batches[0][:2])
            size = x.shape[1]
            for s in range(-2, 4):
                xs = x[:, max(s, 0) : size + min(s, 0)]
                ys = y[:, max(-s, 0) : size - max(s, 0)]
                if torch.equal(xs, ys):
                    found.add(s)
        assert found == {lag}

    return proof


def build_unshifted() -> Loop:
    return parts.transformer(batch=lambda step: (parts.tokens(step)[0],) * 2)


def build_shifted_twice() -> Loop:
    """The loader shifts, and the loss shifts again."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.tokens(step)
        return x[:, :-1], y[:, 1:]  # what the loss comes to: token t + 2

    return parts.transformer(batch=batch)


def build_past() -> Loop:
    """The two slices of a window are taken the wrong way round."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        return y, x

    return parts.recurrent(batch=batch)


def build_constant() -> Loop:
    def flat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[1:5], y[1:5] = 0.7, 0.7
        return x, y

    return parts.recurrent(batch=at_step(3, flat, parts.waves))


def mostly_constant(loop: Loop) -> None:
    x = loop.seen[-1].batches[0][0]
    assert (x.amax(1) == x.amin(1)).sum() == 4


def build_sentinel() -> Loop:
    """Missing readings are written as -9999."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        x[:, 3::7], y[:, 2::7] = -9999.0, -9999.0
        return x, y

    return parts.recurrent(batch=batch)


def has_sentinels(loop: Loop) -> None:
    for step in loop.seen:
        x = step.batches[0][0]
        assert (x == -9999.0).float().mean() > 0.1
        assert x[x != -9999.0].abs().max() < 2.0
        assert step.losses[0] > 1e6


def build_huge() -> Loop:
    """Pixels of 0 .. 65535 are not scaled."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.images(step)
        return x * 20000.0 + 30000.0, y

    return parts.conv(batch=batch)


def is_huge(loop: Loop) -> None:
    assert all(step.batches[0][0].abs().mean() > 1e4 for step in loop.seen)
    assert loop.seen[0].losses[0] > 100


PAD = 0


def padded_tokens(step: int) -> tuple[Tensor, Tensor]:
    """Return tokens most of which are padding."""
    x, y = parts.tokens(step)
    y[:, 3:], x[:, 4:] = PAD, PAD
    return x, y


def padding_is_trained(loop: Loop) -> None:
    for step in loop.seen:
        y = step.batches[0][1]
        assert (y == PAD).float().mean() > 0.6
        assert not (y == -100).any()


def build_all_padding() -> Loop:
    def empty(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[2:], y[2:] = PAD, PAD
        return x, y

    return parts.transformer(batch=at_step(2, empty, parts.tokens))


def mostly_padding(loop: Loop) -> None:
    x = loop.seen[-1].batches[0][0]
    assert x.eq(PAD).all(1).sum() == 4


def masked_by_value(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(torch.nan_to_num(x)), torch.nan_to_num(y))  # fault: gaps become zeros


def build_gaps() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        gap = torch.rand(x.shape, generator=parts.draw(step)) < 0.3
        return x.masked_fill(gap, torch.nan), y.masked_fill(gap, torch.nan)

    return parts.make_loop(parts.Recurrent(), batch, masked_by_value)


def has_gaps(loop: Loop) -> None:
    assert all(step.is_finite for step in loop.seen)
    assert all(step.batches[0][1].isnan().float().mean() > 0.2 for step in loop.seen)


ENTRIES = (
    shift(
        name="unshifted-target",
        architecture="attention",
        mechanism="lag-zero",
        severity="error",
        story="Targets are the inputs: the loss goes to 0 by copying.",
        build=build_unshifted,
        proof=is_shifted_by(0),
    ),
    shift(
        name="shifted-twice",
        architecture="attention",
        mechanism="lag-two",
        blind=True,
        story="A model learns to skip a token (a kind of report where a library's loss shifts "
        "labels by itself): loader and loss both shift.",
        build=build_shifted_twice,
        proof=is_shifted_by(2),
    ),
    shift(
        name="target-in-the-past",
        architecture="recurrent",
        mechanism="lag-minus-one",
        severity="error",
        story="The slices of input and target are swapped: the target is the point before.",
        build=build_past,
        proof=is_shifted_by(-1),
    ),
    quality(
        name="constant-windows",
        architecture="recurrent",
        mechanism="constant",
        story="Four of six windows of a batch do not move at all: a sensor that is stuck.",
        build=build_constant,
        proof=mostly_constant,
    ),
    quality(
        name="sentinel",
        architecture="recurrent",
        mechanism="sentinel-value",
        blind=True,
        story="The loss is about 1e7 and falls slowly (a kind of report about weather data): "
        "missing readings are the number -9999.",
        build=build_sentinel,
        proof=has_sentinels,
    ),
    quality(
        name="unscaled-pixels",
        architecture="conv",
        mechanism="huge-values",
        story="Pixels of 16 bits go in as they are; the first loss is above 100.",
        build=build_huge,
        proof=is_huge,
    ),
    quality(
        name="padding-trained",
        architecture="attention",
        mechanism="loss-on-padding",
        causal=True,
        story="Two thirds of the labels are padding, and the loss counts them: it is low because "
        "padding is easy.",
        build=lambda: parts.transformer(batch=padded_tokens),
        proof=padding_is_trained,
    ),
    quality(
        name="all-padding",
        architecture="attention",
        mechanism="all-padding",
        steps=2,
        causal=True,
        story="Four of six windows are padding alone.",
        build=build_all_padding,
        proof=mostly_padding,
    ),
    quality(
        name="gaps-become-zeros",
        architecture="recurrent",
        mechanism="nonfinite-replaced",
        marker="# fault: gaps become zeros",
        story="A third of the readings are NaN, and the loss turns them into zeros that are "
        "trained on.",
        build=build_gaps,
        proof=has_gaps,
    ),
)
