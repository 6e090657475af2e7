"""What a step would do if numbers had more digits: the same optimizer on a wider copy.

A parameter in bf16 near 1 has steps of 2^-8 (2^-7 upward): an update of less than half of that is
rounded away. A copy of weight, gradient and state in fp32 (fp32 ones: fp64) is stepped by the very
same optimizer; where rounding the result gives back the old weight, the update has been lost.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsx.diagnostics.frozen_samples import Unit, get_local

MAX_ELEMENTS = 4_000_000  # of one parameter: a copy of its state is made


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
    if not _is_known(optimizer) or get_local(param).numel() > MAX_ELEMENTS:
        return None
    wide_dtype = torch.float64 if param.dtype in (torch.float32, torch.float64) else torch.float32
    old = get_local(param).detach()
    wide = old.to(wide_dtype, copy=True)
    wide.grad = get_local(grad).to(wide_dtype, copy=True)
    shadow = object.__new__(type(optimizer))
    shadow.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key != "step"}
    held = optimizer.state.get(param, {})
    state = {key: _widen(value, param, wide_dtype) for key, value in held.items()}
    shadow.state = defaultdict(dict, {wide: state} if state else {})
    shadow.param_groups = [{**copy.copy(group), "params": [wide]}]
    shadow._optimizer_step_pre_hooks = OrderedDict()
    shadow._optimizer_step_post_hooks = OrderedDict()
    step = type(optimizer).step
    step = getattr(step, "__wrapped__", step)  # without the hooks that all optimizers share
    with torch.random.fork_rng(devices=[]):
        step(shadow)
    return _compare(unit, old, wide)


def _compare(unit: Unit, old: Tensor, wide: Tensor) -> Shadow:
    before, after = unit.part.take(old).flatten(), unit.part.take(wide).flatten()
    update = (after - before.to(after.dtype)).abs()
    is_lost = (after.to(before.dtype) == before).all() & (update > 0).any()
    largest = update.argmax()
    _, exponent = torch.frexp(before[largest].double())
    half = torch.finfo(before.dtype).eps / 4 * torch.exp2(exponent.double())
    return Shadow(is_lost.double(), update[largest].double(), half)


def _widen(value: Any, param: Tensor, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = get_local(value)
    is_wide = value.is_floating_point() and value.shape == get_local(param).shape
    return value.to(dtype, copy=True) if is_wide else value.clone()


def _is_known(optimizer: Optimizer) -> bool:
    """Return whether a step of a copy is no more than arithmetic: torch's own optimizers are."""
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim.") and kind.__name__ != "LBFGS"
