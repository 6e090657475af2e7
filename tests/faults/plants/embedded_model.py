"""The diaries' faults of the model, in tsx's own: each replaces one piece of it.

Shapes: B batch, T tokens, D hidden size, H heads, A head size, E experts, X expert width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.embedded import after_build, plant, replace
from tests.faults.plant import Loop
from tests.faults.proofs import forward_quietly, look_ahead, shows_at_last_step
from tsx.model.attention import CausalAttention, rotate
from tsx.model.embedding import PointEmbedding
from tsx.model.norm import RMSNorm
from tsx.model.router import Router, Routing, _chosen

LATE_PADDING = {"train__seed": 19}  # the first two batches have no padded window
ATTENTION = "tsx.model.forecaster.CausalAttention"


class OwnAttention(CausalAttention):
    """The attention of tsx with its last product open to replacement."""

    def forward(self, x_BTD: Tensor, cos_Th: Tensor, sin_Th: Tensor) -> Tensor:
        qkv = torch.unflatten(self.qkv(x_BTD), -1, (3, self.num_heads, -1))
        qk = rotate(qkv[:, :, :2], cos_Th, sin_Th)
        q, k = (part.transpose(1, 2) for part in qk.unbind(2))
        v = qkv[:, :, 2].transpose(1, 2)
        y = self.attend(q, k, v, x_BTD)
        return self.out(y.transpose(1, 2).flatten(2))

    def find_padding(self, x_BTD: Tensor) -> Tensor:
        """Return [B, 1, 1, T], True on padding: all that equals the last token, to the end."""
        same = (x_BTD == x_BTD[:, -1:]).all(-1).flip(1).cumprod(1).flip(1).bool()
        return (same & (same.sum(1, keepdim=True) > 1))[:, None, None, :]


class InvertedFused(OwnAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, x_BTD: Tensor) -> Tensor:
        is_padding = self.find_padding(x_BTD)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=is_padding)  # fault: True is seen


class InvertedByHand(OwnAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, x_BTD: Tensor) -> Tensor:
        scores, is_padding = q @ k.mT / math.sqrt(q.shape[-1]), self.find_padding(x_BTD)
        is_ahead = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(is_ahead | (~is_padding & is_padding.any()), -torch.inf)
        return scores.softmax(-1) @ v  # fault: rows of unpadded windows


class Unmasked(OwnAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, x_BTD: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)  # fault: nothing says causal


class OverHeadDim(OwnAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, x_BTD: Tensor) -> Tensor:
        q, k, v = q.mT, k.mT, v.mT
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).mT  # fault: [A, A] weights


class FloatMask(OwnAttention):
    """A learned bias over distance leaves the fused kernel."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x_BTD: Tensor) -> Tensor:
        size, slope = q.shape[-2], torch.linspace(0.1, 0.2, self.num_heads)
        distance = torch.arange(size)[None, :] - torch.arange(size)[:, None]
        bias = (slope[:, None, None] * distance).masked_fill(distance > 0, -torch.inf)
        bias = bias.requires_grad_()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # fault: a mask given


class RootNorm(RMSNorm):
    """Root mean square without eps."""

    def forward(self, x: Tensor) -> Tensor:
        root = x.square().mean(-1, keepdim=True).sqrt()
        return x / root * self.weight  # fault: padding has no root mean square


