"""Where a batch is padded, as its masks and its values say together.

A mask alone does not say what its True means, nor whether it is about padding at all: labels to
fill in are marked by masks as well. Padding is what a mask marks at the end of its rows, of unequal
length, and where the input holds one and the same value throughout.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Padding:
    """The padding of a batch.

    Attributes:
        pad_BT: bool, True on padding.
        is_given: the model itself was given the mask, not its loss alone.
    """

    pad_BT: Tensor
    is_given: bool


def find_padding(leaves: Sequence[Any], given: Iterable[Tensor]) -> Padding | None:
    """Return the padding of a batch; None where there is none or nobody can tell.

    Args:
        leaves: the model's arguments.
        given: to the loop's call.
    """
    inputs = [x for x in leaves if isinstance(x, Tensor) and _is_input(x)]
    known = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    beside = [y for y in given if not any(y is leaf for leaf in known)]
    labels = [y for y in beside if y.ndim in (2, 3) and _read(y) is None]
    for number, mask in enumerate([*known, *beside]):
        marked = _read(mask)
        if marked is None:
            continue
        for pad_BT in (marked, ~marked):
            if not _is_at_an_end(pad_BT) or not any(_is_constant(x, pad_BT) for x in inputs):
                continue
            same = [y for y in labels if y.shape[:2] == pad_BT.shape]
            if all(_is_constant(y, pad_BT) for y in same):  # else it is what is asked for
                return Padding(pad_BT, number < len(known))
    return None


def _is_input(x: Tensor) -> bool:
    is_number = x.is_floating_point() or not (x.is_complex() or x.element_size() == 1)
    return x.ndim in (2, 3) and is_number and _read(x) is None


def _read(mask: Tensor) -> Tensor | None:
    """Return a mask [B, T] as bool; None for what is none."""
    if mask.ndim != 2 or min(mask.shape) < 2 or mask.is_meta or mask.is_complex():
        return None
    if mask.element_size() != 1 and not bool(((mask == 0) | (mask == 1)).all()):
        return None
    marked = mask != 0
    return marked if bool(marked.any()) and not bool(marked.all()) else None


def _is_at_an_end(pad_BT: Tensor) -> bool:
    """Return whether every row is padded at one and the same end, by unequal counts."""
    counts = pad_BT.sum(1)
    if not bool((counts != counts[0]).any()):
        return False
    right = (pad_BT[:, 1:] >= pad_BT[:, :-1]).all()
    left = (pad_BT[:, 1:] <= pad_BT[:, :-1]).all()
    return bool(right | left)


def _is_constant(x: Tensor, pad_BT: Tensor) -> bool:
    """Return whether an input holds one value on padding, and others elsewhere."""
    if x.shape[:2] != pad_BT.shape or x.device != pad_BT.device:
        return False
    padded, rest = x[pad_BT], x[~pad_BT]
    if not bool((padded == padded[:1]).all()):
        return False
    return bool((rest != padded[:1]).float().mean() > 0.5)
