"""Whether an optimizer is about to step on gradients that are not finite: asked all the time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim import Optimizer

from tsx.diagnostics.pace import Pace

MAX_SHARE = 0.01  # of the time: every step of more than some 10 ms is looked at


class GradGuard:
    """Asks as often as it costs less than `MAX_SHARE` of the time; gradients on the host only.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paces: dict[int, Pace] = {}  # by the optimizer's id

    def sees_bad(self, optimizer: Optimizer) -> bool:
        """Return whether a gradient is not finite; False where it is not looked at this time."""
        began = self._clock()
        pace = self._paces.get(id(optimizer))
        if pace is None or pace.optimizer() is not optimizer:
            pace = Pace(optimizer, "", None, 0.0, max_share=MAX_SHARE)
            self._paces[id(optimizer)] = pace
        if not pace.is_due(began) or getattr(optimizer, "grad_scale", None) is not None:
            return False
        grads = [
            param.grad
            for group in optimizer.param_groups
            for param in group["params"]
            if param.grad is not None and param.grad.device.type == "cpu"
        ]
        dense = [grad for grad in grads if not grad.is_sparse]
        is_bad = False
        if dense:
            # A norm that overflows in half precision is no bad gradient: the look will tell.
            norms = torch.stack([n.float() for n in torch._foreach_norm(dense)])
            is_bad = not math.isfinite(norms.sum().item())
        ended = self._clock()
        pace.note(ended - began, ended)
        return is_bad
