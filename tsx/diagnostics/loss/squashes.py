"""What bounds a tensor on its way to the loss, and on which line: a softmax, a rectifier.

Kept while a call is traced, with the graph that it holds; to be forgotten right after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tsx.diagnostics.detector import Scene
from tsx.diagnostics.tracing.loss_calls import KIND, LossCall
from tsx.diagnostics.tracing.tape import OpSeen

SQUASHERS = frozenset({"softmax", "sigmoid", "relu", "relu_", "tanh", "softplus", "exp"})
NAMES = {
    "Relu": "a rectifier",
    "Softplus": "a softplus",
    "Exp": "an exponential",
    "Sigmoid": "a sigmoid",
    "Softmax": "a softmax",
    "Tanh": "a tanh",
}


class Place(NamedTuple):
    """Where something is wrong."""

    module: str
    where: str


class _Squash(NamedTuple):
    node: Any
    place: Place
    is_inside: bool  # of the model's own forward pass


class Squashes:
    """Those of one traced call."""

    def __init__(self) -> None:
        self._seen: list[_Squash] = []
        self.is_inside = True  # the model has not returned yet

    def see(self, seen: OpSeen) -> None:
        """Keep one that has a graph."""
        if isinstance(seen.out, Tensor) and seen.out.grad_fn is not None:
            place = Place(seen.module, seen.where)
            self._seen.append(_Squash(seen.out.grad_fn, place, self.is_inside))

    def find_place(self, node: Any, loss: LossCall) -> Place:
        """Return its line inside the model, or that of the loss where both stand side by side."""
        for squash in self._seen:
            if squash.node is node and squash.is_inside:
                return squash.place
        return Place(loss.module, loss.where)

    def forget(self) -> None:
        """Let go of the graph."""
        self._seen.clear()
        self.is_inside = True


def tell_contract(
    scene: Scene, mechanism: str, cause: str, fix: str, place: Place, evidence: Mapping[str, Any]
) -> None:
    """Report a loss that is given what it does not take; see `Scene.report`."""
    scene.report(
        KIND,
        mechanism,
        cause,
        fix,
        phase="forward",
        module=place.module,
        where=place.where,
        evidence=evidence,
    )
