"""Attention that looks along the wrong axis, or through a mask that says the opposite."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH, Attention
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import forward_quietly, look_ahead

axis = partial(Plant, kind="attention-axis", severity="error", causal=True)
audit = partial(Plant, kind="mask-audit", severity="error")


class OverHeadDim(Attention):
    """[A, A] weights instead of [T, T]."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        scores = q.transpose(-2, -1) @ k / math.sqrt(q.shape[-1])
        return (scores.softmax(-1) @ v.transpose(-2, -1)).mT  # fault: features attend to features


class OverQueries(Attention):
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        return scores.masked_fill(~seen, -torch.inf).softmax(-2)  # fault: softmax over the queries


class OverHeads(Attention):
    """[B, T, H, A] without the transpose: heads attend to heads."""

    def forward(self, x_BTD: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        parts_ = self.qkv(x_BTD).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts_)
        y = F.scaled_dot_product_attention(q, k, v)  # fault: time is not the last but one
        return self.out(y.flatten(2))


def mixes_no_time(loop: Loop) -> None:
    """The first block's output at a time does not depend on any other time."""
    attention = loop.model.blocks[0].attention
    x = torch.randn(2, 9, WIDTH)
    other = x.clone()
    other[:, 0] += 1.0
    before, after = forward_quietly(attention, x), forward_quietly(attention, other)
    assert torch.equal(before[:, 1:], after[:, 1:])
    right = Attention()
    assert not torch.equal(forward_quietly(right, x)[:, 1:], forward_quietly(right, other)[:, 1:])


def is_not_causal(loop: Loop) -> None:
    """Features mix over all of time."""
    attention = loop.model.blocks[0].attention
    assert look_ahead(attention, torch.randn(2, 9, WIDTH), lambda x: x + 1.0, 5) > 1e-6


def weights_of_row(loop: Loop) -> None:
    """Weights of a query do not add up to 1; those of a key do."""
    attention, scores = loop.model.blocks[0].attention, torch.randn(2, 2, 9, 9)
    weight = attention.weigh(scores, attention.mask(scores, None))
    assert torch.allclose(weight.sum(-2), torch.ones(()))
    assert not torch.allclose(weight.sum(-1), torch.ones(()), atol=0.1)


class Fused(Attention):
    """Attention through torch's fused call."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(q @ k.mT, keep_BT))


class Inverted(Fused):
    """True says padding here, and attend there."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        is_padding = ~keep_BT[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=is_padding)  # fault: inverted


class InvertedByHand(Attention):
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        low = torch.finfo(scores.dtype).min
        return scores.masked_fill(seen, low).softmax(-1)  # fault: fills what may be seen


