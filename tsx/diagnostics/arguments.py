"""What the arguments of a call seem to be: batch or target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

MAX_DEPTH = 3  # of batches in dicts and tuples
MAX_TENSORS = 64
_TARGET_WORDS = ("target", "label")


def name_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a call by what they seem to be.

    One whose name says so is a target; where no name does, the last of several is. Masks are no
    targets, nor is a vector whose length is not that of the batch: a divisor, a weight per class.

    Keys are "batch argument 1", "target argument 2", "target labels", "batch argument 1.mask".
    """
    found: dict[str, Tensor] = {}
    for name, value in _iter_named(args, kwargs):
        found[name] = value
        if len(found) >= MAX_TENSORS:
            break
    targets = {name for name, value in found.items() if _is_named_target(name, value)}
    if not targets:
        targets = _guess_target(found)
    return {
        f"{'target' if name in targets else 'batch'} {name}": value for name, value in found.items()
    }


def _iter_named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in arguments, and in the dicts, tuples and lists among them."""
    for index, value in enumerate(args):
        yield from _iter_nested(f"argument {index + 1}", value, MAX_DEPTH)
    for name, value in kwargs.items():
        yield from _iter_nested(str(name), value, MAX_DEPTH)


def _iter_nested(name: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if is_plain(value):
            yield name, value
    elif depth and isinstance(value, Mapping):
        for key, inner in list(value.items())[:MAX_TENSORS]:
            yield from _iter_nested(f"{name}.{key}", inner, depth - 1)
    elif depth and isinstance(value, tuple | list):
        for index, inner in enumerate(value[:MAX_TENSORS]):
            yield from _iter_nested(f"{name}.{index + 1}", inner, depth - 1)


def _is_named_target(name: str, value: Tensor) -> bool:
    lowered = name.lower()
    return any(word in lowered for word in _TARGET_WORDS) and not is_mask(name, value)


def is_mask(name: str, value: Tensor) -> bool:
    """Return whether a tensor says what counts instead of being counted."""
    return value.dtype is torch.bool or "mask" in name.lower()


def _guess_target(found: Mapping[str, Tensor]) -> set[str]:
    """Return the name of the last tensor that may be a target, none where there is one alone."""
    names = list(found)
    if len(names) < 2:
        return set()
    length = _get_length(found[names[0]])
    counted = [name for name in names[1:] if not is_mask(name, found[name])]
    fitting = [name for name in counted if _get_length(found[name]) == length]
    return set((fitting or counted)[-1:])


def _get_length(value: Tensor) -> int:
    return value.shape[0] if value.ndim else 0


def is_plain(value: Tensor) -> bool:
    """Return whether a tensor holds its numbers one by one: not sparse, nested, quantized, meta."""
    is_dense = value.layout is torch.strided and not value.is_nested
    return is_dense and not (value.is_quantized or value.is_meta)


def iter_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from iter_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from iter_tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from iter_tensors(getattr(value, field.name, None))
