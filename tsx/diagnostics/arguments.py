"""What the arguments of a call seem to be: batch or target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def name_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by what they seem to be: the last of several is a target.

    Keys are "batch argument 1", "target argument 2", "target labels".
    """
    named: dict[str, Any] = {}
    tensors = [index for index, value in enumerate(args) if isinstance(value, Tensor)]
    for index in tensors:
        is_target = len(tensors) > 1 and index == tensors[-1]
        named[f"{'target' if is_target else 'batch'} argument {index + 1}"] = args[index]
    for name, value in kwargs.items():
        is_target = any(word in name.lower() for word in ("target", "label"))
        named[f"{'target' if is_target else 'batch'} {name}"] = value
    return named
