"""All experts' products as one operation of static shape, and the permutation around it.

The rows of all experts together are always R = N * K, so a step of constant batch size has constant
shapes and compiles once; how the rows fall to the experts is data, read inside the operation. The
loop over experts lives there: each product writes straight into its rows of the result, and each
expert's gradient straight into its place of the stacked one. On CUDA in bf16 torch's own grouped
product replaces the loop, where a trial on the device shows that it is right there.

Moving rows to their expert and back is a permutation: forward and backward are both gathers, and
no gradient is ever scattered onto indices that repeat.

Shapes: N tokens, K experts per token, R = N * K rows, E experts, I inputs and O outputs of a
linear, D hidden size.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tsx.model.precision import find_autocast_dtype


def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """Return y[r] = weight[e(r)] x[r], rows of expert 0 first, then of expert 1 and so on.

    Under autocast the product has autocast's dtype, as a linear's would.

    Args:
        x_RI: rows sorted by expert.
        weight_EOI: one linear's weight per expert.
        counts_E: int64, rows of each expert; they sum to R, and one may be 0.
    """
    device = x_RI.device
    dtype = find_autocast_dtype(device.type)
    if dtype is not None:
        x_RI, weight_EOI = x_RI.to(dtype), weight_EOI.to(dtype)
    if device.type == "cuda" and x_RI.dtype is torch.bfloat16 and has_grouped_product(device.index):
        return _device_product(x_RI, weight_EOI, counts_E)
    y_RO: Tensor = _loop_product(x_RI, weight_EOI, counts_E)
    return y_RO


def gather_rows(x: Tensor, index_R: Tensor, inverse_R: Tensor, fan_out: int) -> Tensor:
    """Return x[index_R], with a backward pass that gathers too.

    Args:
        x: rows, R / fan_out of them.
        index_R: which row each row of the result is; each occurs `fan_out` times.
        inverse_R: where the copies of row n are in the result: entries n * fan_out and following.
        fan_out: how many copies each row has.
    """
    y: Tensor = _Gather.apply(x, index_R, inverse_R, fan_out)  # type: ignore[no-untyped-call]
    return y


class _Gather(torch.autograd.Function):
    """See `gather_rows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index_R: Tensor, inverse_R: Tensor, fan_out: int) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.fan_out = fan_out
        return x.index_select(0, index_R)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inverse_R,) = ctx.saved_tensors
        grad = grad.index_select(0, inverse_R)
        if ctx.fan_out > 1:
            grad = torch.unflatten(grad, 0, (-1, ctx.fan_out)).sum(1)
        return grad, None, None, None


@torch.library.custom_op("tsx::grouped_linear", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _loop_product(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply each expert's rows; the host reads the counts once."""
    y_RO = x_RI.new_empty(x_RI.shape[0], weight_EOI.shape[1])
    for expert, rows in _list_rows(counts_E):
        torch.mm(x_RI[rows], weight_EOI[expert].t(), out=y_RO[rows])
    return y_RO


@torch.library.custom_op(
    "tsx::grouped_linear_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _loop_gradients(
    grad_RO: Tensor, x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows and weights; that of an expert without rows is 0."""
    grad_RO = grad_RO.contiguous()
    grad_RI, grad_EOI = torch.empty_like(x_RI), torch.empty_like(weight_EOI)
    for expert, rows in _list_rows(counts_E):
        torch.mm(grad_RO[rows].t(), x_RI[rows], out=grad_EOI[expert])
        torch.mm(grad_RO[rows], weight_EOI[expert], out=grad_RI[rows])
    return grad_RI, grad_EOI


def _list_rows(counts_E: Tensor) -> list[tuple[int, slice]]:
    """Return each expert with its rows."""
    counts: list[int] = counts_E.tolist()
    ends = accumulate(counts)
    return [(e, slice(end - n, end)) for e, (n, end) in enumerate(zip(counts, ends, strict=True))]


@_loop_product.register_fake
def _(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    return x_RI.new_empty(x_RI.shape[0], weight_EOI.shape[1])


@_loop_gradients.register_fake
def _(grad_RO: Tensor, x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_RI), torch.empty_like(weight_EOI)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_RO: Tensor) -> tuple[Tensor, Tensor, None]:
    grad_RI, grad_EOI = _loop_gradients(grad_RO, *ctx.saved_tensors)
    return grad_RI, grad_EOI, None


_loop_product.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.tsx.grouped_linear)
def _count_product(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    """Two operations per row and weight of its expert."""
    return int(2 * x_shape[0] * weight_shape[1] * weight_shape[2])


@register_flop_formula(torch.ops.tsx.grouped_linear_backward)
def _count_gradients(grad_shape: Any, x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    """Twice the product itself: one for the rows, one for the weights."""
    return 2 * _count_product(x_shape, weight_shape)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_grouped_product(device_index: int) -> bool:
    """Return whether torch's grouped product is right on a CUDA device; tried once a process.

    The trial has what goes wrong first: an expert without rows, and counts that are no multiple of
    anything. Values and both gradients are held against the loop.
    """
    if device_index not in _TRIED:
        _TRIED[device_index] = _try_device_product(torch.device("cuda", device_index))
    return _TRIED[device_index]


_TRIED: dict[int, bool] = {}


def _try_device_product(device: torch.device) -> bool:
    if not hasattr(F, "grouped_mm"):
        return False
    generator = torch.Generator(device).manual_seed(0)
    counts_E = torch.tensor([3, 0, 61, 37], device=device)
    found = []
    with torch.enable_grad(), torch.autocast("cuda", enabled=False):
        shapes = ((101, 64), (4, 128, 64))
        drawn = [torch.randn(s, device=device, generator=generator) for s in shapes]
        for product in (_device_product, _loop_product):
            x, weight = (t.bfloat16().requires_grad_() for t in drawn)
            try:
                y = product(x, weight, counts_E)
                found.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
            except (RuntimeError, NotImplementedError):
                return False
    return all(
        torch.allclose(ours.float(), theirs.float(), rtol=0.05, atol=0.5)
        for ours, theirs in zip(*found, strict=True)
    )


def _device_product(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply by torch's grouped product; nothing waits for the device."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    y_RO: Tensor = F.grouped_mm(x_RI, weight_EOI.transpose(-2, -1), offs=ends_E)
    return y_RO
