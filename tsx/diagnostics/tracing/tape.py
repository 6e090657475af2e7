"""One call under the eyes of detectors: its functions, operations and modules as they run.

The call is the training's own: nothing is run twice and no result changes. Compiled functions run
as they were written while they are traced. `Tape.trial` runs the model again after the call, in a
way that leaves no trace: generators, buffers, gradients and attributes are put back.

Not covered: operations inside graphs that were captured.
"""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tsx.diagnostics.detector import Detector
from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.replay import Rewinder, run_eagerly
from tsx.diagnostics.tracing.trace import find_line

MAX_ROOT_CALLS = 2  # of the watched model in one traced call, whose inputs are kept
_MACHINERY = frozenset(nn.Module().__dict__)  # attributes of every module; modes are kept apart


@dataclass(slots=True)
class OpSeen:
    """A function or an operation that has returned.

    Attributes:
        name: "softmax", "scaled_dot_product_attention"; of an aten operation "_softmax", "mm".
        args, kwargs, out: as they were; not to be changed.
        module: name of the innermost module under way.
        where: "file.py:12" of the innermost line of the user's.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str
    where: str


@dataclass(slots=True)
class RootCall:
    """One forward pass of the watched model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


class Tape:
    """A traced call.

    Attributes:
        number: 1 for the first traced call of the run.
        model: that is watched.
        root_calls: of the model in this call, the first few.
    """

    def __init__(
        self,
        number: int,
        model: nn.Module,
        detectors: Sequence[Detector],
        ask: Callable[[Detector, str, tuple[Any, ...]], None],
    ) -> None:
        self.number = number
        self.model = model
        self.root_calls: list[RootCall] = []
        self.is_busy = False  # a detector is at work: its own operations are nobody's
        self._ask = ask
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._pending: list[tuple[Any, ...]] = []
        self._of_function = _sort(detectors, "functions")
        self._of_op = _sort(detectors, "ops")
        plain = Detector.saw_module
        self._of_module = [d for d in detectors if type(d).saw_module is not plain]

    @property
    def module(self) -> str:
        """Name of the innermost module under way."""
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch what runs inside."""
        functions, ops = _Functions(self), _Ops(self)
        with ExitStack() as stack:
            hooks = torch.nn.modules.module
            pre = hooks.register_module_forward_pre_hook(self._enter)
            post = hooks.register_module_forward_hook(
                self._leave, with_kwargs=True, always_call=True
            )
            stack.callback(pre.remove)
            stack.callback(post.remove)
            # torch forgets this one, and goes slower ways for as long as it is there.
            stack.callback(hooks._global_forward_hooks_with_kwargs.pop, post.id, None)
            stack.enter_context(run_eagerly())
            stack.enter_context(functions)
            stack.enter_context(ops)
            yield

    @contextmanager
    def trial(self, *, training: bool = False, grad: bool = False) -> Iterator[None]:
        """Run the model as one likes inside; everything is as it was afterwards.

        Args:
            training: leave the mode of each module; else all are in eval mode.
            grad: let autograd record.
        """
        rewinder = Rewinder(self.model)
        modes = [(module, module.training) for module in self.model.modules()]
        attributes = [_Attributes(module) for module in self.model.modules()]
        try:
            with (
                warnings.catch_warnings(),
                rewinder.back_to(rewinder.take()),
                torch.set_grad_enabled(grad),
                run_eagerly(),
            ):
                warnings.simplefilter("ignore")  # the program's own run has told
                if not training:
                    for module, _ in modes:
                        module.training = False
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for held in attributes:
                held.put_back()

    def saw_function(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Show a function to who asked for it."""
        self._show(self._of_function.get(name, ()), "saw_function", name, args, kwargs, out)

    def saw_op(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Show an operation to who asked for it."""
        who = self._of_op.get(name, ())
        everything = self._of_op.get("*", ())
        if who or everything:
            self._show((*who, *everything), "saw_op", name, args, kwargs, out)

    def _show(
        self, who: Sequence[Detector], method: str, name: str, args: Any, kwargs: Any, out: Any
    ) -> None:
        if not who or self.is_busy or is_transformed():
            return
        self.is_busy = True
        try:
            seen = OpSeen(name, args, kwargs or {}, out, self.module, shorten(find_line()))
            with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                for detector in who:
                    self._ask(detector, method, (seen,))
        finally:
            self.is_busy = False

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(self._names.get(id(module), self.module))

    def _leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        if not self._stack:
            return
        kwargs, out = rest if len(rest) == 2 else ({}, *rest)  # none are given after an error
        name = self._names.get(id(module))
        try:
            if name is None or self.is_busy or is_transformed():
                return
            if not name and len(self.root_calls) < MAX_ROOT_CALLS:
                self.root_calls.append(RootCall(args, kwargs, out))
            self.is_busy = True
            with torch.no_grad():
                for detector in self._of_module:
                    self._ask(detector, "saw_module", (name, module, args, out))
        finally:
            self.is_busy = False
            self._stack.pop()


class _Functions(TorchFunctionMode):
    """Sees torch functions, before autograd and autocast have a hand in them."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        out = func(*args, **(kwargs or {}))
        if name and not name.startswith("__"):
            self._tape.saw_function(name, args, kwargs, out)
        return out


class _Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what is dispatched, below autograd and autocast."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        self._tape.saw_op(packet.__name__ if packet else str(func), args, kwargs, out)
        return out


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` is under way: what it hands round are no values.

    A batch under `vmap` cannot be read, and none of it may be kept beyond the transform.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_traceable() -> bool:
    """Return whether a call can be traced here: nothing else has a hand in it."""
    compiler = sys.modules.get("torch.compiler")
    if compiler is not None and torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _sort(detectors: Sequence[Detector], attribute: str) -> dict[str, tuple[Detector, ...]]:
    """Return who wants to see what."""
    found: dict[str, tuple[Detector, ...]] = {}
    for detector in detectors:
        for name in getattr(detector, attribute):
            found[name] = (*found.get(name, ()), detector)
    return found


class _Attributes:
    """What a module holds beside parameters, buffers and modules: counters, caches, lists."""

    def __init__(self, module: nn.Module) -> None:
        self._held = module.__dict__
        self._before = {name: value for name, value in self._held.items() if name not in _MACHINERY}
        self._copies = [
            (value, value.copy())
            for value in self._before.values()
            if type(value) in (list, dict, set, deque)
        ]

    def put_back(self) -> None:
        """Take away what is new, and put back what was there, as it was."""
        for name in [name for name in self._held if name not in _MACHINERY | self._before.keys()]:
            del self._held[name]
        self._held.update(self._before)
        for value, copy in self._copies:
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(copy)
