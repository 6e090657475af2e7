"""Runs with curves of one's own, recorded in a registry of this test's home."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from registry.connection import find_url
from registry.events import Event, Metrics, RunEnded, RunPrepared, RunResumed, RunStarted, Status
from registry.queries import Reader
from registry.store import Recorder
from registry.views import FindingRow
from tsx.config import decode, to_plain
from tsx.curves.findings import list_curve_findings

START = 1_700_000_000.0
SMALL = {"model": {"num_layers": 2, "num_experts": 4, "top_k": 2}, "optim": {"lr": 1e-3}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the home that `record` writes to."""
    return tmp_path / "tsx-home"


@pytest.fixture
def record(home: Path) -> Callable[..., str]:
    """Record a run: key to values from step 1 on, or to (step, value) pairs; return its id."""

    def emit(
        run_id: str,
        curves: dict[str, Sequence[Any]],
        *,
        config: dict[str, Any] | None = None,
        raw_config: dict[str, Any] | None = None,
        events: Sequence[Event] = (),
        status: Status = Status.COMPLETED,
        resume: tuple[int, dict[str, Sequence[Any]]] | None = None,
        **fields: Any,
    ) -> str:
        folder = home / "runs" / run_id
        folder.mkdir(parents=True)
        asked = config or {}
        sections = {name: SMALL.get(name, {}) | asked.get(name, {}) for name in SMALL | asked}
        plain = to_plain(decode(sections)) if raw_config is None else raw_config
        last = max(step for _, step in _list_points(curves))
        fields = {"recipe": "sanity", "steps": last, "host": "box", "name": run_id} | fields
        recorder = Recorder(folder, find_url(home))
        recorder.emit(RunStarted(time=START, run_id=run_id, config=plain, **fields))
        facts = {"device": "cpu", "device_name": "CPU", "precision": "fp32"}
        facts |= {"data_source": "demo", "data_fingerprint": "f00d"}
        recorder.emit(RunPrepared(time=START + 1, pid=1, **facts))
        _log(recorder, curves)
        if resume is not None:
            recorder.emit(RunResumed(time=START + 1e6, from_step=resume[0], steps=last))
            _log(recorder, resume[1], start=START + 1e6)
        for event in events:
            recorder.emit(event)
        recorder.emit(RunEnded(time=START + 2e6, step=last, status=status))
        recorder.close()
        return run_id

    return emit


@pytest.fixture
def reader(home: Path) -> Iterator[Reader]:
    """Return a reader of that registry."""
    with Reader.open(find_url(home)) as opened:
        yield opened


@pytest.fixture
def find(record: Callable[..., str], reader: Reader) -> Callable[..., list[FindingRow]]:
    """Record one run and return what its curves tell."""

    def look(curves: dict[str, Sequence[Any]], run_id: str = "aaaa0001", **rest: Any) -> Any:
        record(run_id, curves, **rest)
        return list_curve_findings(reader, reader.get_detail(run_id))

    return look


def _list_points(curves: dict[str, Sequence[Any]]) -> list[tuple[str, int]]:
    return [
        (key, each[0] if isinstance(each, tuple) else at)
        for key, values in curves.items()
        for at, each in enumerate(values, 1)
    ]


def _log(recorder: Recorder, curves: dict[str, Sequence[Any]], start: float = START) -> None:
    """Emit the points of all curves, a line a step."""
    lines: dict[int, dict[str, float]] = {}
    for key, values in curves.items():
        for at, each in enumerate(values, 1):
            step, value = each if isinstance(each, tuple) else (at, each)
            lines.setdefault(step, {})[key] = float(value)
    for step in sorted(lines):
        recorder.emit(Metrics(time=start + 2 + step, step=step, values=lines[step]))
