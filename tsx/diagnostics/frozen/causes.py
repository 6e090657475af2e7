"""Why a parameter does not move: the walk from what is certain to what has to be worked out.

Owns the order of the walk and its words. Facts in, one cause out; None where nothing is wrong with
the parameter, or nobody can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from registry.events import Severity
from tsx.diagnostics.frozen.gradient_paths import Cut, End
from tsx.diagnostics.frozen.samples import Unit
from tsx.diagnostics.routing.routed_rows import Choice
from tsx.diagnostics.tracing.step_spy import StepSpy
from tsx.diagnostics.weights.roles import EXPERTS

LOOKS = 3  # a first step at rate 0 and zero-initialised last layers wake up in the second
# A part that did not run, or an expert without rows, may have its turn later.
LOOKS_IDLE = 16
# Of a gradient that is left after clipping; ordinary clipping of a spike takes 99 %.
CLIPPED = 1e-4
MOVING = 0.5  # share of the others that has to move before one that does not is to blame in fp32
LARGE = 10.0  # a weight in fp32 below this loses no update but those of a rate of nothing
_ACTIVATIONS = ("Relu", "Threshold", "Hardtanh", "Clamp", "LeakyRelu", "Elu", "Gelu", "Silu")


class Cause(NamedTuple):
    """What is wrong.

    Attributes:
        mechanism: slug.
        why: ends the sentence "... does not move: ".
        fix: what to do.
        module: the guilty one; None for the parameters' own.
        where: "file.py:12".
        severity: of the finding.
        looks: at how many of them it has to be so before it is told.
        evidence: figures of this parameter.
    """

    mechanism: str
    why: str
    fix: str
    module: str | None = None
    where: str = ""
    severity: Severity = Severity.WARNING
    looks: int = LOOKS
    evidence: Mapping[str, Any] = MappingProxyType({})


@dataclass(slots=True)
class Facts:
    """What is known of one unit in the step that was looked at last.

    Attributes:
        unit: whose facts these are.
        wanted_grad: requires_grad when it was seen first; `wants_grad`: now.
        is_held: by an optimizer that steps.
        is_twin_held: an optimizer holds a tensor of the same numbers that the model has no more.
        is_left_on_purpose: most of the model is in no optimizer.
        has_grad: at the step; `has_any_grad`: anything that its optimizer holds.
        grad: its norm then; None where it has not been measured.
        seen_grad: norm right after the backward pass, of the unscaled loss; None as before.
        left: share of the gradient that is left at the step; None as before.
        lr: of its group; None where that is on a device.
        is_lr_rising: the warm-up is not over.
        has_other_rate: another group has a rate above 0.
        is_lost, update, half_ulp: of its shadow, see `tsx.diagnostics.frozen.shadow`; None where
            there is none.
        others_move: share of what the same optimizer holds that moves.
        is_undone: it moves in each step, and is back before the next.
        was_moved: by a gradient, before.
        has_run: its module has, in a call that was traced; None where nobody knows.
        is_reached: the loss depends on it; None where nobody knows.
        switch: "file.py:12", the line of the loop that turned requires_grad off.
        cut: where its gradient was cut off.
        end: where its gradient became zero.
        starved: number of the expert that it belongs to, which got no rows, and the choice.
        spy: who watched its gradient and its value for a step.
        is_sibling_moved: another parameter of its module has a gradient.
        is_low_precision: of 16 bits.
    """

    unit: Unit
    wanted_grad: bool = True
    wants_grad: bool = True
    is_held: bool = True
    is_twin_held: bool = False
    is_left_on_purpose: bool = False
    has_grad: bool = False
    has_any_grad: bool = True
    grad: float | None = None
    seen_grad: float | None = None
    left: float | None = None
    lr: float | None = None
    is_lr_rising: bool = False
    has_other_rate: bool = False
    is_lost: bool | None = None
    update: float = 0.0
    half_ulp: float = 0.0
    others_move: float = 1.0
    is_undone: bool = False
    was_moved: bool = False
    has_run: bool | None = None
    is_reached: bool | None = None
    switch: str = ""
    cut: Cut | None = None
    end: End | None = None
    feeds: str = ""  # name of the module whose parameter is nearest before `end`
    starved: tuple[int, Choice] | None = None
    spy: StepSpy | None = None
    is_sibling_moved: bool = False
    is_low_precision: bool = False


def find_cause(facts: Facts) -> Cause | None:
    """Return why a unit does not move."""
    if facts.is_undone:
        return _find_overwriting(facts)
    for find in _WALK:
        if (cause := find(facts)) is not None:
            return None if cause.mechanism == "" else cause
    return None


_NOTHING = Cause("", "", "")  # ends the walk: nothing is to be said


def _find_switched_off(facts: Facts) -> Cause | None:
    if facts.wants_grad:
        return None
    if not facts.wanted_grad:
        return Cause(
            "requires-grad-off",
            "requires_grad was off from the start",
            "nothing, if it is frozen on purpose",
            severity=Severity.INFO,
        )
    return Cause(
        "requires-grad-off",
        "requires_grad was turned off on the way and has not been turned on again",
        "call requires_grad_(True) where it is to learn again",
        where=facts.switch,
    )


def _find_not_held(facts: Facts) -> Cause | None:
    if facts.is_held:
        return None
    if facts.is_twin_held:
        return Cause(
            "stale-tensor",
            "the optimizer steps an older tensor of the same values, which the model has no more",
            "build the optimizer after the last change of the model",
        )
    severity = Severity.INFO if facts.is_left_on_purpose else Severity.WARNING
    return Cause(
        "not-in-optimizer",
        "no optimizer holds it",
        "hand it to the optimizer, or set requires_grad_(False) if it is frozen on purpose",
        severity=severity,
    )


def _find_missing_gradient(facts: Facts) -> Cause | None:
    """Say why there is no gradient at all."""
    if facts.has_grad:
        return None
    if facts.was_moved:  # a task of its own, a rare branch
        return _NOTHING
    change = facts.spy.gradient[-1] if facts.spy and facts.spy.gradient else None
    if facts.seen_grad:
        return _describe_taken(facts, change.where if change else "", change.call if change else "")
    if facts.starved is not None:
        return _describe_starved(*facts.starved)
    if facts.cut is not None:
        return _describe_cut(facts.cut)
    if facts.has_run is False:
        return Cause(
            "no-gradient",
            "its module has not run",
            "call it in forward, or take it out",
            looks=LOOKS_IDLE,
        )
    why = "it has no gradient"
    if facts.is_reached is False:
        why += ": the loss does not depend on it"
    fix = "look for detach(), no_grad() and outputs that are not used"
    looks = LOOKS_IDLE if facts.has_any_grad else LOOKS
    return Cause("no-gradient", why, fix, looks=looks)


def _describe_taken(facts: Facts, where: str, call: str) -> Cause:
    """Say that a gradient was there after the backward pass and is not at the step."""
    name = f" by {call}" if call else ""
    return Cause(
        "no-gradient",
        f"its gradient is taken away{name} between backward() and step()",
        "zero gradients before backward(), not after it",
        where=where,
        evidence={"grad_norm_after_backward": facts.seen_grad},
    )


def _describe_starved(expert: int, choice: Choice) -> Cause:
    # Several that starve are the router's fault, and told of as that.
    is_hopeless = choice.is_out_of_reach(expert) and choice.count_starved() == 1
    return Cause(
        "no-tokens",
        f"expert {expert} got no tokens",
        "balance the router: a loss that does, noise, or a bias",
        severity=Severity.WARNING if is_hopeless else Severity.INFO,
        looks=LOOKS if is_hopeless else LOOKS_IDLE,
        evidence={
            "tokens": [int(rows) for rows in choice.rows][:64],
            "largest_probability": choice.chance[expert],
        },
    )


def _describe_cut(cut: Cut) -> Cause:
    what = {
        "no_grad": "autograd is off there",
        "checkpoint": "the checkpointed part gets no input that wants a gradient, so autograd "
        "is off in it",
        "numpy": "numpy knows of no gradients",
        "item": "a number has no gradient",
        "tolist": "a list has no gradient",
        "argmax": "argmax has no gradient",
        "argmin": "argmin has no gradient",
    }.get(cut.reason, f"{cut.reason} ends the graph there")
    fix = {
        "checkpoint": "use_reentrant=False, or let the input require a gradient",
        "argmax": "a softmax, a straight-through or a Gumbel estimate has one",
        "argmin": "a softmin, a straight-through or a Gumbel estimate has one",
    }.get(cut.reason, "take it out of this path")
    why = f"its gradient is cut off: {what}"
    evidence = {"also_cut_at": list(cut.others)} if cut.others else {}
    place = cut.place
    return Cause("no-gradient", why, fix, module=place.module, where=place.where, evidence=evidence)


def _find_lr_zero(facts: Facts) -> Cause | None:
    if facts.lr != 0.0 or facts.is_lr_rising:
        return None
    if facts.was_moved or not facts.has_other_rate:  # the schedule's end, or its beginning
        return _NOTHING
    why = "the learning rate of its group is 0"
    return Cause("lr-zero", why, "look at how the rate of this group is worked out")


def _find_clipped(facts: Facts) -> Cause | None:
    if facts.left is None or facts.left >= CLIPPED:
        return None
    change = facts.spy.gradient[-1] if facts.spy and len(facts.spy.gradient) > 1 else None
    if change is not None and "zero" in change.call and not facts.grad:
        return _describe_taken(facts, change.where, change.call)
    return Cause(
        "clipped-to-nothing",
        "its gradient is clipped to next to nothing before the step",
        "clip to a larger norm; to turn clipping off, leave the call out",
        where=change.where if change is not None else "",
        evidence={"grad_norm_after_backward": facts.seen_grad, "grad_norm_at_step": facts.grad},
    )


def _find_zero_gradient(facts: Facts) -> Cause | None:
    if facts.grad != 0.0:
        return None
    if facts.starved is not None:
        return _describe_starved(*facts.starved)
    if facts.is_sibling_moved and facts.unit.part.name.endswith("bias"):
        return _NOTHING  # what a norm or a softmax behind it takes out again
    if facts.cut is not None and facts.unit.part.rows is not None:
        return _describe_cut(facts.cut)
    is_chosen = facts.unit.part.role.startswith(EXPERTS)  # by a router, row by row
    is_rare = facts.was_moved or is_chosen
    severity = Severity.INFO if is_rare else Severity.WARNING
    looks = LOOKS_IDLE if is_rare else LOOKS
    if facts.end is None:
        why = "its gradient is 0 at each step"
        fix = "look for saturated or dead activations behind it"
        return Cause("zero-gradient", why, fix, severity=severity, looks=LOOKS_IDLE)
    end = facts.end
    name = end.place.op.removesuffix("0").removesuffix("Backward")
    is_dead = name.startswith(_ACTIVATIONS)
    if end.is_by_data:
        looks = LOOKS_IDLE
    return Cause(
        "zero-gradient",
        f"its gradient becomes 0 in {name}"
        + (": what goes in is where that is flat" if is_dead else ""),
        _ZERO_FIXES.get(name, "look at the values that go into this operation"),
        module=(facts.feeds or None) if is_dead else end.place.module,
        where=end.place.where,
        severity=severity,
        looks=looks,
        evidence={"op": end.place.op},
    )


_ZERO_FIXES = {
    "Relu": "lower the rate or the bias before it: the units never fire",
    "Softmax": "give the softmax an axis of more than one entry, and scores that are not so far "
    "apart",
    "Sigmoid": "start the gate where the sigmoid is not flat",
    "Tanh": "start it where tanh is not flat",
    "Mul": "one factor is 0: start it from something else",
    "Mm": "the other factor is 0: start one of both from something else",
    "Addmm": "the other factor is 0: start one of both from something else",
    "Bmm": "the other factor is 0: start one of both from something else",
}


def _find_lost_update(facts: Facts) -> Cause | None:
    if not facts.is_lost or facts.is_lr_rising:
        return None
    size = 2 * facts.half_ulp / torch.finfo(facts.unit.param.dtype).eps
    if not facts.is_low_precision and (facts.others_move < MOVING or size < LARGE):
        return _NOTHING  # the rate is too low for everything: no matter of this parameter
    dtype = str(facts.unit.param.dtype).removeprefix("torch.")
    return Cause(
        "update-underflow",
        f"its update is under half a step of {dtype} at its values and is rounded away",
        "keep the weights in fp32 and cast in forward (autocast), or round stochastically"
        if facts.is_low_precision
        else "scale the weights down, or raise the learning rate",
        evidence={
            "largest_update": facts.update,
            "half_ulp": facts.half_ulp,
            "grad_norm": facts.grad,
            "proof": "a step of the same optimizer on a wider copy, rounded, gives the old weight",
        },
    )


def _find_overwriting(facts: Facts) -> Cause:
    change = facts.spy.value[-1] if facts.spy and facts.spy.value else None
    by = f" by {change.call}" if change and change.call else ""
    return Cause(
        "overwritten-after-step",
        f"the optimizer moves it, and it is put back{by} before the next step",
        "do not write to it between steps, or write what the step has made",
        where=change.where if change else "",
    )


_WALK: tuple[Callable[[Facts], Cause | None], ...] = (
    _find_switched_off,
    _find_not_held,
    _find_missing_gradient,
    _find_lr_zero,
    _find_clipped,
    _find_zero_gradient,
    _find_lost_update,
)
