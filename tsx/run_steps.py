"""Which step a line of values belongs to: given, or one more than the last.

Safe from several threads and in signal handlers without a lock: every line gets a step of its own.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

from tsx.cli.output import clean
from tsx.run_lines import RunLines

_INT64 = range(-(2**63), 2**63)


class StepCount:
    """Counts the steps of one run.

    Args:
        step: the one before the first.
        lines: says which step was last, and tells of odd ones.
    """

    def __init__(self, step: int, lines: RunLines) -> None:
        self._lines = lines
        self._next = itertools.count(step + 1)

    def take(self, step: Any) -> int:
        """Return the step of a line; what is no whole number counts as none given."""
        if step is None:
            return next(self._next)
        if type(step) is not int or step < self._lines.telemetry.step or step not in _INT64:
            step = self._explain(step)
        self._next = itertools.count(step + 1)
        return step  # type: ignore[no-any-return]

    def _explain(self, step: Any) -> int:
        """Return a step that is no plain int or goes back, told once."""
        try:
            number = int(step) if isinstance(step, float) and step.is_integer() else None
            number = operator.index(step) if number is None else number
        except Exception:  # whatever was given, the values are kept
            number = None
        if number is None or number not in _INT64:
            number = next(self._next)
            cause = f"step={clean(repr(step), limit=60)} is no whole number"
            fix = "log(values, step=12), or leave the step out"
            self._lines.warn("log-step", "type", f"{cause}; taken as {number}", fix)
        elif number < self._lines.step:
            cause = f"step {number} was logged after step {self._lines.step}; it is kept"
            fix = "a run that goes on from a checkpoint: tsx.init(resume=RUN, step=STEP)"
            self._lines.warn("log-step", "back", cause, fix)
        return number
