"""Loops watched as `tsx.init` watches them, and runs of the real trainer: what was found in them.

Nothing is recorded on disk; events stay in a list.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from recipes.loader import expand, get_recipe, resolve
from registry.events import Event, Finding, Severity
from registry.sinks import ListSink
from tests.faults import plant as plants
from tests.faults.embedded import train_planted
from tests.faults.plant import Healthy, PlainRun, Plant
from tsx.config import decode
from tsx.diagnostics.engine import Engine
from tsx.recording.lines import RunLines
from tsx.recording.watching import Watching
from tsx.trainer.loop import train

SMOKE_OVERRIDES = ("data.source=demo", "data.demo_series=32", "perf.mfu_peak_tflops=1")


class WatchedLines:
    """What `tsx.init` gives a loop, without a folder, a registry or a thread.

    Args:
        every: steps from one look to the next, None for as many as keep the cost low. Steps of a
            real size are long enough to be looked at nearly always; those of plants are not.
    """

    def __init__(self, every: int | None = 1) -> None:
        self._every = every
        self.sink = ListSink()
        self.told: list[str] = []  # on stderr
        self.lines = RunLines(self.sink, 0, self.told.append)
        self.watching = Watching(self.lines, self.told.append)

    def watch(self, model: nn.Module, optimizer: Optimizer, **declared: Any) -> None:
        self.watching.watch(model, optimizer, every=self._every, **declared)

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.watching.compute(fn, *args)

    def log(self, values: dict[str, float], step: int) -> None:
        self.lines.log(values, step, 0.0)
        self.lines.telemetry.step = step
        if self.watching.hear is not None:
            self.watching.hear(values, step)

    @property
    def engine(self) -> Engine:
        """The host of the detectors of the first model that is watched."""
        return self.watching._watches[0].engine

    def close(self) -> None:
        """End the run."""
        self.watching.close(is_whole=True)

    @property
    def findings(self) -> list[Finding]:
        """What was found until now."""
        return list_findings(self.sink.events)


class WatchedRun(PlainRun):
    """A run that sees what PlainRun sees, and is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = WatchedLines()

    def watch(self, model: nn.Module, optimizer: Optimizer, **declared: Any) -> None:
        self.watched.watch(model, optimizer, **declared)

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        plain = super().compute
        return self.watched.compute(lambda *given: plain(fn, *given), *args)

    def log(self, values: dict[str, float], step: int) -> None:
        super().log(values, step)
        self.watched.log(values, step)

    def close(self) -> None:
        """End the run."""
        self.watched.close()

    @property
    def sink(self) -> ListSink:
        """Where its events are."""
        return self.watched.sink

    @property
    def told(self) -> list[str]:
        """What was said on stderr."""
        return self.watched.told

    @property
    def findings(self) -> list[Finding]:
        """What was found until now."""
        return self.watched.findings


def play_watched(plant: Plant | Healthy, *, steps: int | None = None) -> list[Finding]:
    """Play a loop in a watched run and return all that was found."""
    run = WatchedRun()
    try:
        plants.play(plant, steps=steps, run=run)
    finally:
        run.close()
    return run.findings


def train_watched(plant: Plant) -> list[Finding]:
    """Run an embedded plant through the real trainer and return all that was found."""
    sink = ListSink()
    promised = (RuntimeError,) if plant.raises else ()
    with (
        tempfile.TemporaryDirectory() as folder,
        plants.seeded(),
        warnings.catch_warnings(),
        contextlib.suppress(*promised),
    ):
        if plant.warns:
            warnings.filterwarnings("always", message=plant.warns)
        train_planted(plant, Path(folder), sink)
    return list_findings(sink.events)


def train_recipe_watched(name: str, home: Path) -> list[Finding]:
    """Run a shipped recipe, shrunk, through the real trainer and return all that was found.

    Args:
        name: of the recipe; of a sweep, every run.
        home: where the demo corpus is generated, once for all recipes.
    """
    plan = resolve(get_recipe(name), (), SMOKE_OVERRIDES, True)
    sink = ListSink()
    for _, raw in expand(plan):
        with tempfile.TemporaryDirectory() as folder, plants.seeded():
            train(decode(raw), sink, folder=Path(folder), home=home, stop=threading.Event())
    return list_findings(sink.events)


def list_findings(events: list[Event]) -> list[Finding]:
    """Return the findings among events, in their order."""
    return [event for event in events if isinstance(event, Finding)]


def list_alarms(findings: list[Finding]) -> list[Finding]:
    """Return those of severity warning or above."""
    return [finding for finding in findings if finding.severity is not Severity.INFO]
