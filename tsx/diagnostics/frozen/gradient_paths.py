"""Which way gradients take through one traced call, and where they end.

A gradient that is missing was cut off in the forward pass: an operation takes what wants a
gradient and returns what wants none (detach, numpy, argmax, anything under no_grad). The graph of
its inputs says which parameters are cut off there. A gradient that is there and zero has become so
in one node of the backward pass: what comes into that node is not zero, what leaves it is.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsx.diagnostics.detector import Voice
from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.tape import OpSeen
from tsx.diagnostics.tracing.trace import find_line

MAX_CUTS = 256  # of one call
MAX_NODES = 20_000  # of a graph that is walked; a large model has some ten thousand
_LAYERS = {
    *("linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
    *("embedding", "matmul", "mm", "bmm", "baddbmm", "addmm", "einsum", "mul", "add", "multiply"),
    *("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "gru", "lstm"),
    *("scaled_dot_product_attention", "multi_head_attention_forward", "softmax", "sigmoid"),
}
_ENDS = {
    *("detach", "detach_", "numpy", "argmax", "argmin", "item", "tolist", "topk", "sort"),
    *("argsort", "multinomial", "bernoulli", "long", "int", "bool", "to", "tensor", "as_tensor"),
}
FUNCTIONS = frozenset(_LAYERS | _ENDS)
_CHOOSING = ("Where", "Index", "Gather", "MaskedFill", "Select", "Slice", "MaskedSelect")
_CHECKPOINT = "/torch/utils/checkpoint.py"


class Place(NamedTuple):
    """An operation in the user's program."""

    op: str
    module: str
    where: str


class Cut(NamedTuple):
    """An operation behind which no gradient goes back.

    Attributes:
        place: of the operation.
        params: ids of the parameters whose gradients would have come through it.
        reason: "detach", "numpy", "argmax", "no_grad", "checkpoint".
        others: lines that cut the same parameter off on other ways to the loss.
    """

    place: Place
    params: frozenset[int]
    reason: str
    others: tuple[str, ...] = ()


class End(NamedTuple):
    """A node of the backward pass that turns a gradient into zero.

    Attributes:
        place: of its forward operation; of the node alone where no call was traced.
        feeds: id of the parameter that is nearest before it.
        is_by_data: what makes it zero comes from the batch: a mask, a choice of rows.
    """

    place: Place
    feeds: int
    is_by_data: bool = False


@dataclass(slots=True)
class _Graph:
    """The nodes of one backward pass."""

    nodes: list[Any]
    consumers: dict[int, list[int]]  # node's position to those that take its output
    leaves: dict[int, int]  # parameter's id to the position of its node
    arrived: dict[int, Tensor] = field(default_factory=dict)  # position to: not zero
    hooks: list[Any] = field(default_factory=list)


