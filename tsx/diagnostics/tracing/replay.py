"""A call run again as it was, without a trace of it in the training that goes on.

A loss or a gradient that is not finite is seen before the optimizer steps, so the parameters are
still what the call saw. They, and the buffers, are stood in for by copies while a call is run
again: the graph that the program still holds would not forgive a write to them.
"""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter as preserve_versions
from torch.nn.parameter import is_lazy

from tsx.diagnostics.arguments import is_plain

TRIED = 8  # moments that show whether generators are drawn from
AGAIN = 64
MAX_ELEMENTS = 4_000_000  # of buffers that are kept before it is known which of them change


@dataclass(slots=True)
class Moment:
    """What a call depends on beside its arguments and the parameters."""

    cpu: Tensor | None  # None here and below: nobody draws from it
    cuda: list[Tensor]
    python: Any
    numpy: Any
    buffers: dict[str, Tensor]


class Rewinder:
    """Takes moments of one model's training, and goes back to them.

    It is done before each call, so it copies only what changes: which buffers calls change the
    first call shows, which generators of the host are drawn from the first `TRIED` moments. Every
    `AGAIN` moments all of them are copied, in case a program begins to draw from one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # Of buffers, before the first call: a reference to each, and its version.
        self._versions: dict[str, tuple[Callable[[], Tensor | None], int]] = {}
        self._changing: list[tuple[str, dict[str, Any], str]] | None = None
        self._count = 0
        self._last: dict[str, Any] = {}  # states of generators by name
        self._drawn: set[str] = set()  # generators that somebody draws from
        self._is_still = False  # calls change nothing that is kept here

    def take(self, *, whole: bool = False) -> Moment:
        """Return this moment; a `whole` one has the state of every generator."""
        self._count += 1
        if self._is_still and self._count % AGAIN and not whole:
            return _STILL
        states = {n: get() for n, get in _GENERATORS.items()} if whole else self._take_generators()
        return Moment(
            cpu=states.get("torch"),
            cuda=torch.cuda.get_rng_state_all() if _uses_cuda() else [],
            python=states.get("python"),
            numpy=states.get("numpy"),
            buffers=self._copy_buffers(),
        )

    def _take_generators(self) -> dict[str, Any]:
        """Return the states of the host's generators, without those that nobody draws from."""
        if self._count > TRIED and self._count % AGAIN:
            self._is_still = not (self._drawn or self._changing or _uses_cuda())
            return {name: _GENERATORS[name]() for name in self._drawn}
        self._is_still = False  # to be found out anew
        states = {name: get() for name, get in _GENERATORS.items()}
        for name, state in states.items():
            if name in self._last and not _is_equal(self._last[name], state):
                self._drawn.add(name)
        self._last = states
        return states

    def _copy_buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers that calls change."""
        if self._changing is not None:
            return {n: held[key].detach().clone() for n, held, key in self._changing if key in held}
        buffers = list(iter_buffers(self._model))
        if self._versions:
            changed = [
                entry for entry in buffers if self._has_changed(entry[0], entry[1][entry[2]])
            ]
            self._changing = changed
            return self._copy_buffers()
        self._versions = {
            name: (weakref.ref(held[key]), held[key]._version) for name, held, key in buffers
        } or {"": (lambda: None, 0)}
        if sum(held[key].numel() for _, held, key in buffers) > MAX_ELEMENTS:
            return {}
        return {name: held[key].detach().clone() for name, held, key in buffers}

    def _has_changed(self, name: str, buffer: Tensor) -> bool:
        """Return whether the first call has written to a buffer, or put another in its place."""
        held, version = self._versions.get(name, (lambda: None, 0))
        return held() is not buffer or version != buffer._version

    @contextmanager
    def back_to(self, moment: Moment) -> Iterator[None]:
        """Be at a moment inside; everything is as it was before afterwards."""
        now = self.take(whole=True)
        grads = [(param, param.grad) for param in self._model.parameters()]
        for param, _ in grads:
            param.grad = None

        def stand_in(name: str, buffer: Tensor) -> Tensor:
            return moment.buffers.get(name, buffer).detach().clone()

        try:
            with (
                _attributes_kept(self._model),
                _parameters_apart(self._model),
                swapped(self._model, "_buffers", stand_in),
                torch.enable_grad(),
            ):
                set_generators(moment)
                yield
        finally:
            set_generators(now)
            for param, grad in grads:
                param.grad = grad


@contextmanager
def _parameters_apart(model: nn.Module) -> Iterator[None]:
    """Have copies of their values in the parameters inside: calls may write to them.

    The parameters themselves stay what they are, for modules and closures hold on to them.
    """
    held = [(p, p.data) for p in model.parameters() if not is_lazy(p) and is_plain(p)]
    held = [(param, data) for param, data in held if not param.is_inference()]
    with preserve_versions(tuple(param for param, _ in held)):
        try:
            for param, data in held:
                param.data = data.clone()
            yield
        finally:
            for param, data in held:
                param.data = data


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put attributes of modules back afterwards: states, counters, generators of their own."""
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    own = [v for _, before in kept for v in before.values() if isinstance(v, torch.Generator)]
    states = [generator.get_state() for generator in own]
    for now, before in kept:  # what hooks have worked out may be a part of the program's graph
        for name, value in before.items():
            if isinstance(value, Tensor) and is_plain(value):
                now[name] = value.detach().clone()
    try:
        yield
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
        for now, before in kept:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)


@contextmanager
def swapped(model: nn.Module, kind: str, make: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Have others in place of a model's "_buffers" or "_parameters" inside; shared ones once."""
    held: list[tuple[dict[str, Any], str, Tensor]] = []
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        entries = getattr(module, kind)
        for name, tensor in entries.items():
            if tensor is not None and not is_lazy(tensor):
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
    if moment.cpu is not None:
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
            if buffer is not None and not is_lazy(buffer):
                yield f"{path}.{key}" if path else key, module._buffers, key


def _get_numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state(legacy=True)


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether two states of one generator are the same."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if one is None or other is None or isinstance(one[1], tuple):
        return bool(one == other)
    return one[2] == other[2] and bool((one[1] == other[1]).all())  # numpy's


_GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": torch.get_rng_state,
    "python": random.getstate,
    "numpy": _get_numpy_state,
}


_STILL = Moment(cpu=None, cuda=[], python=None, numpy=None, buffers={})


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def run_eagerly() -> AbstractContextManager[Any]:
    """Return a context in which compiled functions run as they were written."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
