"""How the gradients of a step add up: zeroed too seldom or too often, weighed or clipped wrongly.

Not covered: calls that run their backward pass themselves, losses weighed inside the call, and
micro-batches under a loss scale beyond what zeroing shows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from registry.events import Severity
from tsx.diagnostics.detector import Call, Detector, Kind, Look, Scene, Values
from tsx.diagnostics.loop.accumulated import Verdict, judge
from tsx.diagnostics.loop.gradient_tracks import GradientTracks, Track
from tsx.diagnostics.loop.weigh import find_condition
from tsx.diagnostics.module_names import find_enclosing
from tsx.diagnostics.tracing.loop_lines import LineWatch, find_line_in_thread

KIND = "accumulation"
SCALED = 128.0  # a loss that is weighed more than this is scaled for fp16


class Said(NamedTuple):
    """What is said of a mechanism."""

    cause: str
    fix: str
    severity: Severity = Severity.WARNING


SAID = {
    "no-zero-grad": Said(
        "the gradients are never set to zero: each step follows the sum of all steps before",
        "call optimizer.zero_grad() once a step, for each optimizer, before its backward pass",
    ),
    "step-inside": Said(
        "the optimizer steps on each micro-batch, and gradients are zeroed only after several",
        "step once, after the last micro-batch",
    ),
    "zero-grad-inside": Said(
        "gradients are set to zero before each micro-batch: only the last one counts",
        "call zero_grad once a step, before the first micro-batch",
    ),
    "left-over": Said(
        "gradients of an unfinished step are still there when the next one begins",
        "step, or zero, after the last micro-batch of an epoch, however many it had",
    ),
    "mean-of-means": Said(
        "micro-batches of unequal counts weigh the same: a label of a small one counts for more",
        "divide the sum of losses of each micro-batch by the labels of the whole step",
    ),
    "sum-of-means": Said(
        "the means of several micro-batches are added up: the step is that many times as large as "
        "one batch would make it",
        "divide each loss by the number of micro-batches",
        Severity.INFO,
    ),
    "clip-before-unscale": Said(
        "gradients are clipped while they are still scaled: next to nothing is left of them",
        "call scaler.unscale_(optimizer) before clipping",
    ),
}


class Accumulation(Detector):
    """Follows gradients from the loss to the step."""

    name = KIND
    kinds = (
        Kind(
            KIND,
            "Gradients add up when they should not, are thrown away, or are weighed wrongly: "
            "zero_grad is missing or stands inside the loop of micro-batches, the optimizer steps "
            "for each of them, a mean of means is taken over unequal counts, what is clipped is "
            "still scaled, or an epoch leaves gradients behind.",
            "Accumulation gave another loss than one large batch, and trainers had it for years: "
            "each micro-batch was averaged over its own labels, whether it had 54 or 2.",
            "The line, the weight of each loss, the number of backward passes and the labels of "
            "each, and the parameters whose gradients were not zeroed.",
            "Zero once a step, before its first backward pass; divide each loss by the labels of "
            "the whole step; unscale before clipping; step or zero at the end of an epoch.",
        ),
    )

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._tracks = GradientTracks(self._begin_backward, self._end_backward)
        self._lines = LineWatch("zero_grad")
        self._clips = LineWatch("clip_grad_norm_", "clip_grad_value_", "unscale_")
        self._wants_lines = False
        self._wants_clips: bool | None = None  # None before a scale was seen
        self._told: set[str] = set()

    def before_call(self, call: Call) -> None:
        """Look at no lines inside of it."""
        self._lines.stop()
        self._clips.stop()

    def after_call(self, call: Call) -> None:
        """Wait for the backward pass of its loss."""
        is_looked = call.is_looked
        is_followed = self._tracks.follow(call.loss, call.fn, call.index, is_looked=is_looked)
        if is_followed and self._wants_lines:
            self._lines.start()

    def before_step(self, look: Look) -> Values | None:
        """The step is taken: what is zeroed has been zeroed."""
        self._lines.stop()
        return None

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Judge what went into a step, and note what is there now."""
        self._lines.stop()
        self._clips.stop()
        track = self._tracks.find(optimizer)
        if track is not None and track.is_whole and track.seen:
            self._judge(track)
        self._judge_clips()
        self._tracks.end_step(optimizer, self.scene.names)
        if self._wants_lines:
            self._lines.start()

    def pause(self) -> None:
        """Look at no lines until steps are shown again."""
        self._lines.stop()
        self._clips.stop()

    def close(self, *, is_whole: bool) -> None:
        """Let go of the loop."""
        self._lines.stop()
        self._clips.stop()

    def _begin_backward(self) -> None:
        """Look at no lines inside of a backward pass."""
        self._lines.stop()

    def _end_backward(self) -> None:
        """Look at those between it and the step."""
        if self._wants_clips:
            self._clips.start()
        elif self._wants_lines:
            self._lines.start()

    def _judge(self, track: Track) -> None:
        """Judge a step once the weights of its losses are read: later, on an accelerator."""
        seen = list(track.seen)
        code = seen[-1].code
        line = find_line_in_thread(threading.get_ident(), code) if code is not None else None
        parts = [backward.weight.reshape(()).double() for backward in seen]
        # What another loss added to old gradients is thrown away where they are zeroed after it.
        old = seen[0].old if all(backward.is_kept for backward in seen) else None
        parts.append(torch.zeros_like(parts[0]) if old is None else old.to(parts[0]))
        where, step = line.where if line else "", self.scene.step

        def take(values: Sequence[float]) -> None:
            *weights, is_carried = values
            if max(abs(weight) for weight in weights) >= SCALED and self._wants_clips is None:
                self._wants_clips = True
            verdict = judge(track, seen, weights, is_carried=bool(is_carried))
            if verdict is None:
                return
            if verdict.is_suspicion:
                self._wants_lines = verdict.mechanism not in self._told
            else:
                self._tell(track, verdict, seen[-1].where, where, step)

        self.scene.voice.read_late(torch.stack(parts), take)

    def _tell(self, track: Track, verdict: Verdict, backward: str, stepped: str, step: int) -> None:
        """Report a verdict at the line that is to be changed.

        Args:
            track: of the optimizer.
            verdict: on its step.
            backward: the line of the last backward pass.
            stepped: the line of the step.
            step: of the run.
        """
        names = self._list_names(track)
        is_part = len(self.scene.optimizers) > 1
        zeroed = [call.where for call in self._lines.calls[-1:]]
        where, module = backward, ""
        match verdict.mechanism:
            case "no-zero-grad":
                where = zeroed[0] if zeroed and is_part else backward
                module = (
                    find_enclosing([name.rpartition(".")[0] for name in names]) if is_part else ""
                )
            case "zero-grad-inside":
                where = zeroed[0] if zeroed else backward
            case "step-inside":
                where = stepped
            case "left-over":
                where = find_condition(stepped)
        evidence = verdict.evidence | ({"parameters": names[:8]} if is_part else {})
        self._report(verdict.mechanism, where, module, evidence, step)

    def _judge_clips(self) -> None:
        """Judge the order of clipping and unscaling, once it was seen."""
        if not (self._wants_clips and self._clips.calls):
            return
        self._wants_clips = False
        first = self._clips.calls[0]
        if first.name != "unscale_":
            by = {"clipped_by": first.name}
            self._report("clip-before-unscale", first.where, "", by, self.scene.step)
        self._clips.forget()

    def _list_names(self, track: Track) -> list[str]:
        """Return the names of an optimizer's parameters."""
        optimizer = track.optimizer()
        groups = optimizer.param_groups if optimizer is not None else []
        mine = [id(p) for group in groups for p in group["params"]]
        return [self.scene.names[key] for key in mine if key in self.scene.names]

    def _report(
        self, mechanism: str, where: str, module: str, evidence: dict[str, Any], step: int
    ) -> None:
        """Report a mechanism, once for each module."""
        self._wants_lines = False
        if mechanism + module in self._told:
            return
        self._told |= {mechanism, mechanism + module}
        self._lines.forget()
        said = SAID[mechanism]
        self.scene.report(
            KIND,
            mechanism,
            said.cause,
            said.fix,
            severity=said.severity,
            step=step,
            phase="backward",
            module=module,
            where=where,
            evidence=evidence,
        )