class GradientPaths:
    """Follows gradients through calls.

    Args:
        modules: id of a module to its name.

    Attributes:
        reached: ids of the parameters that the last loss depends on; None where nobody knows.
        cuts: of the last traced call, in its order.
        ends: parameter's id to where its gradient became zero; filled in after a backward pass.
        strangers: parameters in use that are in no module, by id, with the place of their use.
    """

    def __init__(self, modules: Mapping[int, str]) -> None:
        self.reached: frozenset[int] | None = None
        self.cuts: list[Cut] = []
        self.ends: dict[int, End] = {}
        self.strangers: dict[int, tuple[Tensor, Place]] = {}
        self._modules = modules
        self._pending: list[tuple[Place, list[Any], frozenset[int], str]] = []
        self._lines: dict[int, Place] = {}
        self._graph: _Graph | None = None

    def begin(self) -> None:
        """Forget the call before."""
        self._pending, self._lines = [], {}
        self._drop()

    def saw_function(self, seen: OpSeen) -> None:
        """Note parameters in no module, and an operation that ends gradients."""
        inputs = [value for value in _iter_shallow((seen.args, seen.kwargs)) if _wants(value)]
        if not inputs:
            return
        for value in inputs:
            if isinstance(value, nn.Parameter) and id(value) not in self.strangers:
                self.strangers[id(value)] = value, Place(seen.name, seen.module, seen.where)
        outputs = list(_iter_shallow((seen.out,)))
        is_end = not outputs or not any(_wants(out) for out in outputs)
        if not is_end or len(self._pending) >= MAX_CUTS:
            return
        roots = [value.grad_fn for value in inputs if value.grad_fn is not None]
        leaves = frozenset(id(value) for value in inputs if value.grad_fn is None)
        reason, place = seen.name, Place(seen.name, seen.module, seen.where)
        if seen.name in _LAYERS:
            place, reason = self._find_switch(place)
        self._pending.append((place, roots, leaves, reason))

    def saw_op(self, seen: OpSeen) -> None:
        """Note the line of an operation that autograd may run backward."""
        number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        self._lines[number] = Place(seen.name, seen.module, seen.where)

    def end_forward(self, loss: Any, *, is_followed: bool) -> None:
        """Work out what was cut off; follow the backward pass that comes, if that is wanted."""
        pending, self._pending = self._pending, []
        root = getattr(loss, "grad_fn", None)
        if root is None:
            return
        graph = _walk([root])
        self.reached = frozenset(graph.leaves)
        if pending:
            self.cuts = [
                Cut(place, leaves | frozenset(_walk(roots).leaves), reason)
                for place, roots, leaves, reason in pending
            ]
        if is_followed:
            self._graph = graph
            for position, node in enumerate(graph.nodes):
                if not hasattr(node, "variable"):
                    graph.hooks.append(node.register_hook(_make_hook(graph, position)))

    def end_backward(self, params: Iterable[int], voice: Voice) -> None:
        """Find where the gradients of some parameters became zero, as soon as that can be read."""
        graph = self._graph
        if graph is None or not graph.arrived:
            return
        positions = list(graph.arrived)
        flags = [graph.arrived[position] for position in positions]
        lines, wanted = self._lines, [key for key in params if key in graph.leaves]
        device = flags[0].device
        places = [self._locate(node, lines) for node in graph.nodes]
        by_data = [_is_by_data(node) for node in graph.nodes]
        below: dict[int, list[int]] = {}
        for child, above in graph.consumers.items():
            for parent in above:
                below.setdefault(parent, []).append(child)
        leaf_at = {position: key for key, position in graph.leaves.items()}
        consumers, leaves = graph.consumers, graph.leaves
        self._drop()

        def take(values: list[float]) -> None:
            live = {p for p, value in zip(positions, values, strict=True) if value}
            for key in wanted:
                found = _climb(leaves[key], consumers, live)
                if found is not None:
                    feeds = _descend(found, below, leaf_at)
                    self.ends[key] = End(places[found], feeds, by_data[found])

        voice.read_late(torch.stack([flag.to(device) for flag in flags]).float(), take)

    def find_cut(self, param: int, module: str, *, is_whole: bool) -> Cut | None:
        """Return where the gradient of a parameter was cut off.

        Args:
            param: its id.
            module: its name.
            is_whole: there is no gradient at all; else a piece of the parameter has none, and
                the cut must be in the module's own neighbourhood.
        """
        if is_whole and self.reached is not None and param in self.reached:
            return None
        cuts = [cut for cut in self.cuts if param in cut.params]
        if not is_whole:
            home = module.rpartition(".")[0]
            cuts = [cut for cut in cuts if f"{cut.place.module}.".startswith(f"{home}.")]
        if not cuts:
            return None
        nearest = min(cuts, key=lambda cut: len(cut.params))
        others = dict.fromkeys(cut.place.where for cut in cuts if cut.place != nearest.place)
        return nearest._replace(others=tuple(others))

    def _locate(self, node: Any, lines: dict[int, Place]) -> Place:
        name = "" if hasattr(node, "variable") else node.name()
        number = -1 if hasattr(node, "variable") else node._sequence_nr()
        found = lines.get(number)
        return Place(name, found.module, found.where) if found else Place(name, "", "")

    def _find_switch(self, place: Place) -> tuple[Place, str]:
        """Return what turned autograd off around an operation: a checkpoint, or no_grad."""
        frame: FrameType | None = sys._getframe(1)
        module = place.module
        while frame is not None:
            if frame.f_code.co_filename.endswith(_CHECKPOINT):
                where = shorten(find_line(frame))
                return Place(place.op, module, where), "checkpoint"
            module = self._modules.get(id(frame.f_locals.get("self")), module)
            frame = frame.f_back
        return place, "no_grad"

    def _drop(self) -> None:
        if self._graph is not None:
            for hook in self._graph.hooks:
                hook.remove()
        self._graph = None


def _walk(roots: Iterable[Any]) -> _Graph:
    """Return the graph behind some nodes."""
    graph = _Graph([], {}, {})
    positions: dict[Any, int] = {}
    pending = deque(roots)
    for root in pending:
        if root not in positions:
            positions[root] = len(graph.nodes)
            graph.nodes.append(root)
    while pending and len(graph.nodes) < MAX_NODES:
        node = pending.popleft()
        above = positions[node]
        variable = getattr(node, "variable", None)
        if variable is not None:
            graph.leaves[id(variable)] = above
        for below, _ in node.next_functions:
            if below is None:
                continue
            if below not in positions:
                positions[below] = len(graph.nodes)
                graph.nodes.append(below)
                pending.append(below)
            graph.consumers.setdefault(positions[below], []).append(above)
    return graph


def _is_by_data(node: Any) -> bool:
    """Return whether a node multiplies with, or chooses by, what depends on no parameter."""
    if hasattr(node, "variable"):
        return False
    name = node.name()
    has_constant = any(below is None for below, _ in node.next_functions)
    return name.startswith(_CHOOSING) or (name.startswith("Mul") and has_constant)


def _make_hook(graph: _Graph, position: int) -> Any:
    """Return a hook that notes whether a gradient arrives at a node that is not zero."""

    def hook(_: Any, grads: tuple[Any, ...]) -> None:
        try:
            flags = [(grad != 0).any() for grad in grads if isinstance(grad, Tensor)]
            if flags:
                graph.arrived[position] = torch.stack(flags).any()
        except RuntimeError:  # a layout without comparisons
            return

    return hook


def _climb(start: int, consumers: Mapping[int, list[int]], live: set[int]) -> int | None:
    """Return the first node on the way to the loss at which a gradient arrives."""
    seen, pending = {start}, deque([start])
    while pending:
        for above in consumers.get(pending.popleft(), ()):
            if above in live:
                return above
            if above not in seen:
                seen.add(above)
                pending.append(above)
    return None


def _descend(start: int, below: Mapping[int, list[int]], leaves: Mapping[int, int]) -> int:
    """Return the id of the parameter that is nearest before a node, 0 for none."""
    seen, pending = {start}, deque([start])
    while pending:
        position = pending.popleft()
        if position in leaves:
            return leaves[position]
        for other in below.get(position, ()):
            if other not in seen:
                seen.add(other)
                pending.append(other)
    return 0


def _iter_shallow(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of arguments, lists among them included."""
    for item in value:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _iter_shallow(item)
        elif isinstance(item, dict):
            yield from _iter_shallow(item.values())


def _wants(value: Tensor) -> bool:
    return bool(value.requires_grad)
