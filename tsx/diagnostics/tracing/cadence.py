"""Which calls are traced, and how: the 1st, 2nd, 4th, 8th ... of those that train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tsx.diagnostics.detector import Call
from tsx.diagnostics.panel import Panel
from tsx.diagnostics.tracing.replay import Rewinder, set_generators
from tsx.diagnostics.tracing.tape import Tape, is_traceable


class Tracer:
    """Runs calls, and traces some of them.

    Args:
        model: that is watched.
        panel: of the detectors.
        is_compiled: parts of the model are: one call is traced beside the training's own.

    Attributes:
        is_due: the next call that trains is traced.
    """

    def __init__(self, model: nn.Module, panel: Panel, *, is_compiled: bool) -> None:
        self._model = model
        self._panel = panel
        self._is_compiled = is_compiled
        self._training_calls = 0
        self.is_due = True
        self._traces = 0

    def run(self, call: Call) -> Any:
        """Return what a call returns; it is traced if it is its turn."""
        if not (call.is_training and call.is_grad):
            return call.fn(*call.args, **call.kwargs)
        is_due = self.is_due
        self._training_calls += 1
        number = self._training_calls + 1  # of the next one
        self.is_due = number & (number - 1) == 0 and not (self._is_compiled and self._traces)
        if not is_due or not is_traceable():
            return call.fn(*call.args, **call.kwargs)
        self._traces += 1
        self.is_due = self.is_due and not self._is_compiled
        tape = Tape(self._traces, self._model, self._panel.detectors, self._panel.ask_one)
        if self._is_compiled:
            self._rehearse(tape, call)
            result = call.fn(*call.args, **call.kwargs)
        else:
            result = self._run_traced(tape, call)
        self._panel.ask_all("after_trace", tape)
        return result

    def _run_traced(self, tape: Tape, call: Call) -> Any:
        """Run a call traced; one that fails is run as it is, in case the trace was to blame."""
        moment = Rewinder(self._model).take()
        try:
            with tape.recording():
                return call.fn(*call.args, **call.kwargs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            set_generators(moment)
            result = call.fn(*call.args, **call.kwargs)
            self._panel.tell("trace", error)
            return result

    def _rehearse(self, tape: Tape, call: Call) -> None:
        """Trace a call beside the training's own."""
        try:
            with tape.trial(training=True, grad=True), tape.recording():
                call.fn(*call.args, **call.kwargs)
        except Exception as error:
            self._panel.tell("trace", error)
