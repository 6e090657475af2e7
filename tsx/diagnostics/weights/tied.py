"""Weights that are one thing at the start and two later.

Tied are names of one tensor, tensors that share their memory, an embedding and a matrix of equal
values, and a matrix and another's transpose. Copies of a whole module (a teacher, the layers of an
encoder that were cloned, twins of a critic) are equal at the start too and drift apart on purpose:
of equal values only an embedding and its head count, and a matrix with its transpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tsx.diagnostics.detector import Detector, Kind, Scene
from tsx.diagnostics.loop.updates import is_measurable
from tsx.diagnostics.tracing.source_lines import find_class_line
from tsx.diagnostics.tracing.trace import find_memory

SAMPLE = 4096  # numbers of a pair that are compared at a look
MIN_NUMBERS = 16  # a smaller matrix may be equal by chance, or all zeros
MAX_PAIRS = 64

KIND = Kind(
    "tied-weights",
    "Weights that were equal at the start, or one tensor, and are apart later: head and "
    "embedding, encoder and decoder.",
    "A head was tied to its embedding by a copy: equal on the first day, apart on the second.",
    "Both names, how they were tied, the largest difference.",
    "Assign the parameter itself (`head.weight = embed.weight`), and tie again after loading with "
    "`assign=True` or moving the model.",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two names of what is one weight.

    Attributes:
        first, second: names of parameters; the second's module is the one that is tied.
        how: "object", "memory" or "values".
        is_transposed: one is the other's transpose.
    """

    first: str
    second: str
    how: str
    is_transposed: bool = False


