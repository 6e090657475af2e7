"""Why a stored tensor did not move: what AdamW's state beside it proves.

The step that the state would take is taken in fp32 and rounded to the tensor's dtype: where every
element comes out as it went in, the update is lost to rounding, and that is a proof. Source of the
step: Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2,
w' = w (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.weights.audit import AdamFacts, Measured, Weights, name_dtype
from tsx.diagnostics.weights.roles import EXPERTS

KEEP_FP32 = (
    "keep parameters in fp32 and compute in bf16 under autocast (train.precision=bf16 does), or "
    "keep an fp32 copy of them in the optimizer"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Why a tensor stands still.

    Attributes:
        mechanism: slug of the cause.
        text: one or two sentences.
        fix: what to do; "" where the cause is open.
        evidence: figures.
        weight: which of several speaks for all: that of the largest step.
    """

    mechanism: str
    text: str
    fix: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    weight: float = 0.0


def explain_standing(one: Measured, weights: Weights) -> Standing:
    """Return why a part did not move, as far as the files can tell."""
    adam = weights.adam
    if adam is None:
        return _guess(one, weights)
    moments = [weights.find_moment(slot, one.part.tensor) for slot in ("exp_avg", "exp_avg_sq")]
    if moments[0] is None or moments[1] is None:
        return Standing(
            "not-in-optimizer",
            "The optimizer has no state of them: it was never given them, or never a gradient.",
            "look at requires_grad and at the optimizer's parameter groups",
        )
    first, second = (one.part.take(moment).float() for moment in moments if moment is not None)
    if not first.any() and not second.any():
        return _explain_silence(one)
    count = weights.find_moment("step", one.part.tensor)
    steps = float(count) if count is not None and count.numel() == 1 else 1.0
    size = _unit_step(first, second, max(steps, 1.0), adam)
    now = one.part.take(weights.get(one.part.tensor)).detach()
    for lr, which in ((adam.peak_lr, "at the run's highest rate"), (adam.lr, "at its last rate")):
        found = _prove(one, now, size, lr, adam)
        if found is not None:
            return _describe_loss(one, found, lr, which)
    return Standing(
        "overwritten",
        "The optimizer's state would move them: they are overwritten after the step, or the "
        "optimizer holds other tensors than the model.",
        "look for weights that are loaded, tied or copied back after optimizer.step",
        {"adam_step": float(f"{float((adam.lr * size).abs().max()):.3g}")},
    )


def _explain_silence(one: Measured) -> Standing:
    if one.part.role.startswith(EXPERTS):
        return Standing(
            "no-tokens",
            "Adam's moments of them are exactly zero: no token was ever routed to them.",
            "look at the router's load per layer, and raise model.aux_loss_weight",
        )
    return Standing(
        "zero-gradient",
        "Adam's moments of them are exactly zero: every gradient they got was zero.",
        "look for units that are dead, and for an output that is multiplied by zero",
    )


def _guess(one: Measured, weights: Weights) -> Standing:
    """Return what weights alone can tell."""
    if not one.is_low:
        return Standing(
            "unknown",
            "Weights alone do not tell why: requires_grad is off, they are not in the optimizer, "
            "or they get no gradient.",
        )
    now = one.part.take(weights.get(one.part.tensor)).detach()
    half = _half_ulp(now, torch.ones_like(now, dtype=torch.float32))
    largest = float(half.max())
    return Standing(
        "update-underflow",
        f"They are stored in {name_dtype(one.dtype)}, where half an ulp of them is {largest:.3g}: "
        "a smaller step is lost to rounding, and the likely cause. Without the optimizer's state "
        "that is no proof.",
        KEEP_FP32,
        {"half_ulp": largest, "is_proved": False},
    )


def _unit_step(first: Tensor, second: Tensor, steps: float, adam: AdamFacts) -> Tensor:
    """Return what AdamW subtracts at a rate of 1, without weight decay."""
    mean = first / (1 - adam.beta1**steps)
    spread = (second / (1 - adam.beta2**steps)).sqrt()
    step: Tensor = mean / (spread + adam.eps)
    return step


def _prove(
    one: Measured, now: Tensor, size: Tensor, lr: float, adam: AdamFacts
) -> tuple[float, float] | None:
    """Return the step that comes nearest to half an ulp, and that half; None where any moves."""
    decay = adam.weight_decay if now.ndim > 1 or one.part.is_expert else 0.0
    change = lr * size + lr * decay * now.float()
    if not bool(((now.float() - change).to(now.dtype) == now).all()):
        return None
    half = _half_ulp(now, change)
    worst = int((change.abs() / half).argmax())
    return float(change.flatten()[worst].abs()), float(half.flatten()[worst])


def _describe_loss(one: Measured, found: tuple[float, float], lr: float, which: str) -> Standing:
    step, half = found
    if lr == 0 or step == 0:
        return Standing("lr-zero", "The learning rate is 0.", "raise optim.lr", {"lr": lr})
    needed = lr * half / step
    return Standing(
        "update-underflow",
        f"They are stored in {name_dtype(one.dtype)}, and Adam's step of {step:.3g}, {which}, is "
        f"under half an ulp of them ({half:.3g}): w - step rounds back to w. The optimizer's state "
        "proves it, for gradients do arrive.",
        KEEP_FP32,
        {
            "adam_step": float(f"{step:.4g}"),
            "half_ulp": float(f"{half:.4g}"),
            "lr": lr,
            "lr_that_would_move": float(f"{needed:.3g}"),
            "is_proved": True,
        },
        weight=step / half if math.isfinite(half) else 0.0,
    )


def _half_ulp(now: Tensor, change: Tensor) -> Tensor:
    """Return half the way to the next number in the direction that a change subtracts."""
    toward = torch.where(change >= 0, -torch.inf, torch.inf).to(now.dtype)
    return (torch.nextafter(now, toward).float() - now.float()).abs() / 2
