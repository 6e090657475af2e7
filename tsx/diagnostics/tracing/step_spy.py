"""Which line of a loop changes a gradient or a weight: one step under a profile function.

Used once a fault is sure to be between two moments of the loop and only its line is missing. The
interpreter calls back as functions return; what changed since the last return was changed by that
function. A loop that is profiled by somebody else is left alone, and after so many calls the spy
gives up.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor

from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.trace import find_line, is_user_line

MAX_EVENTS = 50_000  # some 50 ms, once
_WRAPPERS = {"inner", "wrapper", "decorate_context", "_fn", "_no_grad_wrapper"}
_SCALER = "/torch/amp/grad_scaler.py"


class Change(NamedTuple):
    """Something that was changed.

    Attributes:
        where: "file.py:12", the innermost line of the user's.
        call: name of the torch function that this line called; "" where it did so itself.
    """

    where: str
    call: str


class StepSpy:
    """Watches one parameter from the end of a call to the beginning of the next.

    Args:
        param: whose value and gradient are watched.

    Attributes:
        gradient: its changes, in their order; the first is the backward pass.
        value: changes after the optimizer's step.
        scaler: where a GradScaler was made.
    """

    def __init__(self, param: Tensor) -> None:
        self.gradient: list[Change] = []
        self.value: list[Change] = []
        self.scaler = ""
        self._param = param
        self._events = 0
        self._is_on = False
        self._is_stepped = False
        self._held = self._read_gradient()
        self._kept = self._read_value()

    def begin(self) -> None:
        """Watch from here on, unless somebody else profiles this thread."""
        if sys.getprofile() is None:
            self._is_on = True
            sys.setprofile(self._saw)

    def end(self) -> None:
        """Watch no more."""
        if self._is_on and sys.getprofile() == self._saw:
            sys.setprofile(None)
        self._is_on = False

    def end_step(self) -> None:
        """The optimizer has stepped: what changes the value from here on undoes it."""
        self._is_stepped = True
        self._kept = self._read_value()

    def _saw(self, frame: FrameType, event: str, arg: Any) -> None:
        self._events += 1
        if self._events > MAX_EVENTS:
            self.end()
            return
        if event == "call":
            code = frame.f_code
            is_made = code.co_name == "__init__" and code.co_filename.endswith(_SCALER)
            if is_made and hasattr(frame.f_locals.get("self"), "unscale_"):
                self.scaler = shorten(find_line(frame))
            return
        if event != "c_call":
            self._compare(frame)

    def _compare(self, frame: FrameType) -> None:
        held = self._read_gradient()
        if held != self._held:
            self._held = held
            self.gradient.append(_describe(frame))
        if self._is_stepped:
            kept = self._read_value()
            if kept != self._kept:
                self._kept = kept
                self.value.append(_describe(frame))

    def _read_gradient(self) -> tuple[int, int]:
        grad = self._param.grad
        return (0, 0) if grad is None else (id(grad), grad._version)

    def _read_value(self) -> tuple[int, int, Any]:
        """Return what tells one value from another; on an accelerator without reading it."""
        param = self._param.detach()
        number = param[(0,) * param.ndim].item() if param.device.type == "cpu" else None
        return param.data_ptr(), self._param._version, number


def _describe(frame: FrameType) -> Change:
    call, above = "", frame
    while not is_user_line(above.f_code.co_filename) and above.f_back is not None:
        name = above.f_code.co_name
        call, above = call if name in _WRAPPERS else name, above.f_back
    return Change(shorten(find_line(frame)), call)
