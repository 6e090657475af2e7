"""What a loss is trained on though it is no data: padding, gaps that became numbers, wrapped bytes.

Shapes: B samples, T times.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.data.batch_stats import measure_padding
from tsx.diagnostics.data.quality import KIND, SAID
from tsx.diagnostics.data.sequences import line_up, list_inputs
from tsx.diagnostics.detector import Call, Detector, Scene
from tsx.diagnostics.tracing.loss_calls import DISTANCES, SIGNATURES, LossCall, read_loss
from tsx.diagnostics.tracing.tape import OpSeen

FILLERS = frozenset({"nan_to_num", "nan_to_num_", "where", "masked_fill"})
MIN_PADDING = 0.3  # of the labels that count


class TrainedGaps(Detector):
    """Compares what a loss takes with what the call was given."""

    name = "trained_gaps"
    functions = FILLERS | {"sub"} | frozenset(SIGNATURES)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._call: Call | None = None  # under way
        self._filled: list[tuple[weakref.ref[Tensor], str]] = []

    def before_call(self, call: Call) -> None:
        """Keep what the call is given while it is traced."""
        self._call = call
        self._filled.clear()

    def after_call(self, call: Call) -> None:
        """Let go of it."""
        self._call = None
        self._filled.clear()

    def saw_function(self, seen: OpSeen) -> None:
        """Keep what fills gaps; judge a loss, or a difference of bytes."""
        if seen.name in FILLERS:
            if isinstance(seen.out, Tensor) and not seen.out.requires_grad:
                self._filled.append((weakref.ref(seen.out), seen.where))
        elif seen.name == "sub":
            self._judge_bytes(seen)
        elif self._call is not None and (loss := read_loss(seen)) and loss.is_reduced:
            given = self._call.name_tensors()
            if loss.name in DISTANCES:
                self._judge_gaps(loss, given)
            self._judge_padding(loss, given)

    def _judge_bytes(self, seen: OpSeen) -> None:
        """Bytes below zero wrap around."""
        first, out = seen.args[0] if seen.args else None, seen.out
        if not (isinstance(first, Tensor) and isinstance(out, Tensor)):
            return
        if first.dtype is torch.uint8 and out.dtype is torch.uint8 and first.shape == out.shape:
            step, where = self.scene.step, seen.where

            def take(has_wrapped: bool) -> None:
                if has_wrapped:
                    self._tell("uint8-wraps", step, seen.module, where, {})

            self.scene.voice.read_late((out > first).any(), take)

    def _judge_padding(self, loss: LossCall, named: dict[str, Tensor]) -> None:
        """One value ends rows of input and labels, and counts."""
        step, module, where = self.scene.step, loss.module, loss.where

        def take(values: Sequence[float]) -> None:
            share, is_padding = values
            if is_padding and share >= MIN_PADDING:
                self._tell("loss-on-padding", step, module, where, {"share": share})

        for pair in line_up(loss, list_inputs(named, loss.target, ())):
            self.scene.voice.read_late(measure_padding(pair), take)
            return

    def _judge_gaps(self, loss: LossCall, named: dict[str, Tensor]) -> None:
        """Targets that were not finite when the call got them, and are when the loss does."""
        target = loss.target.detach()
        where = next((at for ref, at in self._filled if ref() is loss.target), loss.where)
        for name, given in named.items():
            if not name.startswith("target ") or given.shape != target.shape or given is target:
                continue
            if given.is_floating_point() and given.device == target.device:
                share = (~given.isfinite() & target.isfinite()).float().mean()
                take = partial(self._tell_gaps, self.scene.step, loss.module, where)
                self.scene.voice.read_late(share, take)

    def _tell_gaps(self, step: int, module: str, where: str, share: float) -> None:
        if share > 0:
            self._tell("nonfinite-replaced", step, module, where, {"share": share})

    def _tell(
        self, mechanism: str, step: int, module: str, where: str, evidence: dict[str, Any]
    ) -> None:
        cause, fix = SAID[mechanism]
        self.scene.report(
            KIND,
            mechanism,
            cause,
            fix,
            step=step,
            phase="data",
            module=module,
            where=where,
            evidence=evidence,
        )