class TiedWeights(Detector):
    """Compares weights that were equal at the start."""

    name = "tied_weights"
    kinds = (KIND,)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._pairs = find_pairs(scene.model)
        self._is_due = True

    def begin_look(self, step: int) -> None:
        """Compare after this step."""
        self._is_due = True

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Compare what was tied."""
        if not (self._is_due and self._pairs):
            return
        self._is_due = False
        params = dict(self.scene.model.named_parameters(remove_duplicate=False))
        for pair in list(self._pairs):
            one, other = params.get(pair.first), params.get(pair.second)
            if one is None or other is None:
                self._pairs.remove(pair)
            elif one is not other:
                self._compare(pair, one.detach(), other.detach(), step)

    def _compare(self, pair: Pair, one: Tensor, other: Tensor, step: int) -> None:
        other = other.mT if pair.is_transposed else other
        if one.shape != other.shape or one.device != other.device:
            self._pairs.remove(pair)
            return
        if find_memory(one) and find_memory(one) == find_memory(other):
            return
        rows = max(1, one.numel() // SAMPLE)
        gap = (one[::rows].float() - other[::rows].float()).abs().amax()
        self.scene.voice.read_late(gap, partial(self._judge, pair, step))

    def _judge(self, pair: Pair, step: int, gap: float) -> None:
        if not gap > 0 or pair not in self._pairs:
            return
        self._pairs.remove(pair)
        module = pair.second.rpartition(".")[0]
        where, how = self._find_tie(pair)
        mechanism, why = _HOW[how]
        self.scene.report(
            "tied-weights",
            mechanism,
            f"{pair.second} and {pair.first} are apart: {why}",
            "assign the parameter itself, `head.weight = embed.weight`, and again after loading "
            "or moving the model",
            step=step,
            phase="optimizer",
            module=module,
            where=where,
            evidence={"first": pair.first, "second": pair.second, "largest_difference": gap},
        )

    def _find_tie(self, pair: Pair) -> tuple[str, str]:
        """Return the line that ties the second name, where a class says so, and how it does."""
        name = pair.second.rpartition(".")[0]
        part = re.escape(name.rpartition(".")[2])
        pattern = re.compile(rf"\b{part}\.weight(\.data)?\s*(=(?!=)|\.copy_|\.set_)")
        modules = dict(self.scene.model.named_modules())
        while name:
            name = name.rpartition(".")[0]
            where, text = find_class_line(type(modules[name]), pattern)
            if where:
                return where, pair.how if pair.how != "values" else _read_tie(text)
        return "", pair.how


_HOW = {
    "object": ("load-assigns", "they were one parameter, and something gave each name its own"),
    "memory": ("data-shared-until-moved", "they shared their memory until one of them was moved"),
    "values": ("copied-not-shared", "they are copies, equal at the start, and not one parameter"),
}


def _read_tie(text: str) -> str:
    """Return how a line ties: what was one thing once may have come apart before the first step."""
    if re.search(r"clone\(|copy|Parameter\(", text):
        return "values"
    return "memory" if re.search(r"\.data\b|\.set_", text) else "object"


def find_pairs(model: nn.Module) -> list[Pair]:
    """Return the weights that are tied at the start."""
    named = [
        (name, param)
        for name, param in model.named_parameters(remove_duplicate=False)
        if is_measurable(param) and param.numel() >= MIN_NUMBERS
    ]
    pairs = [*_iter_same(named), *_iter_equal(model, named)]
    return pairs[:MAX_PAIRS]


def _iter_same(named: list[tuple[str, nn.Parameter]]) -> Iterator[Pair]:
    """Yield names of one tensor, and of tensors in the same memory."""
    by_id: dict[int, str] = {}
    by_memory: dict[int, tuple[str, nn.Parameter]] = {}
    for name, param in named:
        if id(param) in by_id:
            yield Pair(by_id[id(param)], name, "object")
            continue
        by_id[id(param)] = name
        memory = param.data_ptr() if find_memory(param) else 0  # parts of a flat one differ here
        known = by_memory.setdefault(memory, (name, param)) if memory else (name, param)
        if known[1] is not param and known[1].numel() == param.numel():
            is_transposed = known[1].shape != param.shape or known[1].stride() != param.stride()
            yield Pair(known[0], name, "memory", is_transposed=is_transposed)


def _iter_equal(model: nn.Module, named: list[tuple[str, nn.Parameter]]) -> Iterator[Pair]:
    """Yield an embedding and its copy, a matrix and a copy of its transpose."""
    modules = dict(model.named_modules())
    matrices = [(n, p) for n, p in named if p.ndim == 2 and min(p.shape) > 1]
    if not matrices:
        return
    device = matrices[0][1].device
    corners = [p.detach()[:2, :2].to(device, torch.float64) for _, p in matrices]
    keys = torch.stack(corners).reshape(-1, 4).tolist()  # one look at all of them
    places: dict[tuple[float, ...], list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(tuple(key), []).append(place)
    candidates: list[tuple[str, str, Tensor, Tensor, bool]] = []
    for place, (a, b, c, d) in enumerate(keys):
        first, one = matrices[place]
        is_table = isinstance(modules.get(first.rpartition(".")[0]), nn.Embedding)
        for number in places[a, b, c, d] if is_table else ():
            second, other = matrices[number]
            is_other = isinstance(modules.get(second.rpartition(".")[0]), nn.Embedding)
            if not is_other and one.shape == other.shape and not _is_same(one, other):
                candidates.append((first, second, one, other, False))
        for number in places.get((a, c, b, d), ()):
            second, other = matrices[number]
            if number > place and one.shape == other.shape[::-1] and not _is_same(one, other):
                candidates.append((first, second, one, other.mT, True))
    if not candidates:
        return
    flags = [_is_equal(one, other) for _, _, one, other, _ in candidates]
    held = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    for (first, second, _, _, is_transposed), is_equal in zip(candidates, held, strict=True):
        if is_equal:
            yield Pair(first, second, "values", is_transposed=is_transposed)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two parameters share their memory, or cannot be compared."""
    is_apart = one.device != other.device or one.dtype != other.dtype
    return is_apart or bool(find_memory(one) and one.data_ptr() == other.data_ptr())


def _is_equal(one: Tensor, other: Tensor) -> Tensor:
    """Return whether some rows are equal, and not all one number."""
    rows = max(1, one.numel() // SAMPLE)
    some, others = one.detach()[::rows], other.detach()[::rows]
    return (some == others).all() & (some != some.reshape(-1)[0]).any()
