"""What a person sees while runs train: plain lines, and on a terminal a progress bar below them.

Lines are data and go to stdout; headers, findings and endings are talk and go to stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from registry.events import (
    Artifact,
    Event,
    Finding,
    Metrics,
    RunPrepared,
    RunResumed,
    Severity,
    Status,
)
from tsx.cli import output
from tsx.cli.lines import closing_line, duration, finding_line, list_lines
from tsx.config import RunConfig
from tsx.launch.exit_reason import Ending

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class PlainView:
    """Prints every line as it is recorded; the same on a pipe, in a log and in a test."""

    def __init__(self, config: RunConfig | None = None) -> None:
        self._config = config
        self._prepared: RunPrepared | None = None
        self._peak_gib: float | None = None
        self._began = 0.0
        self._resumable = False  # is there a checkpoint to go on from
        self._has_dump = False  # was a step kept that can be run again
        self._told: set[str] = set()  # findings: one that comes again is counted, not shown

    def begin(self, run_id: str, name: str, config: RunConfig) -> None:
        """Say which run starts."""
        self._prepared, self._peak_gib, self._began = None, None, time.monotonic()
        self._config, self._resumable, self._has_dump = config, False, False
        self._told.clear()
        seed, steps = config.train.seed, config.train.steps
        work = f"{steps} steps" if steps else "scored as it is"
        _talk(f"run {run_id} {name!r}: {work}, seed {seed}; starting torch ...")

    def see(self, event: Event) -> None:
        """Show one event."""
        match event:
            case RunPrepared():
                self._prepared = event
                self._notes(event)
            case Metrics():
                self._peak_gib = event.values.get("sys/peak_mem_gib", self._peak_gib)
            case Finding():
                self._tell(event)
            case RunResumed():
                self._resumable = True
            case Artifact(kind="checkpoint"):
                self._resumable = True
                _talk(f"checkpoint step={event.step} {event.path}")
            case Artifact(kind="batch"):
                self._has_dump = True
        perf = self._config is not None and self._config.perf.log_metrics
        for line in list_lines(event, perf=perf):
            _data(line)

    def _tell(self, finding: Finding) -> None:
        """Show a finding, the first time."""
        line = finding_line(finding)
        if line in self._told:
            return
        self._told.add(line)
        if finding.severity is Severity.INFO:
            _talk(line)
        else:
            _talk(line, style="warning")

    def tick(self) -> None:
        """Push what was printed, so that a pipe or a log has each line as it comes."""
        with _unheard():
            output.flush()

    def finish(self, run_id: str, ending: Ending) -> None:
        """Print the closing line and how the run ended."""
        if self._prepared is not None:
            _data(closing_line(self._prepared, self._peak_gib))
        reason = f": {ending.reason}" if ending.reason else ""
        took = duration(time.monotonic() - self._began)
        good = ending.status is Status.COMPLETED
        _talk(
            f"run {run_id} {ending.status} in {took}{reason}", style="good" if good else "warning"
        )
        replay = f", tsx replay {run_id}" if self._has_dump else ""
        _talk(f"next: tsx show {run_id}{replay}{self._offer_resume(run_id, good=good)}")

    def _offer_resume(self, run_id: str, *, good: bool) -> str:
        """Return how the run can go on: one that was cut short, or one that took no step yet."""
        untrained = self._config is not None and not self._config.train.steps
        if not self._resumable or (good and not untrained):
            return ""
        return f", tsx resume {run_id}{' --set train.steps=1000' if good else ''}"

    def _notes(self, event: RunPrepared) -> None:
        """Say what a default decided."""
        if isinstance(notice := event.data.get("notice"), str):
            _talk(notice)
        if self._config is not None and not self._config.train.steps:
            return
        default = self._config is not None and self._config.optim.warmup_steps is None
        why = " (default: 10,000 or a tenth of the run, whichever is less)" if default else ""
        _talk(f"warm-up: {event.warmup_steps} steps{why}")


class LiveView(PlainView):
    """PlainView with a progress bar and an ETA under the lines; for terminals."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, run_id: str, name: str, config: RunConfig) -> None:
        """Say which run starts and open its bar; one without steps has none."""
        super().begin(run_id, name, config)
        if not config.train.steps:
            return
        self._progress = make_progress()
        self._task = self._progress.add_task(output.clean(name), total=config.train.steps, loss="")
        self._progress.start()

    def see(self, event: Event) -> None:
        """Show one event and move the bar."""
        super().see(event)
        if self._progress is None or self._task is None or not isinstance(event, Metrics):
            return
        if "train/loss" in event.values:
            loss = f"loss {event.values['train/loss']:.4f}"
            self._progress.update(self._task, completed=event.step, loss=loss)

    def finish(self, run_id: str, ending: Ending) -> None:
        """Close the bar and print how the run ended."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        super().finish(run_id, ending)


@contextmanager
def _unheard() -> Iterator[None]:
    """Go on where nobody reads any more or a log's disk is full: the training goes on too."""
    try:
        yield
    except OSError:
        output.abandon_broken()


def _data(text: str) -> None:
    """Write a line to stdout, if anybody reads it."""
    with _unheard():
        output.data(text)


def _talk(text: str, *, style: output.Style = "") -> None:
    """Write a line to stderr, if anybody reads it."""
    with _unheard():
        output.talk(text, style=style)


def make_view() -> PlainView:
    """Return the view that fits where the output goes."""
    return LiveView() if sys.stdout.isatty() and sys.stderr.isatty() else PlainView()


def make_progress() -> Progress:
    """Return rich's progress bar: name, bar, step of steps, loss, elapsed and remaining time."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        transient=True,
    )
