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

    Only buffers that calls change are copied each time: the first call shows which.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._changing: set[str] | None = None
        self._versions: dict[str, int] = {}

    def take(self) -> Moment:
        """Return this moment; costs some 20 us and the copies of buffers that change."""
        buffers = dict(self._model.named_buffers())
        if self._changing is None and self._versions:
            held = self._versions
            self._changing = {n for n, b in buffers.items() if held.get(n) != b._version}
        elif not self._versions:
            self._versions = {name: buffer._version for name, buffer in buffers.items()}
        kept = self._changing
        if kept is None:
            count = sum(buffer.numel() for buffer in buffers.values())
            kept = set(buffers) if count <= MAX_ELEMENTS else set()
        numpy = sys.modules.get("numpy")
        return Moment(
            cpu=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state_all() if _uses_cuda() else [],
            python=random.getstate(),
            numpy=None if numpy is None else numpy.random.get_state(),
            buffers={name: buffers[name].detach().clone() for name in kept if name in buffers},
        )

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
    random.setstate(moment.python)
    if moment.numpy is not None:
        sys.modules["numpy"].random.set_state(moment.numpy)


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def run_eagerly() -> AbstractContextManager[Any]:
    """Return a context in which compiled functions run as they were written."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
