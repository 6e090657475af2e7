"""Inputs and labels of a sequence, side by side: which label belongs to which time of the input.

Shapes: B samples, T times of the input, S times of the labels (S <= T), F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tsx.diagnostics.tracing.loss_calls import LossCall
from tsx.diagnostics.tracing.provenance import count_cut

MAX_CUT = 2  # times that labels may be shorter than the input: the last has no successor
MIN_TIMES = 4
MAX_SAMPLES = 64  # that are compared: more say nothing new


class Aligned(NamedTuple):
    """Labels against one input of the call.

    Attributes:
        x: input [B, T] or [B, T, F].
        y: labels [B, S] or [B, S, F].
        counts: labels that count [B, S].
        offset: label s is asked of what the model says at time s + offset.
    """

    x: Tensor
    y: Tensor
    counts: Tensor
    offset: int


def line_up(loss: LossCall, inputs: Iterable[Tensor]) -> Iterator[Aligned]:
    """Yield what a loss takes as labels against each input that it may be a shift of."""
    target = loss.target.detach()
    for x in inputs:
        if not _is_sequence(x) or x.device != target.device:
            continue
        y = _unflatten(target, x)
        if y is None:
            continue
        counts = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        if loss.is_by_class:
            if x.is_floating_point():
                continue
            counts = y != loss.ignored
        elif not x.is_floating_point() or not y.is_floating_point():
            continue
        yield Aligned(
            x.detach()[:MAX_SAMPLES],
            y[:MAX_SAMPLES],
            counts[:MAX_SAMPLES],
            count_cut(loss.input, 1),
        )


def list_inputs(
    named: Mapping[str, Tensor], target: Tensor, model_args: Iterable[object]
) -> list[Tensor]:
    """Return what a call was given beside its targets.

    Args:
        named: as `Call.name_tensors`.
        target: that a loss takes; what shares its memory is an input only if the model got it.
        model_args: what the model was given.
    """
    got = [value for value in model_args if isinstance(value, Tensor)]
    return [
        x
        for name, x in named.items()
        if name.startswith("batch ")
        and (not _is_alike(x, target) or any(x is value for value in got))
    ]


def line_up_arguments(named: Mapping[str, Tensor]) -> Iterator[Aligned]:
    """Yield targets against inputs of their shape and kind, by what a call was given.

    A mask that comes right after the target, of its shape, says which of it counts.
    """
    names = list(named)
    for index, name in enumerate(names):
        y = named[name]
        if not name.startswith("target ") or not _is_sequence(y):
            continue
        after = named[names[index + 1]] if index + 1 < len(names) else None
        is_mask = after is not None and after.dtype is torch.bool and after.shape[:2] == y.shape[:2]
        if is_mask and after is not None and after.ndim == 2:
            counts = after
        else:
            counts = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        if not y.is_floating_point():
            counts = counts & (y if y.ndim == 2 else y[..., 0]).ge(0)
        for other in names:
            x = named[other]
            if other.startswith("target ") or x.shape != y.shape or x.dtype != y.dtype:
                continue
            if x.device == y.device:
                yield Aligned(
                    x.detach()[:MAX_SAMPLES], y.detach()[:MAX_SAMPLES], counts[:MAX_SAMPLES], 0
                )


def measure_lags(pair: Aligned, lags: Iterable[int]) -> Tensor:
    """Return for each lag s the share of labels that are the input s later, and their number.

    Only labels that count and whose partner is inside are held against it: [lags, 2].
    """
    size, found = pair.x.shape[1], []
    for lag in lags:
        first = pair.offset + lag  # time of the input that belongs to label 0
        start, stop = max(0, -first), min(pair.y.shape[1], size - first)
        if stop - start < 1:
            found.append(torch.zeros(2, device=pair.y.device))
            continue
        same = pair.y[:, start:stop] == pair.x[:, start + first : stop + first]
        same = same.flatten(2).all(-1) if same.ndim > 2 else same
        counts = pair.counts[:, start:stop]
        total = counts.sum().float()
        found.append(torch.stack([(same & counts).sum() / total.clamp(min=1), total]))
    return torch.stack(found)


def count_values(pair: Aligned) -> Tensor:
    """Return how often neighbours of the input differ: what does not move has every lag."""
    moved = pair.x[:, 1:] != pair.x[:, :-1]
    return moved.flatten(1).float().mean()


def _is_sequence(x: Tensor) -> bool:
    if x.layout is not torch.strided or x.is_nested or x.is_meta or x.dtype is torch.bool:
        return False
    return x.ndim in (2, 3) and x.shape[1] >= MIN_TIMES and x.shape[0] > 0


def _is_alike(one: Tensor, two: Tensor) -> bool:
    """Return whether two tensors are one in memory."""
    is_plain = one.layout is torch.strided and two.layout is torch.strided
    return is_plain and one.numel() == two.numel() and one.data_ptr() == two.data_ptr()


def _unflatten(target: Tensor, x: Tensor) -> Tensor | None:
    """Return labels with the axes of an input, None where they do not fit."""
    batch, size = x.shape[:2]
    if target.ndim == 1 or (target.ndim == 2 and target.shape[0] != batch):
        length, rest = divmod(target.numel(), batch)
        if rest or x.ndim != 2:
            return None
        target = target.reshape(batch, length)
    if target.ndim != x.ndim or target.shape[0] != batch or target.shape[2:] != x.shape[2:]:
        return None
    return target if 0 <= size - target.shape[1] <= MAX_CUT and target.shape[1] >= 1 else None
