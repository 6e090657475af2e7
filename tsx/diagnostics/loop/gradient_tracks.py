"""Gradients followed from a loss to the step, without a copy and without a wait.

A hook on each loss sees its backward pass begin: with which weight the loss goes in, on which line,
and whether the gradients are still those that the last step used. What is kept of a gradient is
which tensor it was, and how often it had been written to.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsx.diagnostics.loop.weigh import count_labels, is_mean
from tsx.diagnostics.tracing.loop_lines import find_line_in_thread

NUM_PROBES = 4  # parameters of an optimizer whose gradients are followed, the smallest ones


@dataclass(slots=True)
class Backward:
    """One backward pass that reached an optimizer's parameters."""

    index: int  # of the call
    weight: Tensor  # the gradient of the loss, a number
    where: str
    code: CodeType | None
    fn: CodeType | None  # that was called
    is_kept: bool  # it adds to gradients that were there
    old: Tensor | None  # whether those were other than 0, where they are from before the step
    is_mean: bool
    labels: float | None


class State(NamedTuple):
    """Which tensor a gradient is, and how often it was written to."""

    grad: weakref.ref[Tensor] | None
    version: int


@dataclass(slots=True)
class Track:
    """What is known of one optimizer's gradients."""

    optimizer: weakref.ref[Optimizer]
    probes: list[Tensor]
    states: list[State] = field(default_factory=list)
    seen: list[Backward] = field(default_factory=list)  # since its last step
    is_whole: bool = False  # every call since then was looked at
    carries: int = 0  # steps in a row that used old gradients
    cycles: int = 0  # that ended with gradients that were zeroed
    whole_steps: int = 0  # that had as many micro-batches as their weights say
    times: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> int:
        """Count an observation; return how often it was made."""
        self.times[what] = self.times.get(what, 0) + 1
        return self.times[what]


class GradientTracks:
    """Follows the gradients of each optimizer.

    Args:
        begins, ends: called as a backward pass begins and ends, perhaps in another thread.
    """

    def __init__(self, begins: Callable[[], None], ends: Callable[[], None]) -> None:
        self._begins, self._ends = begins, ends
        self._tracks: dict[int, Track] = {}
        self._thread = threading.get_ident()

    def follow(self, loss: Any, fn: Any, index: int, *, is_looked: bool) -> bool:
        """Wait for the backward pass of a loss; return whether there may be one to be seen."""
        if not isinstance(loss, Tensor) or loss.grad_fn is None or loss.numel() != 1:
            return False
        if not is_looked or _is_captured():
            for track in self._tracks.values():
                track.is_whole = False
            return False
        self._thread = threading.get_ident()
        code, mean, labels = _get_code(fn), is_mean(loss), count_labels(loss)

        def begin(grad: Tensor) -> None:
            self._begin(grad, index, code, mean, labels)

        loss.register_hook(begin)  # type: ignore[no-untyped-call]
        return True

    def find(self, optimizer: Optimizer) -> Track | None:
        """Return what is known of an optimizer."""
        track = self._tracks.get(id(optimizer))
        return track if track is not None and track.optimizer() is optimizer else None

    def end_step(self, optimizer: Optimizer, names: Any) -> None:
        """Note the gradients that a step leaves behind; `names` are the ids of parameters."""
        track = self.find(optimizer)
        if track is None:
            track = Track(weakref.ref(optimizer), _choose_probes(optimizer, names))
            self._tracks[id(optimizer)] = track
        track.seen.clear()
        track.is_whole = True
        track.states = [_get_state(probe) for probe in track.probes]

    def _begin(
        self, grad: Tensor, index: int, fn: CodeType | None, mean: bool, labels: float | None
    ) -> None:
        """Note how the gradients are before a backward pass adds to them."""
        self._begins()
        line = find_line_in_thread(self._thread)
        where, code = (line.where, line.code) if line else ("", None)
        with torch.no_grad():
            for track in self._tracks.values():
                states = [_get_state(probe) for probe in track.probes]
                is_kept = bool(states) and _is_same(states, track.states)
                old = None
                if is_kept and not track.seen:
                    old = _has_any([probe.grad for probe in track.probes])
                weight = grad.detach()
                track.seen.append(
                    Backward(index, weight, where, code, fn, is_kept, old, mean, labels)
                )
                track.states = states
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._end)

    def _end(self) -> None:
        """Note how they are now; a pass that added nothing was none of this optimizer's."""
        for track in self._tracks.values():
            states = [_get_state(probe) for probe in track.probes]
            if track.seen and (_is_same(states, track.states) or not any(s.grad for s in states)):
                track.seen.pop()
            track.states = states
        self._ends()


def _get_state(param: Tensor) -> State:
    grad = param.grad
    return State(None, 0) if grad is None else State(weakref.ref(grad), grad._version)


def _is_same(ones: Sequence[State], twos: Sequence[State]) -> bool:
    """Return whether gradients are there, and were neither replaced nor written to."""
    return all(
        one.grad is not None
        and two.grad is not None
        and (held := one.grad()) is not None
        and held is two.grad()
        and one.version == two.version
        for one, two in zip(ones, twos, strict=True)
    )


def _has_any(grads: Sequence[Tensor | None]) -> Tensor | None:
    """Return whether a gradient is not 0, on its device."""
    found = [grad for grad in grads if grad is not None and not grad.is_sparse]
    return torch.stack([grad.any().to(found[0].device) for grad in found]).any() if found else None


def _get_code(fn: Any) -> CodeType | None:
    """Return what a function runs: two closures of one line are the same."""
    fn = getattr(fn, "__func__", fn)
    code = getattr(fn, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _is_captured() -> bool:
    """Return whether backward passes are compiled, which hooks would have to be compiled into."""
    config = getattr(torch, "_dynamo", None)
    return bool(getattr(getattr(config, "config", None), "compiled_autograd", False))


def _choose_probes(optimizer: Optimizer, names: Any) -> list[Tensor]:
    """Return its smallest watched parameters that have gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    mine = [p for p in params if id(p) in names and p.grad is not None]
    return sorted(mine, key=lambda p: p.numel())[:NUM_PROBES]
