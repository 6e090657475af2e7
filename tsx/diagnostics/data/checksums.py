"""What a tensor holds as one number, from a sample of its bits; on its own device, without a wait.

The sample is spread over the tensor by a step that shares no factor with common widths. Two equal
tensors have equal numbers; two unequal ones too only if all sampled places are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SAMPLE = 256  # places
MAX_COPY = 1 << 16  # elements of a slice that is copied: cheaper than to pick from it
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def measure_checksum(tensor: Tensor) -> int | Tensor | None:
    """Return a number, as a tensor [] of int64 on a device; None for what has no plain bits."""
    x = tensor.detach() if tensor.requires_grad else tensor
    if x.layout is not torch.strided or x.is_meta or x.is_quantized or x.is_nested:
        return None
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    count = x.numel()
    if not count:
        return None
    sample = take_sample(x)
    if x.device.type == "cpu":
        bits = sample if x.dtype is not torch.bfloat16 else sample.contiguous().view(torch.int16)
        return hash((bits.numpy().tobytes(), count))
    kind = _INTEGERS.get(x.element_size())
    if kind is None:
        return None
    factors = _get_factors(str(x.device))[: sample.numel()]
    return (sample.contiguous().view(kind).to(torch.int64) * factors).sum() + count


def read_checksums(
    sums: Sequence[int | Tensor], read_late: Any, take: Callable[[tuple[int, ...]], None]
) -> None:
    """Hand numbers to `take`: at once where all are there, else as `read_late` reads them."""
    if not any(isinstance(total, Tensor) for total in sums):
        take(tuple(int(total) for total in sums))
        return
    device = next(total.device for total in sums if isinstance(total, Tensor))
    values = [torch.as_tensor(total, dtype=torch.int64, device=device) for total in sums]
    read_late(torch.stack(values), lambda found: take(tuple(found)))


def take_sample(x: Tensor) -> Tensor:
    """Return up to SAMPLE places of a tensor as a vector."""
    count = x.numel()
    step = max(1, count // SAMPLE)
    step -= step % 2 == 0  # an odd one: not a column of a picture or a table
    if not x.is_contiguous():
        if count > MAX_COPY:
            return x.take(torch.arange(min(count, SAMPLE), device=x.device) * step)
        x = x.reshape(-1).contiguous()  # one that is expanded has fewer places than elements
    return x.as_strided((min(count, SAMPLE),), (step,))


@functools.cache
def _get_factors(device: str) -> Tensor:
    """Return odd numbers, another for each place; fixed, for no generator is to be touched."""
    numbers = [(2 * (0x9E3779B97F4A7C15 * (place + 1) % 2**40) + 1) for place in range(SAMPLE)]
    return torch.tensor(numbers, dtype=torch.int64, device=device)
