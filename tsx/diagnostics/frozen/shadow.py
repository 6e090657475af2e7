"""What a step would do if numbers had more digits: the same optimizer on a wider copy.

A parameter in bf16 near 1 has steps of 2^-8 (2^-7 upward): an update of less than half of that is
rounded away. A copy of weight, gradient and state in fp32 (fp32 ones: fp64) is stepped by the very
same optimizer; where rounding the result gives back the old weight, the update has been lost.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsx.diagnostics.frozen.samples import Unit, get_local

SAMPLE = 65_536  # elements of a part that are stepped, where each goes its own way
MAX_ELEMENTS = 262_144  # of a parameter whose elements do not: all of it is copied, four times
_ELEMENTWISE = {
    *("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop"),
    *("ASGD", "Rprop"),
}


class Shadow(NamedTuple):
    """Of one unit, as numbers without a dimension on its device.

    Attributes:
        lost: 1 where rounding undoes every update and some are not 0, else 0.
        update: the largest.
        half_ulp: half the distance of two neighbours at the weight of the largest update.
    """

    lost: Tensor
    update: Tensor
    half_ulp: Tensor


def cast_shadow(
    optimizer: Optimizer, group: dict[str, Any], unit: Unit, grad: Tensor
) -> Shadow | None:
    """Return what a step would do to a unit; None where nobody can tell.

    Args:
        optimizer: about to step; it is left as it is.
        group: its group of the parameter.
        unit: of the parameter.
        grad: of the parameter, as the optimizer will see it.
    """
    param = unit.param
    is_free = type(optimizer).__name__ in _ELEMENTWISE
    if not _is_known(optimizer) or not (is_free or get_local(param).numel() <= MAX_ELEMENTS):
        return None
    wide_dtype = torch.float64 if param.dtype in (torch.float32, torch.float64) else torch.float32

    def thin(tensor: Tensor) -> Tensor:
        local = get_local(tensor).detach()
        if not is_free:
            return local
        part = unit.part.take(local).flatten()
        return part[:: 1 + (part.numel() - 1) // SAMPLE]

    old = thin(param)
    wide = old.to(wide_dtype, copy=True)
    wide.grad = thin(grad).to(wide_dtype, copy=True)
    shadow = object.__new__(type(optimizer))
    shadow.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key != "step"}
    held = optimizer.state.get(param, {})
    shape = get_local(param).shape
    state = {key: _widen(value, shape, thin, wide_dtype) for key, value in held.items()}
    shadow.state = defaultdict(dict, {wide: state} if state else {})
    shadow.param_groups = [{**copy.copy(group), "params": [wide]}]
    shadow._optimizer_step_pre_hooks = OrderedDict()
    shadow._optimizer_step_post_hooks = OrderedDict()
    step = type(optimizer).step
    step = getattr(step, "__wrapped__", step)  # without the hooks that all optimizers share
    with torch.random.fork_rng(devices=[]):
        step(shadow)
    if is_free:
        return _compare(old, wide)
    return _compare(unit.part.take(old).flatten(), unit.part.take(wide).flatten())


def _compare(before: Tensor, after: Tensor) -> Shadow:
    update = (after - before.to(after.dtype)).abs()
    is_lost = (after.to(before.dtype) == before).all() & (update > 0).any()
    largest = update.argmax()
    _, exponent = torch.frexp(before[largest].double())
    half = torch.finfo(before.dtype).eps / 4 * torch.exp2(exponent.double())
    return Shadow(is_lost.double(), update[largest].double(), half)


def _widen(
    value: Any, shape: torch.Size, thin: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Any:
    """Return a piece of an optimizer's state for the shadow."""
    if not isinstance(value, Tensor):
        return value
    local = get_local(value)
    is_wide = local.is_floating_point() and local.shape == shape
    return thin(value).to(dtype, copy=True) if is_wide else local.clone()


def _is_known(optimizer: Optimizer) -> bool:
    """Return whether a step of a copy is no more than arithmetic: torch's own optimizers are."""
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim.") and kind.__name__ != "LBFGS"
