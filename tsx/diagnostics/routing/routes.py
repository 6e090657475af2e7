"""Routers of any model, and where they send their tokens.

A router is a module that takes the best of its own scores, with as many experts beside it as
there are scores: a list of modules, or a stack of matrices. This file finds the moment of the
choice among the functions of a call and measures it; it judges nothing.

Shapes: N tokens, E experts, K chosen per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tsx.diagnostics.tracing.tape import OpSeen

CHOICES = frozenset({"topk", "argmax", "max"})
SCORES = frozenset({"softmax", "sigmoid"})
CAPACITY = frozenset({"masked_fill", "where", "cumsum"})
FUNCTIONS = CHOICES | SCORES | CAPACITY
MAX_EXPERTS = 4096
MAX_HELD = 64  # choices and scores of one call


@dataclass(slots=True)
class Choice:
    """One choice of a router, as it was seen.

    Attributes:
        module: in which it was made.
        where: line of the scores it was made by.
        probs_NE: as probabilities, or scores that are none.
        chosen_NK: whose they are.
        capacity: line that took choices back, or "".
    """

    module: str
    where: str
    probs_NE: Tensor
    chosen_NK: Tensor
    capacity: str = ""

    def measure(self) -> Tensor:
        """Return [2 E + 2]: tokens per expert, mean probability per expert, N, spread.

        The spread is that of a token's probabilities, against a flat router's.
        """
        scores = self.probs_NE.detach().float()
        num_experts = scores.shape[-1]
        shares = scores / scores.sum(-1, keepdim=True).clamp(min=1e-9)  # sigmoids add up to more
        probs = torch.where(scores.amin() < 0, scores.softmax(-1), shares)
        chosen = self.chosen_NK.detach().flatten()
        counts = probs.new_zeros(num_experts).index_add_(
            0, chosen.clamp(0, num_experts - 1), (chosen >= 0).to(probs.dtype)
        )
        spread = (probs * num_experts).std(-1, correction=0).mean()
        tail = torch.stack([spread.new_tensor(float(len(probs))), spread])
        return torch.cat([counts, probs.mean(0), tail])


@dataclass
class Routes:
    """Finds the choices of one call among its functions.

    Args:
        model: that is watched.
    """

    model: nn.Module
    choices: list[Choice] = field(default_factory=list)
    _scores: list[tuple[Tensor, str, str]] = field(default_factory=list)
    _homes: dict[tuple[str, int], str | None] = field(default_factory=dict)

    def begin(self) -> None:
        """A call begins."""
        self.choices = []
        self._scores = []

    def see(self, seen: OpSeen) -> None:
        """Take a function that has returned."""
        if seen.name in SCORES:
            if isinstance(seen.out, Tensor) and seen.out.ndim >= 2:
                self._scores = [*self._scores[-7:], (seen.out, seen.module, seen.where)]
        elif seen.name in CHOICES:
            self._see_choice(seen)
        elif self.choices and self.choices[-1].module == seen.module:
            self._see_capacity(seen, self.choices[-1])

    def find_home(self, module: str, num_experts: int) -> str | None:
        """Return the module that holds both a choice and its experts, None where none does."""
        key = (module, num_experts)
        if key not in self._homes:
            self._homes[key] = self._search(module, num_experts)
        return self._homes[key]

    def _search(self, module: str, num_experts: int) -> str | None:
        modules = dict(self.model.named_modules())
        inside = modules.get(module)
        if inside is None:
            return None
        if any(_holds_experts(part, num_experts) for part in _iter_near(inside, depth=2)):
            return module
        parent = module.rpartition(".")[0]
        around = modules.get(parent)
        if not module or around is None:
            return None
        return (
            parent if any(_holds_experts(p, num_experts) for p in _iter_near(around, 2)) else None
        )

    def _see_choice(self, seen: OpSeen) -> None:
        given = seen.args[0] if seen.args else None
        chosen = seen.out if isinstance(seen.out, Tensor) else None
        if chosen is None and isinstance(seen.out, tuple) and len(seen.out) == 2:
            chosen = seen.out[1]
        if not isinstance(given, Tensor) or not isinstance(chosen, Tensor):
            return
        if given.ndim < 2 or chosen.is_floating_point() or not given.requires_grad:
            return
        num_experts = given.shape[-1]
        chosen_NK = _fold(given, chosen)
        if chosen_NK is None or not chosen_NK.shape[1] < num_experts <= MAX_EXPERTS:
            return
        if self.find_home(seen.module, num_experts) is None or len(self.choices) >= MAX_HELD:
            return
        probs, where = self._find_scores(given, seen)
        self.choices.append(Choice(seen.module, where, probs.flatten(0, -2), chosen_NK))

    def _find_scores(self, given: Tensor, seen: OpSeen) -> tuple[Tensor, str]:
        """Return the probabilities behind a choice and their line: a bias may be between."""
        for scores, module, where in reversed(self._scores):
            if scores.shape == given.shape and module == seen.module:
                return scores, where
        return given, seen.where

    def _see_capacity(self, seen: OpSeen, choice: Choice) -> None:
        """Note a line that takes choices back: it changes them, or counts places."""
        out = seen.out
        if not isinstance(out, Tensor) or out.is_floating_point():
            return
        if seen.name == "cumsum":
            choice.capacity = choice.capacity or seen.where
        elif out.numel() == choice.chosen_NK.numel() and out.dtype is not torch.bool:
            choice.capacity = seen.where
            choice.chosen_NK = out.detach().reshape(choice.chosen_NK.shape)


def _fold(given: Tensor, chosen: Tensor) -> Tensor | None:
    """Return choices as [N, K]; None where they were not made along the last axis."""
    rows = given.shape[:-1]
    if chosen.shape == rows:
        return chosen.reshape(-1, 1)
    if chosen.ndim == given.ndim and chosen.shape[:-1] == rows:
        return chosen.flatten(0, -2)
    return None


def _iter_near(module: nn.Module, depth: int) -> Iterator[nn.Module]:
    """Yield a module and what is inside it, a few levels down."""
    yield module
    if depth:
        for child in module.children():
            yield from _iter_near(child, depth - 1)


def _holds_experts(module: nn.Module, count: int) -> bool:
    """Return whether a module is a list of as many modules, or has a stack of as many matrices."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict) and len(module) == count:
        return True
    return any(p.ndim == 3 and p.shape[0] == count for p in module.parameters(recurse=False))


class Listener(torch.overrides.TorchFunctionMode):
    """Shows the functions of one module's forward pass, at a step that is not traced."""

    def __init__(self, module: str, show: Callable[[OpSeen], None]) -> None:
        super().__init__()
        self._module = module
        self._show = show

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in FUNCTIONS:
            self._show(OpSeen(name, args, kwargs or {}, out, self._module, ""))
        return out


def list_routing(result: Any) -> list[tuple[Tensor, Tensor]]:
    """Return load and mean probability of each layer, where a model returns them as tsx's does."""
    parts = result if isinstance(result, tuple | list) else ()
    for part in (result, *parts):
        stats = getattr(part, "routing", None)
        if isinstance(stats, tuple) and all(hasattr(s, "load_E") for s in stats):
            return [(s.load_E.detach(), s.prob_E.detach()) for s in stats]
    return []
