"""Which axis of a model's input is time and which is the batch, as far as that can be told.

Time is the axis along which a target is the input, shifted by one; the batch is the other of the
first two. Where no target is shifted, time is known to nobody but the user, and the batch only
where shapes leave no choice. Who cannot tell says so: a wrong guess would be a false alarm.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LEAST_CHANGES = 4  # places where an input differs from its neighbour, to call a target shifted
SHIFTED_SHARE = 0.9  # of those places: a batch may hold a few that were masked or corrupted
IGNORED = -100  # torch's label that counts nothing


@dataclass(frozen=True, slots=True)
class Layout:
    """Where batch and time are.

    Attributes:
        leaf: number of the input among the model's arguments.
        batch: axis of it; None where nobody can tell.
        time: axis of it; None where it has none.
        is_shifted: a target is this input one step later.
        is_sure: the batch is what its axis is, and neither a set nor a sequence.
        num_samples, num_steps: sizes; 0 where there is no axis.
        counted_BT: bool, where a label counts; None where all do or nobody can tell.
    """

    leaf: int
    batch: int | None
    time: int | None
    is_shifted: bool
    is_sure: bool
    num_samples: int
    num_steps: int
    counted_BT: Tensor | None = None


def find_layout(
    leaves: Sequence[Any], targets: Iterable[Tensor], model: nn.Module, *, is_causal: bool
) -> Layout | None:
    """Return the layout of the input that a probe may change.

    Args:
        leaves: the model's arguments, flat.
        targets: what a loss or the loop's call was given.
        model: that took them.
        is_causal: the user says that there is a time axis.
    """
    usable = [(i, x) for i, x in enumerate(leaves) if isinstance(x, Tensor) and _is_usable(x)]
    held = [y for y in targets if y.layout is torch.strided and not y.is_meta]
    for index, x in usable:
        for y in held:
            for axis in (1, 0):
                counted = find_shift(x, y, axis)
                if counted is not None:
                    sizes = x.shape[1 - axis], x.shape[axis]
                    # Windows that follow each other by one step are shifted along both axes.
                    is_sure = axis == 0 or find_shift(x, y, 0) is None
                    return Layout(index, 1 - axis, axis, True, is_sure, *sizes, counted)
    if not usable:
        return None
    index, x = usable[0]
    batch, is_sure = _find_batch(x, leaves, held, model)
    if is_causal and batch is not None and x.ndim in (2, 3):
        return Layout(index, batch, 1 - batch, False, is_sure, x.shape[batch], x.shape[1 - batch])
    if batch is None:
        return None
    return Layout(index, batch, None, False, is_sure, x.shape[batch], 0)


def find_shift(x: Tensor, y: Tensor, axis: int) -> Tensor | None:
    """Return where labels count, bool [B, T], if y is x one step later along an axis.

    Args:
        x: input, its first two axes batch and time in either order.
        y: target, of the same order; its first two axes may be flattened, its last step left out.
        axis: of time.
    """
    if x.device != y.device or x.ndim not in (2, 3) or min(x.shape[:2]) < 1 or x.shape[axis] < 3:
        return None
    size = x.shape[axis]
    wide = x.unsqueeze(-1) if x.ndim == 2 else x
    for length in (size, size - 1):
        shape = list(x.shape[:2])
        shape[axis] = length
        labels = _match(y, shape)
        if labels is None or not _can_broadcast(labels.shape[-1], wide.shape[-1]):
            continue
        steps = min(length, size - 1)
        later, now = wide.narrow(axis, 1, steps), wide.narrow(axis, 0, steps)
        told = labels.narrow(axis, 0, steps)
        counted = (told != IGNORED).any(-1)
        changes = (later != now) & counted[..., None]
        equal = (told.to(x.dtype) == later) & changes
        count, hits = (part.sum((0, 1)) for part in (changes, equal))
        enough = (count >= LEAST_CHANGES) & (hits >= SHIFTED_SHARE * count)
        if bool(enough.any()):
            full = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            full.narrow(axis, 0, steps).copy_(counted)
            if length == size:
                full.select(axis, size - 1).copy_((labels != IGNORED).any(-1).select(axis, -1))
            return full if axis == 1 else full.T
    return None


def _can_broadcast(one: int, other: int) -> bool:
    return one == other or 1 in (one, other)


def _match(y: Tensor, shape: list[int]) -> Tensor | None:
    """Return a target as [first, second, features]."""
    count = shape[0] * shape[1]
    if list(y.shape[:2]) == shape and y.ndim in (2, 3):
        return y.unsqueeze(-1) if y.ndim == 2 else y
    if y.ndim in (1, 2) and y.shape[0] == count and count:
        return y.reshape(*shape, -1)
    return None


def _is_usable(x: Tensor) -> bool:
    """Return whether a probe may change a tensor: real numbers or ids, dense."""
    if x.layout is not torch.strided or x.is_meta or x.ndim < 2 or not x.numel():
        return False
    return x.is_floating_point() or x.dtype in (torch.int32, torch.int64)


def _find_batch(
    x: Tensor, leaves: Sequence[Any], targets: Sequence[Tensor], model: nn.Module
) -> tuple[int | None, bool]:
    """Return the axis of the batch, and whether nothing else could be meant by it."""
    sizes = [y.shape[0] for y in targets if y.ndim >= 1 and y is not x]
    beside = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim and leaf is not x]
    if any(not leaf.is_floating_point() and x.shape[0] != leaf.shape[0] for leaf in beside):
        return None, False  # indices into the first axis: a graph
    if x.ndim >= 4:
        return (0, True) if not sizes or x.shape[0] in sizes else (None, False)
    vectors = {y.shape[0] for y in targets if y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)}
    vectors |= {leaf.shape[0] for leaf in beside if leaf.ndim == 1}
    first, second = x.shape[:2]
    if x.ndim == 2 and x.is_floating_point():
        is_other = second in vectors and first not in vectors
        return (None, False) if is_other else (0, False)
    if first != second and (first in vectors) != (second in vectors):
        return (0 if first in vectors else 1), True
    takes_time_first = any(
        getattr(module, "batch_first", True) is False for module in model.modules()
    )
    return (None, False) if takes_time_first else (0, False)