class MixedNorm(RMSNorm):
    """The fp32 weight goes to the kernel as it is, beside a bf16 input."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)  # fault: two dtypes


class WindowScaled(PointEmbedding):
    """Scales each window by itself before it is embedded."""

    def forward(self, input_BC: Tensor) -> Tensor:
        spread = (input_BC - input_BC.mean(1, keepdim=True)).std(1, keepdim=True)
        return super().forward(input_BC / (spread + 1e-3))  # fault: the whole window's spread


class HalfRouter(Router):
    """Logits in fp16, scaled up."""

    def forward(self, x_ND: Tensor) -> Routing:
        logits = (300 * x_ND).half() @ (300 * self.proj.weight).half().T  # fault: above 65,504
        probs_NE = logits.float().softmax(-1)
        weights_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
        return Routing(probs_NE, weights_NK, experts_NK, _chosen(experts_NK, 4).sum((0, 1)))


def is_lost_on_padding(loop: Loop) -> None:
    """Windows without padding have rows of nothing; NaN from the first batch with both."""
    shows_at_last_step(loop)
    _, seen_BC, *_ = loop.seen[-1].batches[0]
    assert seen_BC.all(1).any()


def sees_padding_alone(loop: Loop) -> None:
    """All is finite; a point of a whole window moves no other token."""
    assert all(step.is_finite for step in loop.seen)
    x = torch.randn(2, 24)
    assert _moves(loop.model, x, 3) == {3}


def _moves(model: nn.Module, x_BC: Tensor, where: int) -> set[int]:
    """Return the tokens of the first sample that move with the point at `where`."""
    other = x_BC.clone()
    other[0, where] += 1.0
    before = forward_quietly(model, x_BC)
    moved = (before - forward_quietly(model, other))[0].abs().amax(-1)
    return set((moved > 1e-6).nonzero().flatten().tolist())


def leaks(loop: Loop) -> None:
    assert look_ahead(loop.model, torch.randn(2, 24), lambda x: x + 1.0, 12) > 1e-6
    assert all(step.is_finite for step in loop.seen)


def runs_unfused(loop: Loop) -> None:
    """The graph of an attention has no fused node."""
    for module, is_fused in (
        (loop.model.blocks[0].attention, False),
        (CausalAttention(16, 2), True),
    ):
        tables = loop.model.rotary(24)
        y = module(torch.randn(2, 24, 16), *tables)
        assert any("Flash" in name for name in _list_nodes(y.grad_fn)) is is_fused


def _list_nodes(node: Any) -> list[str]:
    waiting, names = [node], []
    while waiting:
        node = waiting.pop()
        if node is not None and len(names) < 200:
            names.append(node.name())
            waiting.extend(upper for upper, _ in node.next_functions)
    return names


def has_two_dtypes(loop: Loop) -> None:
    """The norm is given bf16 beside its fp32 weight, and answers in fp32."""
    norm, seen = loop.model.blocks[0].moe_norm, []
    handle = norm.register_forward_hook(lambda m, x, y: seen.append((x[0].dtype, y.dtype)))
    norm(torch.randn(2, 16).bfloat16())
    handle.remove()
    assert norm.weight.dtype == torch.float32
    assert seen[0][0] == torch.bfloat16
    assert loop.session.precision.value == "bf16"


def randn_experts(model: Any) -> None:
    for block in model.blocks:
        block.moe.experts.gate_up_EYD.normal_()
        block.moe.experts.down_EDX.normal_()


def kaiming_experts(model: Any) -> None:
    for block in model.blocks:
        nn.init.kaiming_uniform_(block.moe.experts.gate_up_EYD, a=math.sqrt(5))
        nn.init.kaiming_uniform_(block.moe.experts.down_EDX, a=math.sqrt(5))


def find_gain(loop: Loop) -> float:
    """Return the gain of the first block's routed experts, as they start, for normal input."""
    moe = loop.model.blocks[0].moe
    now = {name: p.detach().clone() for name, p in moe.experts.named_parameters()}
    with torch.no_grad():
        for name, parameter in moe.experts.named_parameters():
            parameter.copy_(loop.initial[f"blocks.0.moe.experts.{name}"])
        x = torch.randn(256, 16)
        gain = float(moe.experts(x, moe.router(x)).std())
        for name, parameter in moe.experts.named_parameters():
            parameter.copy_(now[name])
    return gain


def experts_are_loud(loop: Loop) -> None:
    """Experts make ten times what they are given; each as a linear of its own would not."""
    assert find_gain(loop) > 10
    assert float(loop.initial["blocks.0.moe.experts.gate_up_EYD"].std()) > 3 / math.sqrt(16)


def experts_are_dead(loop: Loop) -> None:
    """Experts make a thousandth of what they are given."""
    assert find_gain(loop) < 2e-3
    assert all(step.is_finite for step in loop.seen)


