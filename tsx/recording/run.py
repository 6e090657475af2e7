"""`Run`: what `tsx.init` returns, from its first value to its end.

Owns which step a value belongs to, and that a run ends once, however its program ends. After
`tsx.init` nothing here stops the training: what cannot be recorded is counted and told. Only a call
on a finished run raises, for it is a mistake of the program and nothing is lost yet.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from registry.events import EventSink, Metrics, RunEnded, Status
from registry.liveness import RunLock
from tsx.cli import output
from tsx.errors import ConfigError, RunClosed
from tsx.launch.exit_reason import EXIT_OF_STATUS, Ending
from tsx.recording.end import ProgramEnd, explain_exception
from tsx.recording.lines import RunLines
from tsx.recording.steps import MAX_STEP, StepCount
from tsx.recording.watchable import Watchable
from tsx.recording.watching import Watching
from tsx.trainer.telemetry import Pulse

if TYPE_CHECKING:
    pass

P = ParamSpec("P")
T = TypeVar("T")

_FLOAT, _STR = {float}, {str}


class RunFacts(NamedTuple):
    """What a run is called and where it is kept; see `Run`."""

    id: str
    name: str
    project: str
    config: dict[str, Any]
    folder: Path


class Run(Watchable):
    """A run that is being recorded; made by `tsx.init`. A context manager, safe in threads.

    Attributes:
        id: 8 characters, what `tsx show` takes.
        name: as given.
        project: as given.
        config: as recorded, plain data.
        folder: where its journal is.
        status: "running" until the run is finished.
    """

    def __init__(
        self, facts: RunFacts, sink: EventSink, lock: RunLock | None, *, step: int, quiet: bool
    ) -> None:
        self.id, self.name, self.project, self.config, self.folder = facts
        self.status = Status.RUNNING
        self._sink = sink
        self._emit = getattr(sink, "emit_metrics", sink.emit)
        self._lock = lock
        self._quiet = quiet
        self._pid = os.getpid()
        self._endings = itertools.count()
        self._is_finished = False
        self._lines = RunLines(sink, step, self.tell)
        self._steps = StepCount(step, self._lines)
        self._telemetry = self._lines.telemetry
        kept_in = None if lock is None else self.folder
        self._watching = Watching(self._lines, self.tell, kept_in)
        self._pulse = Pulse(self._telemetry, None, period_s=0.0)
        self._pulse.__enter__()
        self._program = ProgramEnd(self.end, lambda: self.step)
        self._program.install()
        _live.add(self)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(Ending(Status.COMPLETED, "", 0) if error is None else explain_exception(error))

    def __repr__(self) -> str:
        return f"<tsx.Run {self.id} {self.name!r} {self.status}, step {self.step}>"

    def _repr_html_(self) -> str:
        from tsx.recording.card import make_card

        return make_card(self.id, self.name, self.status, self.step, self._lines.last)

    @property
    def step(self) -> int:
        """The step of the last `log`; after a resume, the step the run goes on from."""
        return self._telemetry.step

    @property
    def dropped(self) -> int:
        """Values that were no numbers and are not recorded."""
        return self._lines.dropped

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended: `log` raises."""
        return self._is_finished

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record values of one step; they survive a kill of the process once this returns.

        Numbers, numpy scalars and 0-d tensors; nested dicts become "a/b"; `tsx.histogram(...)`.
        A tensor on a device is not waited for: it is copied, and read by a later call. Anything
        else is left out, counted in `dropped` and told once a key.

        Args:
            values: key to value.
            step: the optimizer step they belong to; default one more than the last. One that goes
                back is taken, and told once.

        Raises:
            RunClosed: the run is finished.
        """
        # Training waits for this path, with cold caches: few objects, few calls.
        telemetry, lines = self._telemetry, self._lines
        if step is None:
            step = self._steps.take_next()
        elif type(step) is not int or not telemetry.step <= step <= MAX_STEP:
            self._check_open()
            step = self._steps.explain(step)
        now = time.time()
        try:
            if (
                type(values) is dict
                and _FLOAT.issuperset(map(type, values.values()))
                and _STR.issuperset(map(type, values))
                and not (lines.held or lines.late.waiting)
            ):
                self._emit(Metrics(time=now, step=step, values=values))
                lines.last = values
            else:
                self._check_open()
                lines.log(values, step, now)
        except ValueError:  # the run is finished, by another thread perhaps
            self._check_open()
        telemetry.step, telemetry.last_emit = step, now
        if self._watching.hear is not None:
            self._watching.hear(values, step)

    def finish(self, status: str = "completed", reason: str = "") -> None:
        """End the run. A second call does nothing; nor does a call in a forked child.

        Args:
            status: completed, failed, diverged, oom, interrupted or killed.
            reason: one line.

        Raises:
            ConfigError: there is no such end.
        """
        if status not in list(EXIT_OF_STATUS):
            valid = ", ".join(EXIT_OF_STATUS)
            raise ConfigError(f"finish(status={status!r}): no such end; valid: {valid}")
        ended = Status(status)
        self.end(Ending(ended, output.clean(reason), EXIT_OF_STATUS[ended]))

    def end(self, ending: Ending) -> None:
        """Record an ending and let go of everything; only the first ending counts."""
        if self._is_finished or not self.is_owner:
            return
        self._watching.close(is_whole=ending.status is Status.COMPLETED)
        self._lines.finish()
        if next(self._endings) == 0:
            self.status = ending.status
            self._telemetry.emit(_make_end(ending, self.step))
        self._pulse.__exit__()
        self._sink.close()
        if self._lock is not None:
            self._lock.release()
        self._is_finished = True
        self._program.remove()
        for loss in _list_losses(self._sink, self._lines):
            self.tell(loss)

    @property
    def is_owner(self) -> bool:
        """Whether this process began the run, and is no fork of it."""
        return os.getpid() == self._pid

    def tell(self, text: str) -> None:
        """Say something on stderr, unless the run is quiet."""
        if not self._quiet:
            # A stderr that is closed, full or none at all is no reason to stop.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                output.talk(f"tsx: run {self.id} {text}")

    def warn(self, kind: str, cause: str, fix: str) -> None:
        """Tell of something that is wrong with the recording, on stderr and as a finding."""
        self._lines.warn(kind, "", cause, fix)

    def _check_open(self) -> None:
        """Raise RunClosed where the run is finished."""
        if self._is_finished:
            raise RunClosed(
                f"run {self.id} is finished ({self.status}); begin another with tsx.init(...), or "
                f"go on with this one: tsx.init(resume={self.id!r})"
            )


def _make_end(ending: Ending, step: int) -> RunEnded:
    """Return the last word of a run."""
    return RunEnded(
        time=time.time(),
        status=ending.status,
        reason=ending.reason,
        exit_code=int(ending.exit_code),
        step=step,
    )


def _list_losses(sink: EventSink, lines: RunLines) -> list[str]:
    """Return what is missing from the registry, a sentence each."""
    lost = getattr(sink, "lost", 0) + lines.telemetry.lost
    fault = getattr(sink, "store_error", None)
    found = []
    if lost:
        found.append(f"lost {lost} events that could not be written: {fault or 'no room'}")
    elif fault:
        found.append(f"is whole in its journal, but the registry lags behind: {fault}")
    if lines.dropped:
        found.append(f"left out {lines.dropped} values that were no numbers")
    return found


_live: weakref.WeakSet[Run] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Make every run of a forked child one that is only logged to."""
    for run in list(_live):
        run._lines.forget()
        run._watching.forget()
        run._program.remove()


os.register_at_fork(after_in_child=_forget_in_child)
