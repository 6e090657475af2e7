"""Hosts the detectors of one watched model: calls, steps and lines pass through here.

Whatever a detector does, training goes on; see `tsx.diagnostics.panel`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tsx.diagnostics.detector import Call, Detector, Look, Scene
from tsx.diagnostics.panel import Panel
from tsx.diagnostics.tracing.cadence import Tracer

MAX_LINES = 256  # logged and not yet seen
FIRST_STEPS = 64  # that are shown whole: what is wrong from the start shows there
SHOWN_STEPS = 4  # that are shown with each look


class Engine:
    """Shows a loop to detectors.

    Args:
        scene: what is known of the loop.
        detectors: who looks.
        is_compiled: parts of the model are: a call is traced beside the training's own, and only
            the first.
        clock: seconds.

    Attributes:
        is_looking: the step under way is looked at.
        is_shown: the step under way is shown to all; else to the constant ones only.
        panel: of the detectors.
        spent_s: on steps that were shown, beyond the first ones; whoever reads it sets it to 0.
    """

    def __init__(
        self,
        scene: Scene,
        detectors: Iterable[Detector],
        *,
        is_compiled: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.scene = scene
        self.panel = Panel(scene, detectors)
        self.is_looking = True
        self.is_shown = True
        self._ask: Callable[..., None] = self._ask_all  # or only those who are shown everything
        self._steps = 0
        self._shown_until = FIRST_STEPS
        self._known: set[int] = set()  # optimizers in the scene
        self.spent_s = 0.0
        self._clock = clock
        self._tracer = Tracer(scene.model, self.panel, is_compiled=is_compiled)
        self._calls = 0
        self._lines: deque[tuple[Mapping[str, Any], int]] = deque(maxlen=MAX_LINES)

    def compute(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        find_loss: Callable[[Any], Any],
    ) -> Any:
        """Return `fn(*args, **kwargs)` and show it to the detectors.

        Args:
            fn: what is called.
            args: its arguments.
            kwargs: and those by name.
            find_loss: takes the loss out of the result; None where there is none.
        """
        call = self._begin(fn, args, kwargs)
        try:
            result = self._tracer.run(call)
        except BaseException as error:
            call.ended_s = self._clock()
            self.panel.ask_all("raised", call, error)
            self._flush()
            raise
        call.ended_s = self._clock()
        call.result = result
        loss = find_loss(result)
        call.loss = loss if isinstance(loss, Tensor | float | int) else None
        self._ask("after_call", call)
        call.result = call.loss = None  # a detector may hold on to a call, but not to its graph
        return result

    def saw_loss(self, loss: float, step: int) -> None:
        """Show a loss that is on the host now."""
        self._ask("saw_loss", loss, step)

    def log(self, values: Any, step: int) -> None:
        """Keep a line that was logged; it is shown after the next step, for this has to be fast.

        A copy of it: a program may fill the same dict again before that.
        """
        if type(values) is dict:
            self._lines.append((values.copy(), step))
        elif isinstance(values, Mapping):
            self._lines.append((dict(values), step))

    @property
    def is_trace_due(self) -> bool:
        """Whether the next call that trains is traced."""
        return self._tracer.is_due

    def begin_look(self) -> None:
        """The step that begins now is looked at."""
        self.is_looking = self.is_shown = True
        self._shown_until = max(self._shown_until, self._steps + SHOWN_STEPS)
        self._ask = self._ask_all
        self.panel.ask_all("begin_look", self.scene.step)

    def before_step(self, look: Look) -> dict[str, Tensor | float]:
        """Show an optimizer that is about to step; return values for the next line."""
        return self.panel.collect("before_step", look)

    def after_step(self, look: Look) -> dict[str, Tensor | float]:
        """Show an optimizer that has stepped; return values for the next line."""
        return self.panel.collect("after_step", look)

    def end_step(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped: what was found is said now."""
        if id(optimizer) not in self._known:
            self._known.add(id(optimizer))
            self.scene.optimizers.append(optimizer)
        if self._lines:
            self._show_lines()
        self._ask("end_step", optimizer, self.scene.step)
        if self.scene.reports.is_pending:
            self._flush()
        self._steps += 1
        if self.is_shown and self._steps >= self._shown_until:
            self.is_shown = False
            self._ask = self.panel.ask_constant
            self.panel.ask_all("pause")

    def _ask_all(self, method: str, *args: Any) -> None:
        """Show something to all, and take the time."""
        began = self._clock()
        self.panel.ask_all(method, *args)
        if self._steps >= FIRST_STEPS:
            self.spent_s += self._clock() - began

    def close(self, *, is_whole: bool) -> None:
        """The run is over; see `Detector.close`."""
        self._show_lines()
        self.panel.ask_all("close", is_whole=is_whole)
        self.scene.reports.close()

    def _begin(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call:
        self._calls += 1
        call = Call(
            self._calls,
            self.scene.voice.step + 1,
            fn,
            args,
            kwargs,
            self.scene.model.training,
            torch.is_grad_enabled(),
            self.is_looking,
            entered_s=self._clock(),
        )
        self.scene.trains = call.is_training and call.is_grad
        if not self.is_shown and self.scene.trains and self._tracer.is_due:
            self.is_shown, self._shown_until = True, self._steps + 1
            self._ask = self._ask_all
        self._ask("before_call", call)
        call.began_s = self._clock()
        return call

    def _show_lines(self) -> None:
        """Show the lines that were logged since the last step."""
        while self._lines:
            values, step = self._lines.popleft()
            self.panel.ask_all("saw_values", values, step)

    def _flush(self) -> None:
        if self.scene.reports.is_pending:
            try:
                self.scene.reports.flush()
            except Exception as error:
                self.panel.tell("reports", error)


def has_compiled_parts(model: nn.Module) -> bool:
    """Return whether a module, one inside it, or a function that one holds was compiled."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        or any(hasattr(held, "_torchdynamo_orig_callable") for held in vars(module).values())
        for module in model.modules()
    )
