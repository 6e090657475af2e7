"""Why an operation made a bad value of good ones: the mechanism, in one sentence, with a fix.

Works on the operation as it ran: its inputs and its output are at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.nonfinite.attention_causes import (
    explain_attention,
    explain_mask,
    explain_softmax,
)
from tsx.diagnostics.nonfinite.cause import SHORT, Cause, explain_overflow, is_float
from tsx.diagnostics.tracing.trace import Birth

_SOFTMAX = ("_softmax", "_log_softmax", "logsumexp", "_safe_softmax")
_EPSILONS = ("add", "add_", "clamp_min", "clamp", "maximum")


def explain(birth: Birth, *, is_gradient: bool = False) -> Cause:
    """Return the cause of a birth; `is_gradient` says that the loss itself was finite."""
    if birth.leaf:
        return _explain_leaf(birth)
    if birth.hidden_by and is_gradient:
        return _explain_hidden(birth)
    if birth.phase == "backward":
        return _explain_backward(birth)
    return _explain_forward(birth)


def _explain_leaf(birth: Birth) -> Cause:
    group, _, name = birth.leaf.partition(" ")
    named = f" ({name})" if name and name != group else ""
    what = "NaN" if birth.kind == "nan" else "infinite"
    match group:
        case "parameter":
            return Cause(
                "bad-parameter",
                f"parameter {name} was {what} before the step",
                "go back to a checkpoint before it, and look for what the update before did",
            )
        case "buffer":
            return Cause(
                "bad-buffer",
                f"buffer {name} was {what} before the step",
                "reset the buffer (running statistics, caches) and look for what filled it",
            )
        case "target":
            return Cause(
                "bad-target",
                f"the targets{named} hold {what} values",
                "clean or mask these targets before the loss",
                _count_rows(birth.out),
            )
    return Cause(
        "bad-batch",
        f"the batch{named} holds {what} values",
        "clean, fill or mask these samples before they reach the model",
        _count_rows(birth.out),
    )


def _explain_forward(birth: Birth) -> Cause:
    op = birth.op.rstrip("_") if birth.op != "_" else birth.op
    floats = [value for value in birth.args if is_float(value)]
    first = floats[0] if floats else None
    if birth.op in _SOFTMAX or "softmax" in birth.op:
        return explain_softmax(birth, first)
    if "scaled_dot_product" in birth.op:
        return explain_attention(birth)
    maker = _FORWARD.get(op.lstrip("_")) or _FORWARD.get(op)
    if maker is not None:
        found = maker(birth, first)
        if found is not None:
            return found
    return explain_overflow(birth)


def _log(birth: Birth, x: Tensor | None) -> Cause | None:
    shift = 1.0 if birth.op.startswith("log1p") else 0.0
    if x is None:
        return None
    zeros, negative = int((x == -shift).sum()), int((x < -shift).sum())
    if negative:
        return Cause(
            "log-of-negative",
            f"log of {negative} negative values",
            "clamp the argument to a small positive number",
            {"negative": negative, "min": float(x.min())},
        )
    if zeros:
        return Cause(
            "log-of-zero",
            f"log of {zeros} zeros",
            "clamp the argument (x.clamp_min(1e-6)) or use a log_softmax / logsigmoid",
            {"zeros": zeros},
        )
    return None


def _sqrt(birth: Birth, x: Tensor | None) -> Cause | None:
    if x is None:
        return None
    negative, zeros = int((x < 0).sum()), int((x == 0).sum())
    if negative:
        return Cause(
            "sqrt-of-negative",
            f"square root of {negative} negative values",
            "clamp the argument at zero; a negative variance comes of cancellation",
            {"negative": negative, "min": float(x.min())},
        )
    if zeros and "rsqrt" in birth.op:
        return _division_cause(zeros)
    return None


def _division(birth: Birth, x: Tensor | None) -> Cause | None:
    at = 0 if "reciprocal" in birth.op else 1
    divisor = birth.args[at]
    zeros = int((divisor == 0).sum()) if isinstance(divisor, Tensor) else int(divisor == 0)
    if not zeros:
        return None
    maker = birth.makers[at]
    if maker is not None and maker.leaf.startswith("buffer"):
        name = maker.leaf.partition(" ")[2]
        return Cause(
            "bad-buffer",
            f"division by buffer {name}, which is zero at {zeros} elements",
            "fill the buffer before it is used, or keep it away from zero",
            {"buffer": name, "zeros": zeros},
        )
    for made in maker.iter_back() if maker is not None else ():
        if made.op in _EPSILONS and made.scalar and 0 < made.scalar < 1e-2:
            named = SHORT.get(divisor.dtype, str(divisor.dtype))
            return Cause(
                "eps-underflow",
                f"the epsilon {made.scalar:g} that should keep a divisor from zero is 0 in {named}",
                f"use an epsilon that {named} can hold beside the value, or compute this in fp32",
                {"eps": made.scalar, "dtype": named},
            )
    number = not isinstance(divisor, Tensor) or divisor.ndim == 0
    summed = birth.makers[0] if at else None
    if number and summed is not None and summed.op in ("sum", "sum_", "cumsum"):
        return _empty_cause(x if at == 0 else None)
    return _division_cause(zeros)


def _division_cause(zeros: int) -> Cause:
    return Cause(
        "division-by-zero",
        f"division by zero, at {zeros} elements",
        "add a small epsilon to the divisor, or leave out what has nothing to divide by",
        {"zeros": zeros},
    )


def _power(birth: Birth, x: Tensor | None) -> Cause | None:
    base, exponent = (torch.as_tensor(value) for value in birth.args[:2])
    if bool(((base == 0) & (exponent < 0)).any()):
        return _division_cause(int(((base == 0) & (exponent < 0)).sum()))
    broken = (base < 0) & (exponent != exponent.round())
    if bool(broken.any()):
        return Cause(
            "pow-of-negative",
            f"a negative value to a power that is no whole number, at {int(broken.sum())} elements",
            "clamp the base at zero, or take the power of its magnitude",
            {"negative": int(broken.sum())},
        )
    return None


def _domain(birth: Birth, x: Tensor | None) -> Cause | None:
    return Cause(
        "out-of-domain",
        f"{birth.op} of a value outside its domain",
        "clamp the argument inside the domain, a little away from its ends",
    )


def _reduction(birth: Birth, x: Tensor | None) -> Cause | None:
    if x is not None and (x.numel() == 0 or birth.out is None or x.numel() <= birth.out.numel()):
        return _empty_cause(x)
    return None


def _empty_cause(x: Tensor | None) -> Cause:
    size = 0 if x is None else x.numel()
    return Cause(
        "empty-reduction",
        f"{'mean of nothing' if size == 0 else 'spread of one value'}: nothing was selected",
        "skip the term when nothing is selected, or divide by max(count, 1)",
        {"elements": size},
    )


def _nll(birth: Birth, x: Tensor | None) -> Cause | None:
    ignore = next((value for value in reversed(birth.args) if type(value) is int), -100)
    targets = [value for value in birth.args if isinstance(value, Tensor) and not is_float(value)]
    if targets and bool((targets[0] == ignore).all()):
        return Cause(
            "empty-reduction",
            "every label of the batch is the ignored one: the mean loss is of nothing",
            "skip such batches, or sum and divide by max(count, 1)",
            {"labels": targets[0].numel()},
        )
    return None


def _add(birth: Birth, x: Tensor | None) -> Cause | None:
    """Two masks of the lowest number: their sum is -inf."""
    floats = [value.detach() for value in birth.args[:2] if is_float(value)]
    if (
        birth.kind == "nan"
        and len(floats) == 2
        and all(bool((v == -torch.inf).any()) for v in floats)
    ):
        return explain_mask({})  # a softmax by hand: a row of -inf less its own maximum
    if len(floats) == 2 and all(
        bool(((v <= torch.finfo(v.dtype).min / 2) & v.isfinite()).any()) for v in floats
    ):
        return Cause(
            "masks-added-twice",
            "two masks of the lowest finite number were added: their sum is -inf, and a row of "
            "nothing else is NaN after the softmax",
            "combine boolean masks first, and fill once",
        )
    return None


def _ctc(birth: Birth, x: Tensor | None) -> Cause | None:
    return Cause(
        "impossible-alignment",
        "a target is longer than its input can spell: no alignment, an infinite CTC loss",
        "leave such samples out, or ctc_loss(zero_infinity=True)",
    )


_FORWARD: dict[str, Callable[[Birth, Tensor | None], Cause | None]] = {
    **dict.fromkeys(("log", "log2", "log10", "log1p"), _log),
    **dict.fromkeys(("sqrt", "rsqrt"), _sqrt),
    **dict.fromkeys(("div", "reciprocal", "true_divide"), _division),
    **dict.fromkeys(("pow",), _power),
    **dict.fromkeys(("acos", "asin", "acosh", "atanh", "lgamma", "digamma", "logit"), _domain),
    **dict.fromkeys(
        ("mean", "var", "std", "var_mean", "std_mean", "nanmean", "median"), _reduction
    ),
    **dict.fromkeys(("add", "sub", "add_relu"), _add),
    **dict.fromkeys(("ctc_loss", "_ctc_loss", "_cudnn_ctc_loss"), _ctc),
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward", "nll_loss"), _nll),
}


def _explain_backward(birth: Birth) -> Cause:
    node = birth.node.removesuffix("Backward0").removesuffix("Backward1").removesuffix("Backward")
    forward = birth.forward
    if forward is not None and forward.birth is not None and forward.birth.hidden_by:
        return _explain_hidden(forward.birth)
    if birth.is_custom:
        return Cause(
            "custom-backward",
            f"the backward of the custom function {birth.node} made it",
            "check the function with torch.autograd.gradcheck in float64",
        )
    maker = _BACKWARD.get(node)
    if maker is not None:
        return maker(birth)
    if "scaled_dot_product" in birth.op:
        return explain_attention(birth)
    zeros = _count_zero_divisors(birth)
    if zeros:
        return Cause(
            "division-by-zero",
            f"the gradient of {node} divides by zero, at {zeros} elements",
            "keep the argument away from zero",
            {"zeros": zeros},
        )
    return explain_overflow(birth)


def _explain_hidden(birth: Birth) -> Cause:
    inner = _explain_forward(birth)
    if inner.mechanism in ("fully-masked-row", "inverted-mask"):
        return inner
    return Cause(
        "where-gradient",
        f"torch.{birth.hidden_by} hides what {birth.op} made ({inner.mechanism}), but not its "
        "gradient: zero times infinity is NaN",
        "make the argument safe before the operation: where(ok, x, 1) inside, where outside",
        {"forward": inner.mechanism},
    )


def _at_zero(mechanism: str, what: str) -> Callable[[Birth], Cause]:
    def make(birth: Birth) -> Cause:
        zeros = _count_zero_divisors(birth)
        return Cause(
            mechanism,
            f"the gradient of {what} at zero is infinite"
            + (f", at {zeros} elements" if zeros else ""),
            "add an epsilon inside it: (x + 1e-12).sqrt(), or clamp away from zero",
            {"zeros": zeros},
        )

    return make


def _degenerate(birth: Birth) -> Cause:
    return Cause(
        "degenerate-decomposition",
        "the gradient of a decomposition divides by differences of equal eigenvalues",
        "add a little noise to the matrix, or keep the decomposition out of the graph",
    )


_BACKWARD: dict[str, Callable[[Birth], Cause]] = {
    "Sqrt": _at_zero("sqrt-at-zero", "a square root"),
    "Pow": _at_zero("sqrt-at-zero", "a power below one"),
    "Std": _at_zero("sqrt-at-zero", "a standard deviation"),
    "LinalgVectorNorm": _at_zero("sqrt-at-zero", "a norm"),
    "Norm": _at_zero("sqrt-at-zero", "a norm"),
    "Cdist": _at_zero("sqrt-at-zero", "a distance"),
    "Acos": _at_zero("acos-at-one", "acos (at 1 and -1, not"),
    "Asin": _at_zero("acos-at-one", "asin (at 1 and -1, not"),
    "LinalgEigh": _degenerate,
    "LinalgEig": _degenerate,
    "LinalgSvd": _degenerate,
    "LinalgQr": _degenerate,
}


def _count_zero_divisors(birth: Birth) -> int:
    if "div" in birth.op or "reciprocal" in birth.op:
        divisor = birth.args[-1]
        if isinstance(divisor, Tensor):
            return int((divisor == 0).sum())
    return sum(int((value == 0).sum()) for value in birth.args[1:] if is_float(value))


def _count_rows(tensor: Tensor | None) -> dict[str, Any]:
    """Return which samples of a tensor [B, ...] are bad."""
    if tensor is None or tensor.ndim == 0:
        return {}
    bad = ~tensor.detach().isfinite()
    rows = bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist()
    return {"samples": rows[:16], "num_samples": len(rows), "values": int(bad.sum())}
