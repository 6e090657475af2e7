"""Which optimizers hold which parameters."""

from __future__ import annotations

import gc

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsx.diagnostics.detector import Scene
from tsx.diagnostics.frozen.samples import Unit, get_local

# Of all numbers of a model. Below, what is trained is small on purpose: adapters, a new head.
FEW = 0.05
LESS = 0.5


class Holders:
    """Answers from the optimizers that have stepped, and once from all that are alive.

    Args:
        scene: whose optimizers.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._alive: set[int] | None = None

    def is_alive(self, param: int) -> bool:
        """Return whether any optimizer holds a parameter, also one that has not stepped yet.

        All objects of the process are gone through, once.

        Args:
            param: its id.
        """
        if self._alive is None:
            found = [o for o in gc.get_objects() if issubclass(type(o), Optimizer)]
            self._alive = {id(p) for optimizer in found for p in _list_params(optimizer)}
        return param in self._alive

    def holds_twin(self, unit: Unit) -> bool:
        """Return whether an optimizer holds a tensor of the same values that is in no module."""
        here = {id(param) for param in self._scene.model.parameters()}
        value = get_local(unit.param).detach()
        return any(
            id(param) not in here
            and param.shape == unit.param.shape
            and param.device == unit.param.device
            and torch.equal(get_local(param).detach(), value)
            for optimizer in self._scene.optimizers
            for param in _list_params(optimizer)
        )

    def is_most_left(self) -> bool:
        """Return whether most of the model is in no optimizer, as when only a head is trained."""
        held = {id(p) for optimizer in self._scene.optimizers for p in _list_params(optimizer)}
        params = list(self._scene.model.parameters())
        inside = [param for param in params if id(param) in held]
        if len(inside) < len(held):
            return False  # of another model, or of an older state of this one
        share = sum(p.numel() for p in inside) / max(1, sum(p.numel() for p in params))
        return share < FEW or (share < LESS and len(inside) < LESS * len(params))


def _list_params(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]
