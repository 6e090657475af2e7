"""What to say of a step whose loss or gradient is not finite, in a loop of one's own.

Holds on to the calls of the step under way and the last one of the step before (their arguments
stay in memory), and explains them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from registry.events import Finding, Severity
from tsx.diagnostics.nonfinite.held_call import HeldCall, read_versions
from tsx.diagnostics.nonfinite.origin import describe_origin
from tsx.diagnostics.nonfinite.trials import Explainer
from tsx.diagnostics.tracing.replay import Rewinder

MAX_CALLS = 8  # of one step: micro-batches


class Postmortem:
    """Explains steps of one model.

    Args:
        model: the module that trains.
        find_loss: takes the loss out of what a call returns; None where there is none.
    """

    def __init__(self, model: nn.Module, find_loss: Callable[[Any], Any]) -> None:
        self._model = model
        self._rewinder = Rewinder(model)
        self._explainer = Explainer(model, self._rewinder, find_loss)
        self.keep: Callable[..., Mapping[str, Any]] | None = None  # see tsx.recording.dumping
        self._calls: deque[HeldCall] = deque(maxlen=MAX_CALLS)
        self._previous: HeldCall | None = None
        self._param: Tensor | None = None  # the first one: where the model is

    def begin_call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Remember a call that is about to be made, where its loss can be judged at once.

        On an accelerator it is read later, and arguments that are held on to would take its memory.
        """
        if self._param is None or self._param.device.type != "cpu":
            self._param = next(self._model.parameters(), None)  # it may have been moved
            if self._param is None or self._param.device.type != "cpu":
                return
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        moment, versions = self._rewinder.take(), read_versions(args, self._param)
        self._calls.append(HeldCall(fn, args, kwargs, moment, autocast, versions))

    def end_step(self) -> None:
        """The optimizer has stepped: what was called before it cannot be run again any more."""
        if self._calls:
            self._previous = self._calls[-1]
        self._calls.clear()

    def explain_loss(
        self, *, step: int, time: float, evidence: Mapping[str, Any] | None = None
    ) -> Finding | None:
        """Return what is to be said of the last call, whose loss is not finite."""
        calls = list(self._calls)
        before = calls[-2] if len(calls) > 1 else self._previous
        return self._explain(calls[-1:], before, False, step, time, evidence)

    def explain_gradients(
        self, *, step: int, time: float, evidence: Mapping[str, Any] | None = None
    ) -> Finding | None:
        """Return what is to be said of a step whose losses are finite and gradients are not."""
        return self._explain(list(self._calls), self._previous, True, step, time, evidence)

    def _explain(
        self,
        calls: list[HeldCall],
        before: HeldCall | None,
        backward: bool,
        step: int,
        time: float,
        evidence: Mapping[str, Any] | None,
    ) -> Finding | None:
        found = self._explainer.explain(
            calls, lambda index: calls[index - 1] if index else before, backward=backward
        )
        if found is None:
            return None
        known = {**found.evidence, **(evidence or {})}
        if self.keep is not None:
            known |= self.keep(calls[found.index], self._model, step, known)
        return describe_origin(
            found.origin, step=step, time=time, severity=Severity.ERROR, evidence=known
        )