class LeftPadded(Fused):
    """Causal and padding mask together: a padded query on the left sees nothing, in silence."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        seen = self.mask(q @ k.mT, keep_BT)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # fault: rows of nothing


class LowestNumber(Attention):
    """The lowest finite number in a full row is a mean over all keys, future ones too."""

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        low = torch.finfo(scores.dtype).min
        return scores.masked_fill(~seen, low).softmax(-1)  # fault: a full row of the lowest number


class PaddingSeen(Attention):
    """An encoder whose caller hands the mask on to nobody."""

    def mask(self, scores: Tensor, keep_BT: Tensor | None) -> Tensor:
        return torch.ones_like(scores, dtype=torch.bool)  # fault: padding may be seen


class Poured(Attention):
    """Zero scores where padded, before the softmax."""

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        return (scores * seen).softmax(-1)  # fault: padding has a score of zero

    def mask(self, scores: Tensor, keep_BT: Tensor | None) -> Tensor:
        return keep_BT[:, None, None, :].expand_as(scores)


class Padded:
    """Tokens with padding; `left` where it stands, `full` leaves the first sample whole."""

    def __init__(self, *, left: bool = False) -> None:
        self.left = left

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        x, y = parts.tokens(step)
        keep_BT = torch.ones_like(x, dtype=torch.bool)
        for row, count in ((1, 3), (2, 2)):
            keep_BT[row, slice(0, count) if self.left else slice(-count, None)] = False
        return x.masked_fill(~keep_BT, 0), y.masked_fill(~keep_BT, -100), keep_BT


def padded_loss(model: nn.Module, x: Tensor, y: Tensor, keep_BT: Tensor) -> Tensor:
    return F.cross_entropy(model(x, keep_BT).flatten(0, -2), y.flatten())


def build(attention: type, *, left: bool = False, **rest: object) -> Loop:
    model = parts.Transformer(attention, both=True)
    return parts.make_loop(model, Padded(left=left), padded_loss, **rest)


def build_encoder(attention: type) -> Loop:
    return build(attention, declares={"causal": False})


def sees(loop: Loop, sample: int, key: int) -> bool:
    """Whether some output of a sample at other times moves when the token at `key` changes."""
    x, _, keep_BT = loop.batch(1)
    other = x.clone()
    other[sample, key] = (x[sample, key] + 3) % 11
    with torch.no_grad():
        moved = (loop.model(x, keep_BT) - loop.model(other, keep_BT))[sample].abs().amax(-1)
    moved[key] = 0
    return bool(moved.max() > 1e-6)


def looks_at_padding_alone(loop: Loop) -> None:
    """Padding is seen, tokens are not; nothing is NaN."""
    assert sees(loop, 1, 7)
    assert not sees(loop, 1, 3)
    assert all(step.is_finite for step in loop.seen)


def looks_at_padding_too(loop: Loop) -> None:
    assert sees(loop, 1, 7)
    assert sees(loop, 1, 3)


def looks_ahead_by_hand(loop: Loop) -> None:
    """What may be seen is hidden and what may not is seen."""
    attention, scores = loop.model.blocks[0].attention, torch.randn(1, 1, 9, 9)
    weight = attention.weigh(scores, attention.mask(scores, None))
    assert weight.triu(1).sum() > 7.9
    assert all(step.is_finite for step in loop.seen)


def has_rows_of_nothing(loop: Loop) -> None:
    """Rows of the mask are empty, and nothing is NaN."""
    _, _, keep_BT = loop.batch(1)
    seen = Attention().mask(torch.zeros(6, 2, 9, 9), keep_BT)
    assert (~seen.any(-1)).sum() == 5
    assert all(step.is_finite for step in loop.seen)


def is_mean_of_all(loop: Loop) -> None:
    """A row without a key to see weighs all keys alike, those of the future too."""
    has_rows_of_nothing(loop)
    attention, (_, _, keep_BT) = loop.model.blocks[0].attention, loop.batch(1)
    scores = torch.randn(6, 2, 9, 9)
    weight = attention.weigh(scores, attention.mask(scores, keep_BT))
    assert torch.allclose(weight[1, :, 0], torch.tensor(1 / 9))


ENTRIES = (
    axis(
        name="over-head-dim",
        architecture="attention",
        mechanism="wrong-axis",
        module="blocks.0.attention",
        marker="# fault: features attend to features",
        story="Training saturates and greedy decoding is degenerate: the product runs over time, "
        "so features of a head attend to features.",
        build=lambda: parts.transformer(OverHeadDim),
        proof=is_not_causal,
    ),
    axis(
        name="over-queries",
        architecture="attention",
        mechanism="wrong-axis",
        module="blocks.0.attention",
        marker="# fault: softmax over the queries",
        story="The softmax runs over queries instead of keys: weights of a query add up to "
        "anything.",
        build=lambda: parts.transformer(OverQueries),
        proof=weights_of_row,
    ),
    axis(
        name="over-heads",
        architecture="attention",
        mechanism="missing-transpose",
        module="blocks.0.attention",
        marker="# fault: time is not the last but one",
        blind=True,
        story="A language model ignores its context (a kind of question about the fused call): "
        "without the transpose heads attend to heads, and no time is mixed.",
        build=lambda: parts.transformer(OverHeads),
        proof=mixes_no_time,
    ),
    audit(
        name="inverted-padding",
        architecture="attention",
        mechanism="inverted-mask",
        module="blocks.0.attention",
        marker="# fault: inverted",
        story="A mask that is True on padding goes to the fused call, where True is attend: whole "
        "sequences see nothing, the rest sees padding, and all of it is finite.",
        build=lambda: build_encoder(Inverted),
        proof=looks_at_padding_alone,
    ),
    audit(
        name="inverted-by-hand",
        architecture="attention",
        mechanism="inverted-mask",
        module="blocks.0.attention",
        marker="# fault: fills what may be seen",
        causal=True,
        story="masked_fill fills where its mask is True; it is given what may be seen.",
        build=lambda: parts.transformer(InvertedByHand),
        proof=looks_ahead_by_hand,
    ),
    audit(
        name="silent-left-padding",
        severity="info",  # the rows are padding, and their labels are left out
        architecture="attention",
        mechanism="fully-masked-row",
        module="blocks.0.attention",
        marker="# fault: rows of nothing",
        causal=True,
        story="Left padding under a causal mask through the fused call: rows without a key give "
        "zeros, and training goes on in silence.",
        build=lambda: build(LeftPadded, left=True),
        proof=has_rows_of_nothing,
    ),
    audit(
        name="lowest-number-row",
        severity="info",  # the rows are padding, and their labels are left out
        architecture="attention",
        mechanism="uniform-row",
        module="blocks.0.attention",
        marker="# fault: a full row of the lowest number",
        blind=True,
        causal=True,
        story="Padded prompts on the left change the output (a kind of report against masks of "
        "finfo.min): a row of it is a mean over all keys, the future included.",
        build=lambda: build(LowestNumber, left=True),
        proof=is_mean_of_all,
    ),
    audit(
        name="padding-attended",
        architecture="attention",
        mechanism="mask-dropped",
        module="blocks.0.attention",
        marker="# fault: padding may be seen",
        story="An encoder is given a padding mask and does not use it.",
        build=lambda: build_encoder(PaddingSeen),
        proof=looks_at_padding_too,
    ),
    audit(
        name="mask-times-scores",
        architecture="attention",
        mechanism="multiplied-mask",
        module="blocks.0.attention",
        marker="# fault: padding has a score of zero",
        blind=True,
        story="A mask is multiplied into the scores (a kind of correction to paper code, as "
        "georg-wolflein/good-features 1): exp(0) is 1, so padding keeps its weight.",
        build=lambda: build_encoder(Poured),
        proof=looks_at_padding_too,
    ),
)
