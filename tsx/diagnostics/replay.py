"""A call run again as it was, without a trace of it in the training that goes on.

No copy of the parameters is needed: a loss or a gradient that is not finite is seen before the
optimizer steps, so they are still what the call saw. Buffers are stood in for by copies while a
call is run again: the graph that the program still holds would not forgive a write to them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TRIED = 8  # moments that show whether generators are drawn from
AGAIN = 64
MAX_ELEMENTS = 4_000_000  # of buffers that are kept before it is known which of them change


@dataclass(slots=True)
class Moment:
    """What a call depends on beside its arguments and the parameters."""

    cpu: Tensor
    cuda: list[Tensor]
    python: Any
    numpy: Any
    buffers: dict[str, Tensor]


class Rewinder:
    """Takes moments of one model's training, and goes back to them.

    It is done before each call, so it copies only what calls change: which buffers the first call
    shows, whether Python's and numpy's generators are drawn from the first `TRIED` moments. Every
    `AGAIN` moments all generators are copied, in case a program begins to draw from them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._versions: dict[str, int] = {}  # of buffers, before the first call
        self._changing: list[tuple[str, dict[str, Any], str]] | None = None
        self._count = 0
        self._last: tuple[Any, Any] | None = None  # generators of Python and numpy
        self._draws = False  # somebody draws from one of them

    def take(self) -> Moment:
        """Return this moment."""
        self._count += 1
        python, numpy = self._take_generators()
        return Moment(
            cpu=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state_all() if _uses_cuda() else [],
            python=python,
            numpy=numpy,
            buffers=self._copy_buffers(),
        )

    def _take_generators(self) -> tuple[Any, Any]:
        """Return the states of Python's and numpy's generators; None for what nobody draws from."""
        if not self._draws and self._count > TRIED and self._count % AGAIN:
            return None, None
        module = sys.modules.get("numpy")
        numpy = None if module is None else module.random.get_state(legacy=True)
        states = random.getstate(), numpy
        if self._last is not None and not _are_equal(self._last, states):
            self._draws = True
        self._last = states
        return states

    def _copy_buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers that calls change."""
        if self._changing is not None:
            return {n: held[key].detach().clone() for n, held, key in self._changing if key in held}
        buffers = list(iter_buffers(self._model))
        if self._versions:
            self._changing = [
                (name, held, key)
                for name, held, key in buffers
                if self._versions.get(name) != held[key]._version
            ]
            return self._copy_buffers()
        self._versions = {name: held[key]._version for name, held, key in buffers} or {"": 0}
        if sum(held[key].numel() for _, held, key in buffers) > MAX_ELEMENTS:
            return {}
        return {name: held[key].detach().clone() for name, held, key in buffers}

    @contextmanager
    def back_to(self, moment: Moment) -> Iterator[None]:
        """Be at a moment inside; everything is as it was before afterwards."""
        now = self.take()
        grads = [(param, param.grad) for param in self._model.parameters()]
        for param, _ in grads:
            param.grad = None

        def stand_in(name: str, buffer: Tensor) -> Tensor:
            return moment.buffers.get(name, buffer).detach().clone()

        try:
            with swapped(self._model, "_buffers", stand_in), torch.enable_grad():
                set_generators(moment)
                yield
        finally:
            set_generators(now)
            for param, grad in grads:
                param.grad = grad


@contextmanager
def swapped(model: nn.Module, kind: str, make: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Have others in place of a model's "_buffers" or "_parameters" inside; shared ones once."""
    held: list[tuple[dict[str, Any], str, Tensor]] = []
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        entries = getattr(module, kind)
        for name, tensor in entries.items():
            if tensor is not None:
                held.append((entries, name, tensor))
                full = f"{path}.{name}" if path else name
                made.setdefault(id(tensor), make(full, tensor))
    try:
        for entries, name, tensor in held:
            entries[name] = made[id(tensor)]
        yield
    finally:
        for entries, name, tensor in held:
            entries[name] = tensor


def set_generators(moment: Moment) -> None:
    """Put the random generators where they were."""
    torch.set_rng_state(moment.cpu)
    if moment.cuda:
        torch.cuda.set_rng_state_all(moment.cuda)
    if moment.python is not None:
        random.setstate(moment.python)
    if moment.numpy is not None:
        sys.modules["numpy"].random.set_state(moment.numpy)


def iter_buffers(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield full name, holder and key of each buffer of a model."""
    for path, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield f"{path}.{key}" if path else key, module._buffers, key


def _are_equal(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Return whether two pairs of states of generators are the same."""
    if one[0] != other[0] or (one[1] is None) != (other[1] is None):
        return False
    if one[1] is None:
        return True
    return one[1][2] == other[1][2] and bool((one[1][1] == other[1][1]).all())


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def run_eagerly() -> AbstractContextManager[Any]:
    """Return a context in which compiled functions run as they were written."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
