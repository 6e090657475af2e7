"""Which step a line of values belongs to: given, or one more than the last.

Safe from several threads and in signal handlers without a lock: lines that give no step get one of
their own each.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

from tsx.cli.output import clean
from tsx.recording.lines import RunLines

MAX_STEP = 2**63 - 1  # what a registry can hold


class StepCount:
    """Counts the steps of one run.

    Args:
        step: the one before the first.
        lines: says which step was last, and tells of odd ones.
    """

    def __init__(self, step: int, lines: RunLines) -> None:
        self._lines = lines
        self._next = itertools.count(step + 1)

    def take_next(self) -> int:
        """Return the step of a line that gives none: one more than the last."""
        number, last = next(self._next), self._lines.telemetry.step
        if number <= last:  # steps were given meanwhile
            self._next = itertools.count(last + 1)
            number = next(self._next)
        return min(number, MAX_STEP)

    def explain(self, step: Any) -> int:
        """Return a step that is no plain int, too large or goes back; told once."""
        try:
            number = int(step) if isinstance(step, float) and step.is_integer() else None
            number = operator.index(step) if number is None else number
        except Exception:  # whatever was given, the values are kept
            number = None
        if number is None or not -MAX_STEP <= number <= MAX_STEP:
            number = self.take_next()
            cause = f"step={clean(repr(step), limit=60)} is no whole number below 2**63"
            fix = "log(values, step=12), or leave the step out"
            self._lines.warn("log-step", "type", f"{cause}; taken as {number}", fix)
        elif number < self._lines.step:
            cause = f"step {number} was logged after step {self._lines.step}; it is kept"
            fix = "a run that goes on from a checkpoint: tsx.init(resume=RUN, step=STEP)"
            self._lines.warn("log-step", "back", cause, fix)
            self._next = itertools.count(number + 1)
        return number
