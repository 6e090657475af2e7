"""Running one command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from registry.connection import find_url
from registry.events import Metrics, RunEnded, RunPrepared, RunStarted, Status
from registry.store import Recorder
from tsx.cli.main import main
from tsx.config import decode, to_plain


class Done(NamedTuple):
    """What a command line left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def tsx(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `tsx WORDS...` and return its status, stdout and stderr."""

    def invoke(*words: str) -> Done:
        capsys.readouterr()
        status = main(list(words))
        captured = capsys.readouterr()
        return Done(int(status), captured.out, captured.err)

    return invoke


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Record a run in this test's home and return its folder."""

    def emit(run_id: str, name: str, curves: dict[str, list[float]], **fields: Any) -> Path:
        home = tmp_path / "tsx-home"
        folder = home / "runs" / run_id
        folder.mkdir(parents=True)
        ending = fields.pop("ending", {"status": Status.COMPLETED})
        extra = fields.pop("events", ())
        source = fields.pop("data_source", "demo")
        start = fields.pop("time", 1_700_000_000.0)
        config = to_plain(decode(fields.pop("config", {})))
        length = max((len(values) for values in curves.values()), default=0)
        fields = {"recipe": "sanity", "steps": length, "host": "box"} | fields
        recorder = Recorder(folder, find_url(home))
        recorder.emit(RunStarted(time=start, run_id=run_id, name=name, config=config, **fields))
        facts = {"device": "cpu", "device_name": "CPU", "precision": "fp32"}
        facts |= {"data_source": source, "data_fingerprint": source}
        recorder.emit(RunPrepared(time=start + 1, pid=1, **facts))
        for step in range(1, length + 1):
            values = {key: curve[step - 1] for key, curve in curves.items() if len(curve) >= step}
            recorder.emit(Metrics(time=start + 1 + step, step=step, values=values))
        for event in extra:
            recorder.emit(event)
        recorder.emit(RunEnded(time=start + 60, step=length, **ending))
        recorder.close()
        return folder

    return emit
