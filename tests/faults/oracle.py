"""Where the first value that is not finite is made, found the slow and certain way.

Every torch call of one step is recorded with its inputs, its line and the module it runs in; every
node of the graph is hooked. Meant to prove a plant, where a step has some hundred calls: nothing
here is sparing, and nothing is guessed. A call makes such a value when its result holds a kind of
it (NaN, inf, -inf) that no input holds. -inf from a mask fill is meant; it is never to blame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.faults.plant import ROOT, PlainRun, Plant, advance, begin, seeded

FILLS = ("masked_fill", "masked_fill_", "where", "full", "full_like", "__setitem__", "fill_")
OWN = tuple(str(ROOT / part) for part in ("tests/faults/oracle.py", "tests/faults/plant.py"))


@dataclass(frozen=True)
class Blame:
    """Who made the first value that is not finite; no file: it came from outside."""

    phase: str  # forward, backward or "" where nothing is to blame
    file: str = ""
    line: int = 0
    module: str = ""


@dataclass
class Call:
    """One torch call."""

    name: str
    file: str
    line: int
    module: str
    parents: set[int]
    given: set[str]
    made: set[str]

    @property
    def is_maker(self) -> bool:
        new = self.made - self.given
        return "nan" in new or bool(new and self.name not in FILLS)


@dataclass
class Tape(TorchFunctionMode):
    """Records calls while it is entered."""

    model: nn.Module
    calls: list[Call] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in self.model.named_modules()}
        self.stack: list[str] = []
        self.kept: list[Any] = []  # keeps ids unique
        self.maker: dict[int, int] = {}
        self.nodes: dict[Any, int] = {}
        self.bad_nodes: list[int] = []
        self.own_backward: list[tuple[int, Call]] = []  # with the bad nodes before each
        self.functions: dict[Any, str] = {}  # forward of a custom function to its module

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given, parents = kinds_of((args, kwargs)), self.find_parents((args, kwargs))
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        changed = args[0] if result is None and name == "__setitem__" else result
        tensors = list(iter_tensors(changed))
        if tensors:
            file, line, _ = find_frame()
            module = self.stack[-1] if self.stack else ""
            made = kinds_of(changed)
            self.calls.append(Call(name, file, line, module, parents, given, made))
            self.keep(tensors)
        return result

    def find_parents(self, given: Any) -> set[int]:
        return {self.maker[id(t)] for t in iter_tensors(given) if id(t) in self.maker}

    def keep(self, tensors: list[Tensor]) -> None:
        number = len(self.calls) - 1
        for tensor in tensors:
            self.kept.append(tensor)
            self.maker[id(tensor)] = number
            if tensor.grad_fn is not None:
                self.hook(tensor.grad_fn, number)

    def hook(self, node: Any, number: int) -> None:
        """Note, for each new node under this one, when it turns finite gradients into others."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is None or node in self.nodes or node.name().endswith("AccumulateGrad"):
                continue
            self.nodes[node] = number
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                self.note_function(node._forward_cls.forward.__code__)

            def see(grads_in: Any, grads_out: Any, number: int = number) -> None:
                if kinds_of(grads_in) and not kinds_of(grads_out):
                    self.bad_nodes.append(number)

            node.register_hook(see)
            waiting.extend(upper for upper, _ in node.next_functions)

    def note_function(self, code: Any) -> None:
        """Note in which module a custom function's forward ran: where its own calls were."""
        lines = {line for _, _, line in code.co_lines() if line}
        for call in self.calls:
            if code.co_filename.endswith(call.file) and call.line in lines:
                self.functions[code.co_filename] = call.module

    def blame(self) -> Blame:
        """Return who is to blame, forward before backward."""
        for loss in self.losses:
            if kinds_of(loss):
                return self._make("forward", self._blame_forward(self.maker[id(loss)]))
        if self.own_backward and self.own_backward[0][0] == 0:
            return self._make("backward", self.own_backward[0][1])
        if not self.bad_nodes:
            return Blame("")
        # A loss may leave out what is bad (ignored labels) and still hand it a gradient.
        call = self.calls[self.bad_nodes[0]]
        earlier = [self._blame_forward(number) for number in (self.bad_nodes[0], *call.parents)]
        found = [maker for maker in earlier if maker is not None]
        return self._make("forward", found[0]) if found else self._make("backward", call)

    def _blame_forward(self, last: int) -> Call | None:
        """Return the earliest maker from which bad values reach the loss without a gap."""
        reached, waiting = set(), [last]
        while waiting:
            number = waiting.pop()
            if number not in reached and self.calls[number].made:
                reached.add(number)
                waiting.extend(self.calls[number].parents)
        makers = [number for number in sorted(reached) if self.calls[number].is_maker]
        return self.calls[makers[0]] if makers else None

    @staticmethod
    def _make(phase: str, call: Call | None) -> Blame:
        return Blame(phase) if call is None else Blame(phase, call.file, call.line, call.module)


class OwnBackward(TorchDispatchMode):
    """Sees what the python backward of a custom function makes."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = kinds_of((args, kwargs))
        result = func(*args, **(kwargs or {}))
        file, line, function = find_frame()
        if function == "backward" and kinds_of(result) - given:
            module = self.tape.functions.get(str(ROOT / file), "")
            call = Call(str(func), file, line, module, set(), given, kinds_of(result))
            self.tape.own_backward.append((len(self.tape.bad_nodes), call))
        return result


class TapedRun(PlainRun):
    """Keeps the losses for the tape."""

    tape: Tape | None = None

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        if self.tape is None:
            return super().compute(fn, *args)
        with self.tape:
            loss = super().compute(fn, *args)
        self.tape.losses.append(loss)
        return loss


def find_first_nonfinite(plant: Plant) -> Blame:
    """Return who makes the first value that is not finite in the plant's last step."""
    with seeded():
        run = TapedRun()
        loop = begin(plant, run)
        for step in range(1, plant.steps):
            advance(loop, run, step)
        run.tape = Tape(loop.model)
        with follow_modules(run.tape), OwnBackward(run.tape):
            advance(loop, run, plant.steps)
        return run.tape.blame()


@contextmanager
def follow_modules(tape: Tape) -> Iterator[None]:
    """Keep the tape's stack of the modules whose forward runs."""

    def enter(module: nn.Module, args: Any) -> None:
        tape.stack.append(tape.names.get(id(module), tape.stack[-1] if tape.stack else ""))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        tape.stack.pop()

    before = hooks.register_module_forward_pre_hook(enter)
    after = hooks.register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def iter_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from iter_tensors(part)
    elif isinstance(value, dict):
        yield from iter_tensors(list(value.values()))


def kinds_of(value: Any) -> set[str]:
    """Return which of nan, inf and -inf some tensors hold."""
    kinds = set()
    with torch._C.DisableTorchFunction():
        for tensor in iter_tensors(value):
            if not tensor.is_floating_point():
                continue
            data = tensor.detach()
            for name, held in (
                ("nan", data.isnan()),
                ("inf", data == torch.inf),
                ("-inf", data == -torch.inf),
            ):
                if held.any():
                    kinds.add(name)
    return kinds


def find_frame() -> tuple[str, int, str]:
    """Return file (from the root), line and function of the project's innermost frame."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(str(ROOT)) and ".venv" not in file and file not in OWN:
            return file[len(str(ROOT)) + 1 :], frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back
    return "", 0, ""
