"""Steps that never come: a GradScaler that leaves each one out, an optimizer that nobody steps."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsx.diagnostics.detector import Call, Detector, Scene
from tsx.diagnostics.frozen.report import KIND_NAME
from tsx.diagnostics.tracing.step_spy import StepSpy

# A healthy scaler leaves steps out at first, and halves its scale each time: three at one scale.
SKIPPED = 3
# Lines that were logged without a step in between; some log each of many micro-batches.
LINES = 2


class SkippedSteps(Detector):
    """Sees calls with gradients that are not finite and steps that never follow."""

    name = "skipped_steps"
    is_constant = True

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        params = [p for p in scene.model.parameters() if p.requires_grad and p.is_leaf]
        self._param = params[0] if params else None  # its gradient comes last
        self._hook: Any = None
        self._stepped = 0  # at the last step of an optimizer: what the loop had logged
        self._factor: Tensor | None = None
        self._scales: list[float] = []  # of the losses whose step was left out
        self._spy: StepSpy | None = None
        self._scaler = ""
        self._is_said = False

    def before_call(self, call: Call) -> None:
        """The step before is over, had it come."""
        if self._spy is not None:
            self._spy.end()
            self._scaler = self._spy.scaler or self._scaler
            self._spy = None
        if self._scales:
            self._report()

    def after_call(self, call: Call) -> None:
        """Look at the backward pass, if no step has come for a while."""
        if self._is_said or self._param is None or call.step - self._stepped < LINES:
            return
        if not (call.is_training and isinstance(call.loss, Tensor) and call.loss.requires_grad):
            return
        call.loss.register_hook(self._saw_factor)  # type: ignore[no-untyped-call]
        if self._hook is None:
            self._hook = self._param.register_post_accumulate_grad_hook(self._saw_gradient)  # type: ignore[no-untyped-call]
        self._spy = StepSpy(self._param)
        self._spy.begin()

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """A step has come after all."""
        self._stepped = step
        self._scales = []
        if self._hook is not None:
            self._unhook()

    def close(self, *, is_whole: bool) -> None:
        """The run is over."""
        self._unhook()
        if self._spy is not None:
            self._spy.end()
            self._scaler = self._spy.scaler or self._scaler
        self._report()

    def _saw_factor(self, grad: Tensor) -> None:
        self._factor = grad.detach().float().norm()

    def _saw_gradient(self, param: Tensor) -> None:
        if param.grad is not None and self._factor is not None and not param.grad.is_sparse:
            is_finite = param.grad.detach().isfinite().all().float()
            values = torch.stack([is_finite, self._factor.to(is_finite.device)])
            self.scene.voice.read_late(values, partial(self._note, self._stepped))
            self._factor = None

    def _note(self, stepped: int, values: list[float]) -> None:
        is_finite, scale = values
        if is_finite or stepped != self._stepped:
            self._scales = []
        else:
            self._scales = [*(s for s in self._scales if s == scale), scale]

    def _report(self) -> None:
        if len(self._scales) < SKIPPED or not (math.isfinite(self._scales[-1]) or self._scaler):
            return  # an infinite one, of a loss in fp16, may still be on its way down
        self._is_said = True
        self._unhook()
        scale = self._scales[-1]
        self._scales = []
        self.scene.report(
            KIND_NAME,
            "skipped-steps",
            "the optimizer never steps: gradients overflow at the same loss scale each time, and "
            "the scaler leaves the step out",
            "make one GradScaler for the whole run and call its update() after each step",
            phase="optimizer",
            where=self._scaler,
            evidence={"loss_scale": scale, "skipped": SKIPPED},
        )

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
