"""Lines of the user's loop: where a backward pass runs, who made a tensor, who called what.

A `LineWatch` looks at the loop between two calls, through the interpreter's profile hook. That
costs a microsecond for each Python call, so it is set only where something was found to be wrong
and the line is all that is missing. It leaves the hook alone where somebody else has set one.

Not covered: what runs in other threads and processes, such as a loader's workers.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsx.diagnostics.detector import Call
from tsx.diagnostics.tracing.places import shorten

_TORCH = str(Path(torch.__file__).parent)
_OURS = tuple(str(Path(__file__).parents[2] / room) for room in ("diagnostics", "recording"))
_FOREIGN = (
    _TORCH,
    *_OURS,
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    sysconfig.get_path("platlib"),
    "<",
)
MAX_SEEN = 10_000  # calls and tensors of one watch


class Line(NamedTuple):
    """A line under way, and the function that it stands in."""

    where: str
    code: CodeType


class CallSeen(NamedTuple):
    """A call of a function that was asked for."""

    name: str  # "zero_grad"
    where: str  # of the user's line
    owner: Any  # what it was called on; None where nobody knows


class LineWatch:
    """Sees the user's lines between `start` and `stop`, in the thread that called `start`.

    Args:
        names: of functions of torch, or of built-in ones, whose calls are kept.

    Attributes:
        calls: of those, in their order.
    """

    def __init__(self, *names: str) -> None:
        self._names = frozenset(names)
        self._thread = 0
        self._made: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.calls: list[CallSeen] = []

    @property
    def is_on(self) -> bool:
        """Whether it is looking now."""
        return bool(self._thread)

    def start(self) -> None:
        """Look from now on, unless somebody else does."""
        if not self._thread and sys.getprofile() is None:
            self._thread = threading.get_ident()
            sys.setprofile(self._see)

    def stop(self) -> None:
        """Look no more; does nothing in another thread."""
        if self._thread and threading.get_ident() == self._thread:
            self._thread = 0
            if sys.getprofile() == self._see:
                sys.setprofile(None)

    def find_maker(self, tensor: Tensor) -> str:
        """Return the line that first returned this very tensor from a function of the user's."""
        held = self._made.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else ""

    def forget(self) -> None:
        """Begin anew."""
        self._made.clear()
        self.calls.clear()

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "return":
            if arg is not None and not frame.f_code.co_filename.startswith(_FOREIGN):
                self._note_made(frame, arg)
        elif event == "call":
            code = frame.f_code
            if code.co_name in self._names and code.co_filename.startswith(_TORCH):
                self._note_call(code.co_name, frame, frame.f_locals.get("self"))
        elif event == "c_call" and getattr(arg, "__name__", "") in self._names:
            self._note_call(arg.__name__, frame, getattr(arg, "__self__", None))

    def _note_made(self, frame: FrameType, value: Any) -> None:
        for tensor in _iter_returned(value):
            held = self._made.get(id(tensor))
            if len(self._made) < MAX_SEEN and (held is None or held[0]() is None):
                where = shorten(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                self._made[id(tensor)] = weakref.ref(tensor), where

    def _note_call(self, name: str, frame: FrameType, owner: Any) -> None:
        line = find_line_of(frame)
        if line is not None and len(self.calls) < MAX_SEEN:
            self.calls.append(CallSeen(name, line.where, owner))


def seeds_all(call: CallSeen) -> bool:
    """Return whether a call seeded the generator that all share, not one of its own."""
    if call.name != "manual_seed":
        return False
    return not isinstance(call.owner, torch.Generator) or call.owner is torch.default_generator


class Maker:
    """Finds the line that made a tensor of the next call, for who found this call's wrong."""

    def __init__(self) -> None:
        self._watch = LineWatch()
        self._waiting: dict[str, Callable[[str], None]] = {}

    def ask(self, group: str, tell: Callable[[str], None]) -> None:
        """Call `tell` with a line, "" where none is known, when the next call begins.

        Args:
            group: of its arguments: "batch" or "target".
            tell: once a group, the first that asked.
        """
        self._waiting.setdefault(group, tell)

    def begin_call(self, call: Call) -> None:
        """Answer what was asked."""
        if not self._waiting:
            return
        self._watch.stop()
        waiting, self._waiting = self._waiting, {}
        for group, tell in waiting.items():
            mine = [t for name, t in call.name_tensors().items() if name.startswith(f"{group} ")]
            found = [self._watch.find_maker(tensor) for tensor in mine]
            tell(next((where for where in found if where), ""))
        self._watch.forget()

    def end_call(self) -> None:
        """Look at the loop until the next call, if somebody asked."""
        if self._waiting:
            self._watch.start()

    def close(self) -> None:
        """Look no more; what was asked is told without a line."""
        self._watch.stop()
        waiting, self._waiting = self._waiting, {}
        for tell in waiting.values():
            tell("")


def find_line_of(frame: FrameType | None, code: CodeType | None = None) -> Line | None:
    """Return the innermost line of the user's, or that in a certain function, from a frame on."""
    while frame is not None:
        found = frame.f_code
        if found is code or (code is None and not found.co_filename.startswith(_FOREIGN)):
            return Line(shorten(f"{found.co_filename}:{frame.f_lineno}"), found)
        frame = frame.f_back
    return None


def find_line_in_thread(thread: int, code: CodeType | None = None) -> Line | None:
    """Return the line that a thread is at; hooks of a backward pass may run in another one."""
    if thread == threading.get_ident():
        return find_line_of(sys._getframe(1), code)
    return find_line_of(sys._current_frames().get(thread), code)


def _iter_returned(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a function returned: itself, or in one or two layers around."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict) and len(value) <= 64:
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, tuple | list) and len(item) <= 64:
                yield from (inner for inner in item if isinstance(inner, Tensor))
