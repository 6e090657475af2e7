"""The loops that the cost of watching is measured on, watched and unwatched.

Two are a user's own (`benchmarks.plain_loops`), seen through `run.watch` and `run.compute`; two are
the trainer's steps on tsx's own model, with and without `diagnostics.watch`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from benchmarks.plain_loops import SIZES, PlainLoop, QuietRun, Size
from registry.sinks import ListSink
from tests.faults.watched import WatchedLines
from tsx.config import decode
from tsx.diagnostics.engine import Engine
from tsx.trainer import objective
from tsx.trainer.session import prepare
from tsx.trainer.step import get_step_metrics, take_step
from tsx.trainer.telemetry import Telemetry

LOG_EVERY = 10  # steps of the trainer


class Loop(Protocol):
    """A loop that takes steps, watched or not."""

    def step(self) -> None:
        """Take one."""

    def close(self) -> None:
        """End."""

    @property
    def engine(self) -> Engine:
        """The host of the detectors, where it is watched."""


class Case(NamedTuple):
    """A loop of a size.

    Attributes:
        name: as the tables have it.
        limit_ms: that watching may take of a step: 1.5 % of 15 ms, 0.5 % of 100 ms.
        steps: that are measured, after the first ones.
        make: makes it, watched or not.
        forward: owner and name of what is computed: forward pass and loss.
    """

    name: str
    limit_ms: float
    steps: int
    make: Callable[[bool], Loop]
    forward: tuple[Any, str]


class OwnLoop:
    """A plain loop, with `run.watch` or without."""

    def __init__(self, size: Size, *, is_watched: bool) -> None:
        self._run = WatchedLines(every=None) if is_watched else QuietRun()
        self._loop = PlainLoop(size, self._run)
        self.step = self._loop.step

    @property
    def engine(self) -> Engine:
        """The host of the detectors."""
        assert isinstance(self._run, WatchedLines)
        return self._run.engine

    def close(self) -> None:
        """End the run."""
        if isinstance(self._run, WatchedLines):
            self._run.close()


class TrainerLoop:
    """The steps and the lines of a recipe's run."""

    def __init__(self, sections: dict[str, Any], *, is_watched: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        raw = {**sections, "diagnostics": {"watch": is_watched}}
        place = Path(self._folder.name)
        telemetry = Telemetry(ListSink())
        self._session = prepare(decode(raw), telemetry, folder=place, home=place)
        self._session.diagnosis.start(self._session)

    @property
    def engine(self) -> Engine:
        """The host of the detectors."""
        watch = self._session.diagnosis._watch
        assert watch is not None
        return watch.engine

    def step(self) -> None:
        """Take one step, and log it where it is its turn."""
        report = take_step(self._session)
        if report.step % LOG_EVERY == 0:
            values = get_step_metrics(self._session, report)
            self._session.telemetry.metrics(report.step, values)
            self._session.diagnosis.log(values, report.step)

    def close(self) -> None:
        """End the run and remove its folder."""
        self._session.diagnosis.close(is_whole=False)
        self._folder.cleanup()


def list_cases() -> list[Case]:
    """Return every loop."""
    limits = {"15 ms": (0.015 * 15, 600), "100 ms": (0.005 * 100, 200)}
    trained = {
        "15 ms": write_sections(hidden_size=48, context_length=64, batch_size=6),
        "100 ms": write_sections(hidden_size=64, context_length=128, batch_size=24),
    }
    cases = [
        Case(
            f"a loop, {size.name}",
            *limits[size.name],
            lambda is_watched, size=size: OwnLoop(size, is_watched=is_watched),
            (PlainLoop, "measure"),
        )
        for size in SIZES
    ]
    for name, sections in trained.items():
        cases.append(
            Case(
                f"the trainer, {name}",
                *limits[name],
                lambda is_watched, raw=sections: TrainerLoop(raw, is_watched=is_watched),
                (objective, "compute_loss"),
            )
        )
    return cases


def write_sections(
    *, hidden_size: int, context_length: int, batch_size: int
) -> dict[str, dict[str, Any]]:
    """Return a config that trains for as long as anyone asks, and never scores or saves."""
    return {
        "data": {
            "source": "demo",
            "demo_series": 16,
            "context_length": context_length,
            "stride": context_length,
        },
        "model": {
            "hidden_size": hidden_size,
            "num_layers": 2,
            "num_heads": hidden_size // 16,
            "num_experts": 4,
            "top_k": 2,
            "d_ff": 4 * hidden_size,
        },
        "optim": {"warmup_steps": 100},
        "train": {
            "steps": 10_000,
            "batch_size": batch_size,
            "device": "cpu",
            "log_every": LOG_EVERY,
            "checkpoint_every": 0,
        },
        "eval": {"every": 0},
        "perf": {"mfu_peak_tflops": 1.0, "sample_every_s": 0.0},
    }
