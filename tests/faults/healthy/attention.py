"""Attention that looks odd and is right: masks, ties, scales, and who may look ahead."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import Attention
from tests.faults.plant import Healthy
from tests.faults.proofs import trains

causal = partial(Healthy, causal=True)


class Tied(parts.Transformer):
    """The head is the embedding, one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.embed.weight, std=0.1)
        self.head.weight = self.embed.weight


class Both(Attention):
    """An encoder: every kept token sees every kept token, with a benign -inf elsewhere."""

    def mask(self, scores: Tensor, keep_BT: Tensor | None) -> Tensor:
        assert keep_BT is not None
        return keep_BT[:, None, None, :].expand_as(scores)


HIDDEN = 10


def padded(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens of which a third is hidden and asked for, and right padding.

    No row is all padding; a label counts where its token is hidden.
    """
    x, _ = parts.tokens(step)
    x = x.clamp(max=HIDDEN - 1)
    keep = torch.arange(9)[None] < torch.tensor([9, 5, 7, 9, 3, 8])[:, None]
    hidden = keep & (torch.arange(9) % 3 == step % 3)
    return x.masked_fill(hidden, HIDDEN).masked_fill(~keep, 0), x.masked_fill(~hidden, -100), keep


def keep_loss(model: nn.Module, x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
    return F.cross_entropy(model(x, keep).flatten(0, 1), y.flatten())


class Excluding(Both):
    """Rows without a key are given weights of 0 by hand, before they can be NaN."""

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        is_empty = ~seen.any(-1, keepdim=True)
        scores = scores.masked_fill(~(seen | is_empty), -torch.inf)
        return scores.softmax(-1).masked_fill(is_empty, 0.0)


def with_empty(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return padded tokens of which one sample is padding alone, its labels left out."""
    x, y, keep = padded(step)
    keep = keep.clone()
    keep[2] = False
    return x.masked_fill(~keep, 0), y.masked_fill(~keep, -100), keep


class FusedCausal(Attention):
    """torch's fused call, with heads where they belong."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class ScaledScores(Attention):
    """Scores scaled by a learned, bounded factor, in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        factor = self.scale.clamp(max=math.log(10.0)).exp()
        scores = factor * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        return self.weigh(scores, self.mask(scores, keep_BT)) @ v


ENTRIES = (
    causal(
        name="benign-infinities",
        architecture="attention",
        looks="-inf in every score above the diagonal, as a causal mask has it",
        build=lambda: parts.transformer(both=True),
        proof=trains(),
    ),
    causal(
        name="tied-head",
        architecture="attention",
        looks="one tensor under two names, with the gradient of both uses",
        build=lambda: parts.make_loop(Tied(), parts.tokens, parts.classify),
        proof=trains(),
    ),
    Healthy(
        name="encoder-declared",
        architecture="attention",
        looks="an encoder sees ahead, says so, and masks its padding rightly",
        build=lambda: parts.make_loop(
            parts.Transformer(Both, both=True), padded, keep_loss, declares={"causal": False}
        ),
        proof=trains(),
    ),
    Healthy(
        name="empty-rows-excluded",
        architecture="attention",
        looks="a sample of padding alone, whose rows get weights of 0 before the softmax",
        build=lambda: parts.make_loop(
            parts.Transformer(Excluding, both=True),
            with_empty,
            keep_loss,
            declares={"causal": False},
        ),
        proof=trains(),
    ),
    causal(
        name="fused-attention",
        architecture="attention",
        looks="the fused call, causal by its own flag",
        build=lambda: parts.transformer(FusedCausal, both=True),
        proof=trains(),
    ),
    causal(
        name="learned-scale",
        architecture="attention",
        looks="a learned scale of scores, bounded, of a 0-d parameter that starts at 0",
        build=lambda: parts.transformer(ScaledScores, both=True),
        proof=trains(),
    ),
)