ENTRIES = (
    plant(
        name="tsx-inverted-mask",
        kind="mask-audit",
        severity="error",
        mechanism="inverted-mask",
        module="blocks.0.attention",
        marker="# fault: True is seen",
        story="The diary's NaN, as torch has it now: a padding mask that is True on padding, "
        "through the fused call. Rows of unpadded windows are empty, and all is finite.",
        patch=replace(ATTENTION, InvertedFused),
        proof=sees_padding_alone,
    ),
    plant(
        name="tsx-inverted-by-hand",
        kind="nan-origin",
        severity="error",
        mechanism="inverted-mask",
        also=("fully-masked-row",),
        module="blocks.0.attention",
        marker="# fault: rows of unpadded windows",
        story="The diary's NaN with a softmax by hand: the first batch in which a window is "
        "not padded. Believed to be the missing causal mask.",
        steps=3,
        config=LATE_PADDING,
        patch=replace(ATTENTION, InvertedByHand),
        proof=is_lost_on_padding,
    ),
    plant(
        name="tsx-no-mask",
        kind="future-leak",
        severity="error",
        mechanism="no-causal-mask",
        module="blocks.0.attention",
        marker="# fault: nothing says causal",
        story="The fused call without is_causal: every token sees the window's end.",
        patch=replace(ATTENTION, Unmasked),
        proof=leaks,
    ),
    plant(
        name="tsx-over-head-dim",
        kind="attention-axis",
        severity="error",
        mechanism="wrong-axis",
        module="blocks.0.attention",
        marker="# fault: [A, A] weights",
        story="The language model's diary: attention over the head's features instead of time.",
        patch=replace(ATTENTION, OverHeadDim),
        proof=leaks,
    ),
    plant(
        name="tsx-window-scaled",
        kind="future-leak",
        severity="error",
        mechanism="scaling-leak",
        module="embedding",
        marker="# fault: the whole window's spread",
        story="Each window is scaled by its own spread inside the model: points to come decide "
        "the size of those before.",
        patch=replace("tsx.model.forecaster.PointEmbedding", WindowScaled),
        proof=leaks,
    ),
    plant(
        name="tsx-norm-without-eps",
        kind="nan-origin",
        severity="error",
        mechanism="division-by-zero",
        module="blocks.0.attention_norm",
        marker="# fault: padding has no root mean square",
        story="A norm without eps meets the first padded window: zeros are embedded as zeros, and "
        "0 / 0 is NaN.",
        steps=3,
        config=LATE_PADDING,
        patch=replace("tsx.model.forecaster.RMSNorm", RootNorm),
        proof=shows_at_last_step,
    ),
    plant(
        name="tsx-half-router",
        kind="nan-origin",
        severity="error",
        mechanism="overflow-fp16",
        module="blocks.0.moe.router",
        marker="# fault: above 65,504",
        story="Router logits in fp16 overflow; a softmax of two inf is NaN.",
        steps=1,
        patch=replace("tsx.model.moe.Router", HalfRouter),
        proof=shows_at_last_step,
    ),
    plant(
        name="tsx-mask-given",
        kind="attention-backend",
        mechanism="mask-not-null",
        also=("mask-wants-gradient",),
        module="blocks.0.attention",
        marker="# fault: a mask given",
        severity="info",
        story="A mask that wants a gradient is handed to the fused call, which silently takes "
        "another kernel.",
        patch=replace(ATTENTION, FloatMask),
        proof=runs_unfused,
    ),
    plant(
        name="tsx-mixed-norm",
        kind="dtype-mismatch",
        mechanism="fp32-weight-bf16-input",
        module="blocks.0.attention_norm",
        marker="# fault: two dtypes",
        story="bf16 is slower than fp32: an fp32 norm weight beside a bf16 input leaves the fused "
        "kernel.",
        patch=replace("tsx.model.forecaster.RMSNorm", MixedNorm),
        warns="Mismatch dtype between input and weight",
        config={"train__precision": "bf16"},
        proof=has_two_dtypes,
    ),
    plant(
        name="tsx-randn-experts",
        kind="init-scale",
        mechanism="no-fan-in",
        module="blocks.0.moe.experts",
        story="Stacked experts drawn by randn, without fan-in: a first loss of hundreds, taken "
        "for a fault of capacity.",
        patch=after_build(randn_experts),
        proof=experts_are_loud,
    ),
    plant(
        name="tsx-dead-experts",
        kind="init-scale",
        mechanism="fan-in-of-three-axes",
        module="blocks.0.moe.experts",
        story="The repair of the repair: kaiming on a stacked tensor takes two axes for the fan; "
        "experts are far too small, and nothing shows it.",
        patch=after_build(kaiming_experts),
        proof=experts_are_dead,
    ),
)
