"""What autograd's graph says of a model's end: which weights made an output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

MAX_NODES = 2000  # between an output and the products that made it
MAX_VIEWS = 4  # transposes and casts between a weight and its product
_VIEWS = ("TBackward", "Transpose", "Permute", "ToCopy", "View", "Expand", "Unsqueeze", "Reshape")


def find_last_weights(outputs: Iterable[Tensor]) -> tuple[list[Tensor], set[Any]]:
    """Return the weights of the last products before some outputs, and the nodes in between.

    A product is any operation with a parameter of two axes or more. Nodes compare by identity.
    """
    waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    weights: list[Tensor] = []
    seen: set[Any] = set()
    while waiting and len(seen) < MAX_NODES:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        found = [weight for parent in parents for weight in _find_weight(parent)]
        weights += found
        if not found:
            waiting += parents
    return weights, seen


def _find_weight(node: Any) -> Iterator[Tensor]:
    """Yield the parameter behind a node, where only views are in between."""
    for _ in range(MAX_VIEWS + 1):
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            if variable.ndim >= 2:
                yield variable
            return
        if not node.name().startswith(_VIEWS) or not node.next_functions:
            return
        node = node.next_functions[0][0]
        if node is None:
            return
