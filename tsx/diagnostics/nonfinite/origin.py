"""Where a value that is not finite came from: operation, line, module, and its true cause.

The call that gave the bad loss or gradient is run again under `tsx.diagnostics.tracing.trace`; what
was first among the ancestors of the bad value is named, not what was first seen.

Not covered: a call that gives another result when it is run again (a random source of its own), and
operations inside compiled or captured graphs; those are run eagerly here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from registry.events import Finding, Severity
from tsx.diagnostics.nonfinite.cause import Cause
from tsx.diagnostics.nonfinite.causes import explain
from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.replay import run_eagerly
from tsx.diagnostics.tracing.trace import Birth, Trace, is_bad

KIND = "nan-origin"


@dataclass(frozen=True, slots=True)
class Origin:
    """The first bad value, and why it came to be."""

    birth: Birth
    cause: Cause
    phase: str  # "forward", "backward", "data" or "optimizer"
    module: str
    where: str  # "file.py:12"


def find_origin(
    model: nn.Module,
    compute_loss: Callable[[], Tensor],
    arguments: Mapping[str, Any],
    *,
    backward: bool,
) -> Origin | None:
    """Run a call again and return where its first bad value came from.

    Args:
        model: whose modules and parameters are named; state as it was before the call.
        compute_loss: the call.
        arguments: what it is given, by name: "batch x", "target y"; only tensors count.
        backward: the loss was finite, its gradients were not.

    Returns:
        None where nothing bad is seen this time.
    """
    trace = Trace(model, list_leaves(model, arguments))
    with run_eagerly(), trace.watching():
        loss = compute_loss()
        found = trace.find_origin(loss) if is_bad(loss) else None
        is_gradient = found is None
        if is_gradient and backward and loss.requires_grad:
            trace.phase = "backward"
            for grad in list_gradients(model, loss, compute_loss):
                birth = trace.find_origin(grad)
                is_first = birth is not None and (found is None or birth.index < found.index)
                if is_first and is_bad(grad):
                    found = birth
    return None if found is None else locate(found, is_gradient=is_gradient)


def list_gradients(
    model: nn.Module, loss: Tensor, compute_loss: Callable[[], Tensor]
) -> list[Tensor]:
    """Return the gradients of a model's parameters; nobody else's `.grad` is touched.

    Reentrant checkpoints can only add up: there the loss is computed again, and what the backward
    pass of other modules leaves is not taken back.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    try:
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(loss, params, allow_unused=True)
    except RuntimeError as error:
        if "heckpoint" not in str(error):
            raise
        compute_loss().backward()  # type: ignore[no-untyped-call]
        grads = tuple(param.grad for param in params)
    return [grad for grad in grads if grad is not None]


def locate(birth: Birth, *, is_gradient: bool) -> Origin:
    """Return what is to be said of a birth."""
    cause = explain(birth, is_gradient=is_gradient)
    place = birth.place
    if birth.phase == "backward" and birth.forward is not None:
        place = birth.forward.place  # the line whose gradient this is
    phase, module, where = birth.phase, place.module, place.where
    if birth.is_custom:
        where = birth.place.where  # of a backward pass that the user wrote
    group, _, name = birth.leaf.partition(" ")
    if group in ("parameter", "buffer"):
        phase, module, where = "optimizer", name.rpartition(".")[0], ""
    elif birth.leaf:
        phase, module, where = "data", "", ""
    return Origin(birth, cause, phase, module, where)


def describe_origin(
    origin: Origin,
    *,
    step: int,
    time: float,
    severity: Severity = Severity.ERROR,
    evidence: Mapping[str, Any] | None = None,
) -> Finding:
    """Return the finding of an origin; `evidence` is what else is known."""
    cause, birth = origin.cause, origin.birth
    known = {"mechanism": cause.mechanism, "value": birth.kind, **cause.evidence}
    if birth.node:
        known["gradient_of"] = birth.node
    return Finding(
        time=time,
        kind=KIND,
        severity=severity,
        step=step,
        phase=origin.phase,
        module=origin.module,
        op=birth.op or birth.leaf.partition(" ")[2],
        where=shorten(origin.where),
        cause=cause.sentence,
        evidence={**known, **(evidence or {})},
        fix=cause.fix,
    )


def list_leaves(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a call starts from by name: parameters, buffers and tensors it is given."""
    leaves = {f"parameter {name}": p.detach() for name, p in model.named_parameters()}
    leaves |= {f"buffer {name}": b for name, b in model.named_buffers()}
    return leaves | {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
