"""A call of the program, held on to so that it can be made again: as it was, or otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tsx.diagnostics.tracing.replay import Moment
from tsx.diagnostics.tracing.trace import find_memory

# What calls share without harm; any other object may have been filled anew.
_SHARED = (
    *(Tensor, nn.Module, bool, int, float, complex, str, bytes, type(None)),
    *(torch.dtype, torch.device, FunctionType, MethodType),
)


@dataclass(slots=True)  # one is made at each call, and a frozen one takes twice as long
class HeldCall:
    """One call that gave a loss, and what it depended on."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    moment: Moment
    autocast: torch.dtype | None = None  # what was on around it, on the host
    versions: tuple[int, ...] | None = None  # see `read_versions`; None where nobody looked

    def make(self) -> Any:
        """Make the call again; what it does to the tensors it is given is lost."""
        args, kwargs = tree_map(_copy_tensor, (self.args, dict(self.kwargs)))
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            return self.fn(*args, **kwargs)

    def is_repeatable(self, param: Tensor | None) -> bool:
        """Return whether the call has changed nothing that it starts from.

        Args:
            param: the first one of the model, as for `read_versions`.
        """
        is_same = self.versions is None or self.versions == read_versions(self.args, param)
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return is_same and not any(isinstance(value, Iterator) for value in leaves)


def read_versions(args: tuple[Any, ...], param: Tensor | None) -> tuple[int, ...] | None:
    """Return what rises where a call writes to its arguments, or steps an optimizer itself."""
    try:
        versions = [value._version for value in args if isinstance(value, Tensor)]
        return (*versions, 0 if param is None else param._version)
    except RuntimeError:  # of tensors of inference mode nobody knows
        return None


def _list_tensors(call: HeldCall) -> list[Tensor]:
    leaves = tree_leaves((call.args, dict(call.kwargs)))
    return [value for value in leaves if isinstance(value, Tensor) and value.ndim]


def count_samples(call: HeldCall) -> int:
    """Return the length that all tensors of a call share, 0 where they share none."""
    lengths = {len(value) for value in _list_tensors(call)}
    return lengths.pop() if len(lengths) == 1 else 0


def is_comparable(one: HeldCall, other: HeldCall) -> bool:
    """Return whether two calls are of one function, on batches of which none was written over."""
    if _find_code(one.fn) is not _find_code(other.fn):
        return False
    leaves = [tree_leaves((call.args, dict(call.kwargs))) for call in (one, other)]
    memories = [{find_memory(value) for value in _list_tensors(call)} for call in (one, other)]
    objects = [{id(value) for value in some if not isinstance(value, _SHARED)} for some in leaves]
    return bool(memories[0]) and not (memories[0] & memories[1] or objects[0] & objects[1])


def _find_code(fn: Any) -> Any:
    """Return what functions share that are defined anew in each step."""
    return getattr(getattr(fn, "__func__", fn), "__code__", fn)


def pick_samples(call: HeldCall, samples: list[int]) -> HeldCall:
    """Return a call with fewer samples."""

    def pick(value: Any) -> Any:
        return value[samples] if isinstance(value, Tensor) and value.ndim else value

    args, kwargs = tree_map(pick, (call.args, dict(call.kwargs)))
    return replace(call, args=args, kwargs=kwargs)


def _copy_tensor(value: Any) -> Any:
    """Return a copy of a tensor that a call may write to, with its wish for a gradient."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or not value.is_leaf:
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)
