"""Intervals that never fire: what should come every so many steps, and has not come at all.

The user declares what is due (`run.watch(..., intervals={"val/loss": 100}, steps=1000)`); the tests
for multiples in the loop's own source say where. Without a declaration only a run that logged
nothing is told of, where a test of its loop is longer than the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.tracing.loop_source import Guard, list_frames, list_guards

_ENOUGH = 2  # intervals without a sign: the first may begin late
_MIN_STEPS = 2  # of a run that could have logged something
_SCORE = "val/loss"  # of a recipe's run
_LOOKS = 2  # calls whose source is read: the first may come from elsewhere

NEVER = Kind(
    "interval-never-fires",
    "Something that is due every so many steps has never come.",
    "Logs, scores and checkpoints never came: the interval was asked of a count of micro-steps "
    "that was odd whenever it was asked.",
    "The `interval`, the `steps` of the run, and the line that tests for a multiple.",
    "Count optimizer steps from 1, and test that count; choose an interval shorter than the run.",
)


class Intervals(Detector):
    """Waits for each declared key."""

    name = "intervals"
    is_constant = True
    kinds = (NEVER,)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._waiting = dict(scene.declared.intervals)
        self._scored: set[int] = set()  # steps of a recipe's run with a validation line
        self._first_step = scene.step
        self._guards: dict[str, Guard] = {}
        self._looked = 0
        self._has_logged = False
        self._steps: dict[int, int] = {}  # of each optimizer

    def before_call(self, call: Call) -> None:
        """Read the loop's own tests for multiples, once."""
        if self._looked < _LOOKS and call.is_training and self.scene.config is None:
            self._looked += 1
            self._guards |= {guard.where: guard for guard in list_guards(list_frames())}

    def saw_values(self, values: Mapping[str, Any], step: int) -> None:
        """Take what came off the list of what is due."""
        self._has_logged = True
        if self.scene.config is not None and _SCORE in values:
            self._scored.add(step)
        if self._waiting:
            for key in values:
                self._waiting.pop(key, None)

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Count, and tell of a key that is long overdue."""
        count = self._steps[id(optimizer)] = self._steps.get(id(optimizer), 0) + 1
        for key, every in [*self._waiting.items()] if self._waiting else ():
            # One step of grace: what this step logs is shown after the next one.
            if count > _ENOUGH * every:
                self._tell_declared(key, every, count)

    def close(self, *, is_whole: bool) -> None:
        """Tell of what did not come in all the run."""
        steps = max(self._steps.values(), default=0)
        if not is_whole or steps < _MIN_STEPS:
            return
        for key, every in [*self._waiting.items()]:
            self._tell_declared(key, every, steps)
        if self.scene.config is not None and self._scored:
            self._judge_scores(self.scene.config.eval.every)
        if not self._has_logged and not self.scene.declared.intervals:
            self._tell_silent(steps)

    def _judge_scores(self, every: int) -> None:
        """Tell of validation that came at the end alone; one without series never comes at all."""
        last = self.scene.step - 1
        due = {step for step in range(self._first_step, last + 1) if every and step % every == 0}
        if due and not due & self._scored:
            self._waiting[_SCORE] = every
            self._tell_declared(_SCORE, every, last)

    def _tell_declared(self, key: str, every: int, steps: int) -> None:
        """Report a key that has not come."""
        del self._waiting[key]
        guards = [guard for guard in self._guards.values() if guard.interval == every]
        guard = next((each for each in guards if key in each.body), guards[0] if guards else None)
        evidence = {"key": key, "interval": every, "steps": steps}
        if steps < every:
            self._report_longer(guard, evidence)
            return
        self.scene.report(
            "interval-never-fires",
            "odd-parity",
            f"{key} is due every {every} steps and never came: the count that is asked is never a "
            "multiple when it is asked",
            "ask a count of optimizer steps, from 1, once a step",
            phase="eval" if key.startswith(("val", "eval", "test")) else "optimizer",
            where=guard.where if guard else "",
            evidence=evidence,
        )

    def _tell_silent(self, steps: int) -> None:
        """Report a run that logged nothing, where a test of its loop says why."""
        longer = [
            guard
            for guard in self._guards.values()
            if guard.interval > steps and ".log(" in guard.body
        ]
        if longer:
            self._report_longer(longer[0], {"interval": longer[0].interval, "steps": steps})

    def _report_longer(self, guard: Guard | None, evidence: Mapping[str, Any]) -> None:
        self.scene.report(
            "interval-never-fires",
            "interval-longer-than-run",
            "the interval is longer than the run and never fires",
            "choose an interval that fits the run several times, or log at its end as well",
            phase="optimizer",
            where=guard.where if guard else "",
            evidence=evidence,
        )
