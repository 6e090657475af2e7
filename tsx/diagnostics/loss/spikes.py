"""A training loss that leaps: which change right before it made it.

Each cause is looked for where it would have to be: in the scale of the step's own batch, in the
optimizer's state, in the learning rate. The statistics of the leap are `tsx.curves.spikes`.

A loss that is read from a device late is held against the batch only where its step was looked at.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from registry.events import Severity
from tsx.curves.levels import find_median
from tsx.curves.spikes import Spike, SpikeWatch
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.loop import schedules
from tsx.diagnostics.tracing.loop_source import find_above, find_only_return, list_frames

_SCALES = 64  # batches whose scale is remembered
_MIN_SCALES = 3
_CALLS = 8  # micro-batches of the step under way that are kept
_OFF_SCALE = 4.0  # times the usual root mean square of a batch: series and pictures vary by less
_RAISED = 3.0  # times the rate of the step before: no warm-up rises so, but from 0
_RECENT = 4  # steps from a cause to the leap it makes
_MOMENTS = frozenset(("exp_avg", "momentum_buffer", "square_avg", "sum"))
_TOUCHES_STATE = re.compile(
    r"\.state\b.*(\.clear\(|=)|load_state_dict\(|\boptim\.\w+\(|\bdel\b.*\.state\b"
    r"|\b(Adam\w*|SGD|RMSprop|Adagrad|Muon|Adafactor|Lion)\("
)

SPIKE = Kind(
    "loss-spike",
    "The loss leaped over its recent level by far more than its noise.",
    "A resume loaded the weights and not the optimizer's state: each one cost a day's progress.",
    "`level`, `loss`, its height in `noises`; the batch's `scale`, `lr_before` and `lr_after`, or "
    "the `lost_steps` of optimizer state.",
    "Clean or clip the batch; look at the schedule; save and load the optimizer's state.",
)


@dataclass(slots=True)
class _Seen:
    """What is remembered of one optimizer."""

    rate: float = 0.0
    highest: float = 0.0
    raised_step: int = -1
    raised: tuple[float, float] = (0.0, 0.0)  # from, to
    was_highest: float = 0.0  # before it was raised
    has_moments: bool = False  # the optimizer remembers gradients
    steps: int = 0  # of the optimizer, since its state began
    lost_step: int = -1
    lost_steps: int = 0
    lost_where: str = ""


class LossSpike(Detector):
    """Follows the loss, and keeps at hand what could make it leap."""

    name = "loss_spike"
    is_constant = True
    kinds = (SPIKE,)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._watch = SpikeWatch()
        self._scales: dict[str, deque[float]] = {}
        self._calls: deque[Call] = deque(maxlen=_CALLS)  # of the step under way
        self._off: dict[str, float] = {}  # of the last step that was off scale, where looked at
        self._off_step = -1
        self._seen: dict[int, _Seen] = {}
        self._rules: dict[int, tuple[str, str]] = {}  # of an optimizer: rule, and who stepped it
        schedules.listen(self._saw_schedule)

    def before_call(self, call: Call) -> None:
        """See whether an optimizer has lost its state since its last step."""
        for optimizer in self.scene.optimizers:
            seen = self._seen.get(id(optimizer))
            if seen is not None and seen.has_moments and not _has_moments(optimizer):
                seen.lost_step, seen.lost_steps = call.step, seen.steps
                seen.lost_where = find_above(list_frames(), _TOUCHES_STATE)
                seen.has_moments, seen.steps = False, 0

    def after_call(self, call: Call) -> None:
        """Keep the batch until the step is over, and on steps that are looked at its scale."""
        if not self.scene.trains:
            return
        self._calls.append(call)
        if call.is_looked:
            for name, scale in _measure_scales(call).items():
                if self._is_off(name, scale):
                    self._off, self._off_step = {name: scale}, call.step
                else:
                    self._scales.setdefault(name, deque(maxlen=_SCALES)).append(scale)

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Note rate and state of an optimizer."""
        self._calls.clear()
        seen = self._seen.get(id(optimizer))
        if seen is None:
            seen = self._seen[id(optimizer)] = _Seen()
        rate = schedules.find_rate(optimizer) or 0.0
        if 0 < _RAISED * seen.rate <= rate:
            seen.raised_step, seen.raised = step, (seen.rate, rate)
            seen.was_highest = seen.highest
        seen.rate, seen.highest = rate, max(seen.highest, rate)
        seen.has_moments = seen.has_moments or _has_moments(optimizer)
        seen.steps += 1

    def saw_loss(self, loss: float, step: int) -> None:
        """Hold a loss against those before it."""
        if not self.scene.trains:
            return
        spike = self._watch.push(step, loss)
        if spike is not None:
            self._explain(spike)

    def close(self, *, is_whole: bool) -> None:
        """Listen no more."""
        schedules.stop(self._saw_schedule)

    def _saw_schedule(self, scheduler: Any, where: str) -> None:
        rule = schedules.find_rule(scheduler)
        known = self._rules.get(id(scheduler.optimizer))
        if known is None or known[1] != where:
            source = find_only_return(rule.__code__) if rule is not None else ""
            self._rules[id(scheduler.optimizer)] = (source, where)

    def _is_off(self, name: str, scale: float) -> bool:
        """Return whether a batch is far larger than those before it."""
        known = self._scales.get(name)
        if known is None or len(known) < _MIN_SCALES:
            return False
        return scale > _OFF_SCALE * find_median([*known])

    def _explain(self, spike: Spike) -> None:
        """Report a leap by the first cause that was there."""
        evidence = {
            "level": spike.level,
            "loss": spike.value,
            "ratio": round(spike.ratio, 3) if math.isfinite(spike.ratio) else None,
            "noises": round(spike.noises, 1),
        }
        if self._blame_batch(spike, evidence) or self._blame_state(spike, evidence):
            return
        if self._blame_rate(spike, evidence):
            return
        self.scene.report(
            "loss-spike",
            "unexplained",
            "the loss leaped; batch, optimizer state and learning rate are as they were",
            "look at the samples of this step; clip gradients or lower the learning rate",
            # A hard batch, another task, weights that were loaded: most such leaps are no fault.
            severity=Severity.INFO,
            step=spike.step,
            phase="forward",
            evidence=evidence,
        )

    def _blame_batch(self, spike: Spike, evidence: dict[str, Any]) -> bool:
        off = dict(self._off) if self._off_step == spike.step else {}
        for call in self._calls if self._calls and self._calls[-1].step == spike.step else ():
            scales = _measure_scales(call)
            off |= {name: scale for name, scale in scales.items() if self._is_off(name, scale)}
        if not off:
            return False
        usual = {name: find_median([*self._scales[name]]) for name in off}
        self.scene.report(
            "loss-spike",
            "bad-scale",
            f"the batch of the step in which the loss leaped is far larger than the others: "
            f"{', '.join(sorted(off))}",
            "look at how these samples were read and scaled; clip or leave out what is off",
            step=spike.step,
            phase="data",
            evidence={**evidence, "scale": off, "usual_scale": usual},
        )
        return True

    def _blame_state(self, spike: Spike, evidence: dict[str, Any]) -> bool:
        for seen in self._seen.values():
            if 0 <= spike.step - seen.lost_step <= _RECENT:
                self.scene.report(
                    "loss-spike",
                    "optimizer-state-lost",
                    "the optimizer lost its state right before the loss leaped: its moments began "
                    "anew, while the weights went on",
                    "save optimizer.state_dict() beside the weights, and load both on a resume",
                    step=spike.step,
                    phase="optimizer",
                    where=seen.lost_where,
                    evidence={**evidence, "lost_at": seen.lost_step, "lost_steps": seen.lost_steps},
                )
                return True
        return False

    def _blame_rate(self, spike: Spike, evidence: dict[str, Any]) -> bool:
        for key, seen in self._seen.items():
            if 0 <= spike.step - seen.raised_step <= _RECENT:
                before, after = seen.raised
                source, stepped = self._rules.get(key, ("", ""))
                is_new = after > seen.was_highest
                self.scene.report(
                    "loss-spike",
                    "lr-restart",
                    "the learning rate was raised at once right before the loss leaped"
                    + (", to more than this run had before" if is_new else ""),
                    "restart at no more than the first peak, and warm up to it",
                    severity=Severity.WARNING if is_new else Severity.INFO,
                    step=spike.step,
                    phase="optimizer",
                    where=source or stepped,
                    evidence={**evidence, "lr_before": before, "lr_after": after}
                    | {"raised_at": seen.raised_step},
                )
                return True
        return False


def _measure_scales(call: Call) -> dict[str, float]:
    """Return the root mean square of each tensor of numbers that a call was given."""
    return {
        name: float(torch.linalg.vector_norm(value.detach().float())) / math.sqrt(value.numel())
        for name, value in call.name_tensors().items()
        if value.is_floating_point() and value.numel() and not value.requires_grad
    }


def _has_moments(optimizer: Optimizer) -> bool:
    """Return whether an optimizer remembers anything of gradients before."""
    for held in optimizer.state.values():  # the first one stands for all
        return not _MOMENTS.isdisjoint(held)
    return False
