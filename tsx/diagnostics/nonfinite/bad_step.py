"""A step whose loss or gradient is not finite: what is known of it without running it again.

Looks at what is at hand before `optimizer.step`: the loss, the gradients, the parameters and the
batch. It says on which side of the forward pass the first bad value must have arisen, not which
operation made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor, nn

from registry.events import Finding, Severity

MAX_NAMES = 8  # parameters listed by name; the rest are counted


def is_finite_step(loss: float, grad_norm: float) -> bool:
    """Return whether a step's loss and total gradient norm are both finite."""
    return math.isfinite(loss) and math.isfinite(grad_norm)


def describe(
    model: nn.Module,
    *,
    loss: float | None,
    grad_norm: float,
    inputs: Iterable[np.ndarray],
    step: int,
    time: float,
    severity: Severity = Severity.ERROR,
) -> Finding:
    """Return what is known of a non-finite step, to be called before the weights are touched.

    The cause is the earliest place that can be blamed: the batch, then parameters that were bad
    already, then the forward pass (loss not finite), then the backward pass.

    Args:
        model: with the step's gradients, not clipped yet.
        loss: of the whole step; None where nobody has seen it.
        grad_norm: total norm before clipping.
        inputs: the arrays the model was fed in this step.
        step: the optimizer step that was under way, the first being 1.
        time: UTC seconds, for the finding.
        severity: ERROR where the run halts.
    """
    bad_inputs = sum(int(np.size(a) - np.count_nonzero(np.isfinite(a))) for a in inputs)
    bad_params = _count_bad({name: p.detach() for name, p in model.named_parameters()})
    # Backward runs from the loss to the input: the last parameter in forward order is its first.
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad_grads = _count_bad(dict(reversed(grads.items())))
    phase, module, cause, fix = _blame(step, loss, bad_inputs, bad_params, bad_grads)
    return Finding(
        time=time,
        kind="non-finite",
        severity=severity,
        step=step,
        phase=phase,
        module=module,
        cause=cause,
        evidence={
            "loss": "not seen" if loss is None else _text(loss),
            "grad_norm": _text(grad_norm),
            "nonfinite_inputs": bad_inputs,
            "nonfinite_parameters": _first(bad_params),
            "nonfinite_gradients": _first(bad_grads),
            "num_nonfinite_parameters": len(bad_params),
            "num_nonfinite_gradients": len(bad_grads),
            "num_gradients": len(grads),
        },
        fix=fix,
    )


def _blame(
    step: int,
    loss: float | None,
    bad_inputs: int,
    bad_params: Mapping[str, int],
    bad_grads: Mapping[str, int],
) -> tuple[str, str, str, str]:
    """Return phase, module, cause and fix of the earliest place that is not finite."""
    if bad_inputs:
        return (
            "data",
            "",
            "the batch holds values that are not finite",
            "check the series with data.allow_nonfinite=false, or mask them with true",
        )
    if bad_params:
        name = next(iter(bad_params))
        if step == 1:
            cause = "parameters were not finite before the first update: they were drawn so"
            return "config", name, cause, "lower model.init_std"
        return (
            "optimizer",
            name,
            "parameters were not finite before this step: an earlier update broke them",
            "resume from the last checkpoint with a lower optim.lr or a longer warm-up",
        )
    if loss is not None and not math.isfinite(loss):
        return (
            "forward",
            "",
            "finite weights and a finite batch gave a loss that is not finite",
            "lower optim.lr, lengthen optim.warmup_steps, or try train.precision=fp32",
        )
    name = next(iter(bad_grads), "")
    seen = "the loss is finite, its" if loss is not None else "the loss was not seen, its"
    cause = f"{seen} gradient is not finite" if loss is None else f"{seen} gradient is not"
    if not bad_grads:
        cause = "every gradient is finite, their total norm overflows"
    return "backward", name, cause, "lower optim.lr or try train.precision=fp32"


def _count_bad(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of non-finite elements of each tensor that has any."""
    counts = {name: int((~t.isfinite()).sum()) for name, t in tensors.items()}
    return {name: count for name, count in counts.items() if count}


def _first(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the first few entries; the total is recorded beside them."""
    return dict(list(counts.items())[:MAX_NAMES])


def _text(value: float) -> float | str:
    """Return a number, or the strict-JSON name of one that is not finite."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
