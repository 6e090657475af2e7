"""Whether an optimizer is about to step on gradients that are not finite: asked all the time.

A bad gradient runs on from where it arose towards the input, through every bias and norm on its
way: the small gradients are looked at nearly always, all of them now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsx.diagnostics.pace import Pace

SMALL = 16_384  # elements of a gradient that costs next to nothing to look at
MAX_SHARE_SMALL = 0.0008  # of the time, for the small ones: every step of more than some 50 ms
MAX_SHARE_ALL = 0.0003  # of the time, for all of them


class GradGuard:
    """Asks as often as the cost allows; of gradients on the host only.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paces: dict[int, tuple[Pace, Pace]] = {}  # of small ones and of all, by optimizer

    def sees_bad(self, optimizer: Optimizer) -> bool:
        """Return whether a gradient is not finite; False where it is not looked at this time."""
        if getattr(optimizer, "grad_scale", None) is not None:
            return False
        held = self._paces.get(id(optimizer))
        if held is None or held[0].optimizer() is not optimizer:
            held = self._paces[id(optimizer)] = (
                Pace(optimizer, "", None, 0.0, max_share=MAX_SHARE_SMALL),
                Pace(optimizer, "", None, 0.0, max_share=MAX_SHARE_ALL),
            )
        began = self._clock()
        for pace, largest in zip(held, (SMALL, math.inf), strict=True):
            if began >= pace.due_s:
                is_bad = _has_bad(_list_grads(optimizer, largest))
                ended = self._clock()
                pace.note(ended - began, ended)
                began = ended
                if is_bad:
                    return True
        return False


def _list_grads(optimizer: Optimizer, largest: float) -> list[Tensor]:
    """Return the dense gradients on the host that have at most so many elements."""
    grads = [param.grad for group in optimizer.param_groups for param in group["params"]]
    return [
        grad
        for grad in grads
        if grad is not None and grad.is_cpu and not grad.is_sparse and grad.numel() <= largest
    ]


def _has_bad(grads: list[Tensor]) -> bool:
    """Return whether a gradient seems not to be finite; one that is too large counts too."""
    return bool(grads) and not math.isfinite(sum(map(float, torch._foreach_norm(grads))))
