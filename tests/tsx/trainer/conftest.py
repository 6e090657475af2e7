"""A corpus and a config small enough that a run takes a fraction of a second."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from registry.events import Artifact, Event, Finding, Metrics, RunPrepared, RunResumed, Severity
from tsx.config import RunConfig, decode
from tsx.trainer.loop import Outcome, train


class ListSink:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.watcher: StopAtStep | None = None

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if self.watcher is not None:
            self.watcher.see(event)

    def close(self) -> None:
        pass

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def curve(self, key: str) -> dict[int, float]:
        return {m.step: m.values[key] for m in self.of(Metrics) if key in m.values}

    @property
    def prepared(self) -> RunPrepared:
        return self.of(RunPrepared)[-1]

    @property
    def resumed(self) -> list[RunResumed]:
        return self.of(RunResumed)

    @property
    def findings(self) -> list[Finding]:
        """What was found, without remarks on experts that so few tokens leave idle."""
        return [
            found
            for found in self.all_findings
            if (found.kind, found.severity) != ("frozen-param", Severity.INFO)
        ]

    @property
    def all_findings(self) -> list[Finding]:
        return self.of(Finding)

    @property
    def artifacts(self) -> list[Artifact]:
        return self.of(Artifact)


class StopAfter(threading.Event):
    """Asks to stop once it was looked at a number of times."""

    reason = "SIGTERM"

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


class StopAtStep(threading.Event):
    """Asks to stop once a step was logged; `Lab.run` tells it what is."""

    reason = "SIGTERM"

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def see(self, event: Event) -> None:
        if isinstance(event, Metrics) and "train/loss" in event.values and event.step == self.step:
            self.set()


@dataclass
class Ran:
    """One finished run."""

    outcome: Outcome
    sink: ListSink
    folder: Path
    config: RunConfig


@dataclass
class Lab:
    """Runs tiny trainings in a folder of its own."""

    root: Path
    path: Path
    base: dict[str, dict[str, Any]] = field(default_factory=dict)

    def config(self, **changes: Any) -> RunConfig:
        """Return the tiny config with `section__key=value` changed."""
        raw = {section: dict(keys) for section, keys in self.base.items()}
        for key, value in changes.items():
            section, _, name = key.partition("__")
            raw.setdefault(section, {})[name] = value
        return decode(raw)

    def sink(self) -> ListSink:
        """Return a sink that keeps every event."""
        return ListSink()

    def stop_after(self, looks: int) -> StopAfter:
        """Return a stop request that comes after a number of looks at it."""
        return StopAfter(looks)

    def stop_after_step(self, step: int) -> StopAtStep:
        """Return a stop request that comes once that many steps are logged (log_every=1)."""
        return StopAtStep(step)

    def path_of_others(self) -> Path:
        """Return series of another kind, never trained on."""
        path = self.root / "others.jsonl"
        write_series(path, count=5, seed=9)
        return path

    def run(
        self,
        name: str = "run",
        *,
        stop: Any = None,
        resume: bool = False,
        sink: ListSink | None = None,
        **changes: Any,
    ) -> Ran:
        """Train in the folder of that name."""
        config, sink = self.config(**changes), sink or ListSink()
        sink.watcher = stop if isinstance(stop, StopAtStep) else None
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        outcome = train(
            config,
            sink,
            folder=folder,
            home=self.root / "home",
            stop=stop or threading.Event(),
            resume=resume,
        )
        return Ran(outcome, sink, folder, config)


def write_series(path: Path, *, count: int = 12, points: int = 90, seed: int = 0) -> None:
    """Write a data set of noisy waves, lengths unequal so that some windows are padded."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for index in range(count):
            length = points if index % 3 else 20
            time = np.arange(length)
            wave = np.sin(time / (3 + index % 4)) + 0.1 * rng.standard_normal(length)
            file.write(json.dumps({"sequence": wave.tolist()}) + "\n")


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices this small are slower on two threads, and far slower on cores that are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    path = tmp_path / "series.jsonl"
    write_series(path)
    base: dict[str, dict[str, Any]] = {
        "data": {"path": str(path), "context_length": 32, "stride": 16, "val_split": 0.2},
        "model": {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "num_experts": 2,
            "top_k": 1,
            "horizons": [1, 8],
        },
        "train": {"steps": 6, "batch_size": 4, "log_every": 1, "device": "cpu"},
        "eval": {"every": 0},
        "perf": {"mfu_peak_tflops": 1.0, "sample_every_s": 0.0},
    }
    return Lab(tmp_path, path, base)
