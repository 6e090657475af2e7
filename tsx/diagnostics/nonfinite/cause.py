"""What a cause is, and the one that is left where no other is seen: a result too large."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.tracing.trace import Birth

SHORT = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
_EXPLODED = 1e4  # a weight that large was driven there: usual ones are below 10


@dataclass(slots=True)
class Cause:
    """The true cause of a bad value."""

    mechanism: str
    sentence: str
    fix: str
    evidence: dict[str, Any] = field(default_factory=dict)


def explain_overflow(birth: Birth) -> Cause:
    """Return what is left: a result too large for its type, or infinities that cancel."""
    out = birth.out
    dtype = out.dtype if out is not None else torch.float32
    inputs = [value for value in birth.args if is_float(value) and value.numel()]
    largest = max(
        (float(value.detach().abs().nan_to_num(0.0, 0.0, 0.0).max()) for value in inputs),
        default=0.0,
    )
    named = str(dtype).removeprefix("torch.")
    if birth.kind == "nan" and any(bool(v.isinf().any()) for v in inputs):
        return Cause(
            "infinities-cancel",
            f"{birth.op}: an infinity was multiplied by zero or taken from another",
            "use torch.where or masked_fill in place of adding or multiplying by infinities",
            {"largest_input": largest},
        )
    if birth.largest_weight[1] > _EXPLODED:
        name, size = birth.largest_weight
        return Cause(
            "exploding-weights",
            f"{birth.op} overflows {named}: weights have exploded, {name} is up to {size:.3g}",
            "go on from an earlier checkpoint with a lower learning rate or clipped gradients",
            {"parameter": name, "largest": size},
        )
    mechanism = f"overflow-{SHORT.get(dtype, named)}"
    return Cause(
        mechanism,
        f"{birth.op} overflows {named}: inputs up to {largest:.3g}, largest number "
        f"{torch.finfo(dtype).max:.3g}",
        "scale the values down, subtract the maximum first, or compute this in a wider type",
        {"largest_input": largest, "dtype": named},
    )


def is_float(value: Any) -> bool:
    """Return whether a value is a tensor of real numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()
