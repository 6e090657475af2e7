"""The parts of a watch, timed apart in a running loop and divided by how often they come.

What is always on has two tempos. Bookkeeping and looks come by the step or by the time, so their
share of the steps of a window is what they cost. Traced calls come at doubling distances, so they
are divided by the steps of a whole run, `RUN_STEPS`. The first steps, in which nearly everything is
looked at and much is traced, happen once a run and are told apart.

The sums are of few parts, each timed as a whole; with details each detector has a timer of its own,
and what the many timers cost is in the parts around them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.part_times import Ledger, Part
from benchmarks.watched_loops import Case
from tsx.diagnostics.detector import Detector
from tsx.diagnostics.engine import Engine
from tsx.diagnostics.nonfinite.grad_guard import GradGuard
from tsx.diagnostics.nonfinite.grad_norm import GradNorm
from tsx.diagnostics.nonfinite.postmortem import Postmortem
from tsx.diagnostics.reports import Reports
from tsx.diagnostics.resources.memory import KeptGraphs
from tsx.diagnostics.roster import DETECTORS
from tsx.diagnostics.tracing.cadence import Tracer
from tsx.diagnostics.tracing.tape import Tape
from tsx.diagnostics.watch import Watch
from tsx.recording.watching import Watching
from tsx.trainer.diagnosing import Diagnosis

START_STEPS = 64  # of a run, told apart
RUN_STEPS = 10_000  # that traced calls are divided by
TRACE = "traced call"  # label of all that comes at doubling distances begins so
TRACED = f"{TRACE}: engine"
# Detectors' methods by how often they are asked.
WHEN = {
    "call": ("before_call", "after_call", "end_step", "saw_loss", "saw_values", "raised"),
    "look": ("begin_look", "before_step", "after_step"),
    TRACE: ("saw_function", "saw_op", "saw_module", "after_trace"),
}
DOUBLING = {(KeptGraphs, "before_call")}  # looks for graphs after looks 8, 16, 32 ...


@dataclass(slots=True)
class Row:
    """What one part costs.

    Attributes:
        label: of the part.
        calls_per_step: how often it comes in the window.
        ms: of one call.
        ms_per_step: divided by how often it comes.
    """

    label: str
    calls_per_step: float
    ms: float
    ms_per_step: float


@dataclass(slots=True)
class Costs:
    """What a watch costs one loop.

    Attributes:
        step_ms: of the loop without it: the whole less the parts.
        rows: what comes all the time.
        start_s: of the first steps, all parts together.
        parts_ms: of all rows, per step.
    """

    step_ms: float
    rows: list[Row]
    start_s: float
    parts_ms: float = field(init=False)

    def __post_init__(self) -> None:
        self.parts_ms = sum(row.ms_per_step for row in self.rows)

    @property
    def share(self) -> float:
        """Return what part of a step they take."""
        return self.parts_ms / self.step_ms


PARTS = (  # whatever a step goes through
    (Watching, "compute", "run.compute"),
    (Diagnosis, "compute", "run.compute"),
    (Diagnosis, "saw_loss", "run.compute"),
    (Diagnosis, "log", "lines"),
    (Engine, "log", "lines"),
    (Watch, "_before", "hooks of the optimizer"),
    (Watch, "_after", "hooks of the optimizer"),
    (Tracer, "_run_traced", TRACED),
)
DETAILS = (  # what these spend it on
    (Postmortem, "begin_call", "what it takes to run a call again"),
    (Postmortem, "end_step", "what it takes to run a call again"),
    (Engine, "compute", "engine"),
    (Engine, "begin_look", "engine"),
    (Engine, "before_step", "engine"),
    (Engine, "after_step", "engine"),
    (Engine, "end_step", "engine"),
    (Reports, "flush", "engine"),
    (GradGuard, "sees_bad", "guard of gradients"),
    (Tape, "saw_function", f"{TRACE}: tape"),
    (Tape, "saw_op", f"{TRACE}: tape"),
)


def time_watch(ledger: Ledger, *, is_detailed: bool) -> None:
    """Time every part from here on: of `run.watch`, `run.compute` and the trainer's own."""
    for owner, name, label in (*PARTS, *(DETAILS if is_detailed else ())):
        ledger.time_part(owner, name, label)
    ledger.time_part(Tracer, "_rehearse", TRACED, is_opaque=True)
    for kind in (GradNorm, *DETECTORS):
        for when, methods in WHEN.items():
            for method in methods:
                tempo = TRACE if (kind, method) in DOUBLING else when
                is_own = getattr(kind, method) is not getattr(Detector, method)
                if is_own and (is_detailed or tempo == TRACE):
                    label = f"{tempo}: {kind.name}"
                    ledger.time_part(kind, method, label, is_opaque=True)


def time_phases(ledger: Ledger, forward: tuple[Any, str], engine: Callable[[], Engine]) -> None:
    """Time what a loop does itself, to see what tracing and gradient hooks add to it.

    Args:
        ledger: of the loop.
        forward: class or module, and name of what is computed.
        engine: returns the engine, once there is one.
    """
    ledger.time_phase(*forward, f"{TRACE}: forward", lambda: ledger.is_within(TRACED))
    ledger.time_phase(Tensor, "backward", "look: backward", lambda: engine().is_looking)


def sum_up(parts: dict[str, Part], steps: int, loop_s: float, start: dict[str, Part]) -> Costs:
    """Return what parts cost, divided by how often they come.

    Args:
        parts: of the window.
        steps: of the window.
        loop_s: that the window took, parts included.
        start: the parts of the first steps.
    """
    traced = parts.get(TRACED, Part()).calls
    of_run = int(math.log2(RUN_STEPS / START_STEPS)) / (RUN_STEPS - START_STEPS)
    rows = []
    for label, part in sorted(parts.items()):
        per_step = 1000 * part.seconds / steps
        if label.startswith(TRACE) and traced:
            per_step *= of_run * steps / traced
        rows.append(Row(label, part.calls / steps, 1000 * part.seconds / part.calls, per_step))
    spent_s = sum(part.seconds for part in parts.values())
    start_s = sum(part.seconds for part in start.values())
    return Costs(1000 * (loop_s - spent_s) / steps, rows, start_s)


def measure_parts(case: Case, *, is_detailed: bool = False) -> Costs:
    """Return what a watch costs a loop, after its first steps."""
    with Ledger() as ledger:
        time_watch(ledger, is_detailed=is_detailed)
        time_phases(ledger, case.forward, lambda: loop.engine)
        loop = case.make(True)
        for _ in range(START_STEPS):
            loop.step()
        start = ledger.take()
        began = time.perf_counter()
        for _ in range(case.steps):
            loop.step()
        loop_s = time.perf_counter() - began
        costs = sum_up(ledger.take(), case.steps, loop_s, start)
        loop.close()
    return costs
