"""Parameters that do not move, and why.

A few numbers of each parameter are compared before and after the steps that are looked at, and
from one of them to the next. What stands still, or has a gradient of zero, is suspected; only
suspects are looked into: their gradient right after the backward pass and at the step, a shadow of
the step in more digits, the way of their gradients through a traced call, and the line that takes
a gradient or a value away. A finding comes after several looks: a first step at rate 0,
zero-initialised last layers, optimizers that take turns and rare rows of an embedding are healthy.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tsx.diagnostics.detector import Call, Detector, Kind, Look, Scene, Values
from tsx.diagnostics.frozen.causes import CLIPPED, LOOKS, Cause, find_cause
from tsx.diagnostics.frozen.gradient_paths import FUNCTIONS, GradientPaths
from tsx.diagnostics.frozen.holders import Holders
from tsx.diagnostics.frozen.probes import Probes
from tsx.diagnostics.frozen.report import KIND_NAME, report_frozen
from tsx.diagnostics.frozen.samples import Unit
from tsx.diagnostics.frozen.strangers import report_strangers
from tsx.diagnostics.frozen.tracks import Step, Track, Tracks
from tsx.diagnostics.routing.routed_rows import RoutedRows
from tsx.diagnostics.tracing.loop_source import find_above, list_frames
from tsx.diagnostics.tracing.step_spy import StepSpy
from tsx.diagnostics.tracing.tape import OpSeen, Tape

KIND = Kind(
    KIND_NAME,
    "Parameters that do not move, grouped by class, with the cause: requires_grad, no optimizer, "
    "a stale tensor, no gradient, a gradient of zero, rate 0, clipped to nothing, an update that "
    "is rounded away, overwritten after the step, experts without tokens.",
    "49 RMSNorm weights stood at exactly 1 for 754 steps. It was taken for gradient flow through "
    "skipped tokens; the weights were in bf16, and Adam's step at 1 is under half an ulp.",
    "How many parameters of which class, their names, gradient norm after the backward pass and "
    "at the step, largest update against half an ulp, the line that cuts a gradient off.",
    "As the finding says for its cause. What is frozen on purpose is a remark only once "
    "requires_grad is off.",
)
_SWITCH = re.compile(r"requires_grad_\(\s*False|requires_grad\s*=\s*False|\bfreeze\w*\(")


class Frozen(Detector):
    """Finds parameters that do not move."""

    name = "frozen"
    kinds = (KIND,)
    functions = FUNCTIONS
    ops = frozenset({"*"})

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._tracks = Tracks(scene.model, scene.voice)
        self._probes = Probes(scene.voice)
        self._paths = GradientPaths(scene.modules)
        self._routed = RoutedRows(scene.voice)
        self._holders = Holders(scene)
        self._ran: set[str] = set()
        self._said: set[tuple[str, str, str]] = set()  # causes
        self._asked: set[int] = set()  # ids of parameters in no module
        self._is_traced = False
        self._step: Step | None = None
        self._before = torch.zeros(0)
        self._wanting: frozenset[int] = frozenset()  # ids of what requires a gradient
        self._switch = ""  # the line that turned it off for some
        self._looked: set[int] = set()  # ids of optimizers that were looked at in this step
        self._is_due = True
        self._number = 0  # of the last step
        self._spy: StepSpy | None = None
        self._to_spy: Track | None = None

    def before_call(self, call: Call) -> None:
        """The step before is over."""
        if self._spy is not None:
            self._spy.end()
            self._spy = None
        if call.is_looked:
            self._paths.begin()

    def saw_function(self, seen: OpSeen) -> None:
        """Follow gradients through the call."""
        self._paths.saw_function(seen)

    def saw_op(self, seen: OpSeen) -> None:
        """Follow gradients and rows through the call."""
        self._paths.saw_op(seen)
        if seen.name == "topk":
            self._routed.saw_topk(seen)

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Note which modules run at all."""
        self._ran.add(name)

    def after_trace(self, tape: Tape) -> None:
        """Lines are known now."""
        self._is_traced = True

    def after_call(self, call: Call) -> None:
        """Follow the gradients of suspects, if the step is looked at."""
        if not (call.is_looked and call.is_training and isinstance(call.loss, Tensor)):
            return
        is_followed = self._is_traced and bool(self._tracks.list_suspects())
        self._is_traced = False
        self._paths.end_forward(call.loss, is_followed=is_followed)
        self._probes.follow(call.loss)
        if self._to_spy is not None:
            self._spy = self._to_spy.facts.spy = StepSpy(self._to_spy.unit.param)
            self._to_spy = None
            self._spy.begin()

    def pause(self) -> None:
        """Look at no lines until steps are shown again."""
        if self._spy is not None:
            self._spy.end()
            self._spy = None

    def begin_look(self, step: int) -> None:
        """Measure the gradients of suspects as they come."""
        self._is_due = True
        self._probes.begin(self._tracks.list_suspects())

    def before_step(self, look: Look) -> Values | None:
        """Take the numbers, and look into suspects."""
        self._looked.add(id(look.optimizer))
        self._tracks.refresh()
        self._step = self._tracks.see(look.optimizer, look.step)
        self._before = self._tracks.take()
        if not self._step.wanting >= self._wanting:
            self._switch = find_above(list_frames(), _SWITCH)
        self._wanting = self._step.wanting
        suspects = self._tracks.list_suspects()
        self._probes.note_rates(look.optimizer, suspects)
        grads = dict(zip(map(id, look.params), look.grads, strict=True))
        self._probes.before_step(look.optimizer, suspects, grads)
        params = [id(track.unit.param) for track in suspects]
        self._paths.end_backward(params, self.scene.voice)
        return None

    def after_step(self, look: Look) -> Values | None:
        """Take the numbers again."""
        step, self._step = self._step, None
        if step is not None:
            self._probes.after_step()
            self._tracks.compare(step, self._before, look.params, look.grads)
        return None

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Tell of what is sure by now."""
        if self._spy is not None:
            self._spy.end_step()
        self._number = step
        is_seen = id(optimizer) in self._looked
        if not (is_seen or self._is_due):
            return
        if not is_seen:
            self._see_blind(optimizer, step)
        self._looked.discard(id(optimizer))
        self._probes.end()
        self._is_due = False
        self._confirm()

    def close(self, *, is_whole: bool) -> None:
        """Tell of what has been waited for."""
        self._probes.end()
        if self._spy is not None:
            self._spy.end()
        self._confirm(is_last=True)

    def _see_blind(self, optimizer: Optimizer, number: int) -> None:
        """See a step at which nothing has a gradient: no look is taken at such a one."""
        self._tracks.refresh()
        step = self._tracks.see(optimizer, number)
        if self._tracks.is_any_in(step) and not step.with_grad:
            with torch.no_grad():
                suspects = self._tracks.list_suspects()
                self._probes.note_rates(optimizer, suspects)
                self._probes.before_step(optimizer, suspects, {})
                self._tracks.compare(step, self._tracks.take(), [], [])

    def _confirm(self, *, is_last: bool = False) -> None:
        """Report what has stood still for long enough."""
        tracks = list(self._tracks)
        suspects = [track for track in tracks if track.is_suspect]
        found: list[tuple[Unit, Cause]] = []
        for track in suspects:
            self._ask_for_spy(track)
            if track.looks < LOOKS:
                continue
            self._complete(track, tracks)
            cause = find_cause(track.facts)
            if cause is None or (track.looks < cause.looks and not is_last):
                continue
            if cause.mechanism == "not-in-optimizer" and self._holders.is_alive(
                id(track.unit.param)
            ):
                continue
            track.is_said = True
            if (cause.mechanism, cause.why, cause.where) not in self._said:
                found.append((track.unit, cause))
        self._said |= {(cause.mechanism, cause.why, cause.where) for _, cause in found}
        if is_last or any(track.step >= LOOKS for track in tracks):
            report_strangers(
                self.scene, self._holders, self._paths.strangers, self._asked, self._number
            )
        wanting = [track for track in tracks if track.facts.wanted_grad]
        is_all = sum(1 for _, cause in found if cause.mechanism == "zero-gradient") >= len(wanting)
        if found and not is_all:  # a loss that is flat for everything is no matter of parameters
            report_frozen(self.scene, found, len(wanting), self._number)

    def _ask_for_spy(self, track: Track) -> None:
        """Have the next step watched, if that can show a line."""
        facts = track.facts
        is_taken = bool(facts.seen_grad) and not facts.has_grad
        is_clipped = facts.left is not None and facts.left < CLIPPED
        is_asked = facts.is_undone or is_taken or is_clipped
        if is_asked and facts.spy is None and self._to_spy is None and self._spy is None:
            self._to_spy = track

    def _complete(self, track: Track, tracks: list[Track]) -> None:
        """Add what is known beside the numbers."""
        facts, unit = track.facts, track.unit
        key = id(unit.param)
        facts.is_twin_held = not facts.is_held and self._holders.holds_twin(unit)
        facts.is_left_on_purpose = not facts.is_held and self._holders.is_most_left()
        facts.switch = self._switch
        facts.has_run = unit.module in self._ran if self._ran else None
        facts.is_reached = None if self._paths.reached is None else key in self._paths.reached
        facts.cut = self._paths.find_cut(key, unit.module, is_whole=not facts.has_grad)
        facts.end = self._paths.ends.get(key)
        feeds = facts.end.feeds if facts.end else 0
        facts.feeds = self.scene.names.get(feeds, "").rpartition(".")[0]
        facts.starved = self._routed.find_starved(unit.part.name)
        facts.is_sibling_moved = any(
            other.unit.module == unit.module and other.facts.was_moved for other in tracks
        )
        if facts.spy is None:  # one was watched for all of them
            facts.spy = next((t.facts.spy for t in tracks if t.facts.spy and t.looks), None)
