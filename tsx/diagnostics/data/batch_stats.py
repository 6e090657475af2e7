"""Measures of one batch, as vectors on its own device: nothing here waits for an accelerator.

Shapes: B samples, T times, H and W of pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tsx.diagnostics.data.sequences import Aligned

MAX_ELEMENTS = 1 << 20  # of a batch: whole samples, the first ones
MIN_LENGTH = 8  # of a window that may be said not to move
MIN_TOKENS = 4
MAX_PICTURES = 8
FLOAT_STATS = (
    *("count", "rms", "least", "num_least", "rest_least", "most", "num_most", "rest_most"),
    *("windows", "constant", "is_binary"),
)
TOKEN_STATS = ("windows", "constant", "is_one_value", "value", "is_binary")
_LIMITS = {32767.0, 32768.0, 65535.0, 2147483647.0, 2147483648.0, 1e10, 1e20, 1e30, 1e36}
_ON_A_GRID = 1e-3  # of a level of 256
_SEAM = 8  # levels on each side of 0 and 255
MIN_SEAM = 0.02  # of all pixels on each side of it
MAX_SEAM_RATIO = 4.0  # of the two sides: what wraps goes on on the other side
MAX_EDGE = 3.0  # times its neighbours: black and white pile up at the very ends
MAX_ROUGHNESS = 0.5  # of pictures unwrapped, against what they are


def measure_floats(tensor: Tensor) -> Tensor:
    """Return FLOAT_STATS: size, extremes, how often they occur, and windows that do not move.

    A window of zeros does move: it is padding, or a day without sales.
    """
    x = _cut(tensor.detach()).float()
    x = torch.where(x.isfinite(), x, 0.0)
    least, most = x.amin(), x.amax()
    rest = [torch.where(x == value, 0.0, x).abs().amax() for value in (least, most)]
    numbers = [(x == value).sum().float() for value in (least, most)]
    windows, constant = _count_constant(x)
    is_binary = ((x == 0) | (x == 1)).all().float()
    count = x.new_tensor(float(x.numel()))
    largest = torch.maximum(-least, most).clamp_min(torch.finfo(x.dtype).tiny)  # squares overflow
    values = [count, largest * (x / largest).square().mean().sqrt(), least, numbers[0], rest[0]]
    return torch.stack([*values, most, numbers[1], rest[1], windows, constant, is_binary])


def _count_constant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of windows and the share of those that are one value, not 0."""
    zero = x.new_zeros(())
    if x.ndim < 2 or x.shape[0] < 1:
        return zero, zero
    if x.ndim > 3:
        x = x.flatten(1)
    if x.shape[1] < MIN_LENGTH:
        return zero, zero
    is_still = (x.amax(1) == x.amin(1)) & (x[:, 0] != 0)
    still_B = is_still if is_still.ndim == 1 else is_still.flatten(1).all(1)
    return x.new_tensor(float(x.shape[0])), still_B.float().mean()


def measure_tokens(tensor: Tensor) -> Tensor:
    """Return TOKEN_STATS: windows of one token, and whether it is the same in all of them."""
    x_BT = _cut(tensor.detach())
    if x_BT.shape[1] < MIN_TOKENS:
        return torch.zeros(len(TOKEN_STATS), device=x_BT.device)
    still_B = x_BT.amax(1) == x_BT.amin(1)
    first_B = x_BT[:, 0].double()
    most = torch.where(still_B, first_B, -torch.inf).amax()
    least = torch.where(still_B, first_B, torch.inf).amin()
    values = [first_B.new_tensor(float(len(x_BT))), still_B.double().mean()]
    is_binary = ((x_BT == 0) | (x_BT == 1)).all().double()
    return torch.stack([*values, (most == least).double(), most, is_binary])


def measure_padding(pair: Aligned) -> Tensor:
    """Return the share of labels that count and are padding, and whether there is any.

    Padding is one value at the end of most rows of input and labels, and nowhere before it.
    """
    x, y = pair.x, pair.y
    if x.ndim == 3:
        x, y = x[..., 0], y[..., 0]
    value = x[:, -1].mode().values
    is_pad_x, is_pad_y = _mark_end(x, value), _mark_end(y, value)
    inner = (x == value) & ~is_pad_x
    rows = (is_pad_x.sum(1) >= 2).float().mean()
    lengths = (~is_pad_x).sum()
    is_empty = is_pad_x.all(1).float().mean() >= 0.5  # windows of padding alone: another fault
    is_padding = (rows >= 0.5) & ~is_empty & ~inner.any() & (lengths >= MIN_TOKENS * 2)
    counted = pair.counts & is_pad_y & _pad_to(is_pad_x, y.shape[1])
    share = counted.sum() / pair.counts.sum().clamp(min=1)
    return torch.stack([share, is_padding.float()])


def _mark_end(x_BT: Tensor, value: Tensor) -> Tensor:
    """Return where rows are a value from there to their end."""
    return (x_BT == value).flip(1).long().cumprod(1).flip(1).bool()


def _pad_to(mark_BT: Tensor, size: int) -> Tensor:
    """Return a mark of the input at the times of the labels: the last `size` of them."""
    return mark_BT[:, -size:]


def measure_wrapping(tensor: Tensor) -> bool:
    """Return whether pictures [B, C, H, W] on the host are bytes that wrapped around.

    Such a picture is smooth once its levels are moved by half of their range, and as many pixels
    lie just above 0 as just below 255, without piling up at either end.
    """
    x = tensor.detach()[:MAX_PICTURES].float()
    if min(x.shape[-2:]) < 4 or x.shape[1] > 4:
        return False
    most, least = float(x.amax()), float(x.amin())
    if not (least >= 0 and 0 < most <= 255):  # NaN is none of it
        return False
    levels = x * 255.0 if most <= 1.0 else x
    grid = levels.round()
    if float((levels - grid).abs().amax()) > _ON_A_GRID:
        return False
    counts = torch.bincount(grid.long().flatten(), minlength=256)[:256].float()
    low, high = counts[:_SEAM], counts[-_SEAM:]
    sides = float(low.sum()) / float(counts.sum()), float(high.sum()) / float(counts.sum())
    if min(sides) < MIN_SEAM or max(sides) > MAX_SEAM_RATIO * min(sides):
        return False
    if counts[0] > MAX_EDGE * low[1:].mean() or counts[-1] > MAX_EDGE * high[:-1].mean():
        return False
    moved = (grid + 128) % 256
    return _measure_roughness(moved) < MAX_ROUGHNESS * _measure_roughness(grid)


def _measure_roughness(x: Tensor) -> float:
    return float((x[..., 1:] - x[..., :-1]).abs().mean())


def is_sentinel(value: float) -> bool:
    """Return whether a number is one that people write for a missing reading."""
    size = abs(value)
    if size in _LIMITS or size >= 1e36:
        return True
    text = f"{size:.1f}".rstrip("0").rstrip(".").replace(".", "")
    return size >= 99 and (set(text) == {"9"} or set(text) == {"8"})


def _cut(tensor: Tensor) -> Tensor:
    """Return the first samples, as many as are cheap to read."""
    per_sample = tensor.numel() // max(1, tensor.shape[0]) if tensor.ndim else 1
    return tensor[: max(1, MAX_ELEMENTS // max(1, per_sample))] if tensor.ndim else tensor
