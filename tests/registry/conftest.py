"""A home of its own for every test, and runs to put into it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry.connection import find_url
from registry.events import Metrics, RunEnded, RunStarted, Status
from registry.sinks import JournalSink

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a fresh TSX_HOME; TSX_REGISTRY is unset."""
    folder = tmp_path / "tsx-home"
    monkeypatch.setenv("TSX_HOME", str(folder))
    monkeypatch.delenv("TSX_REGISTRY", raising=False)
    return folder


@pytest.fixture
def url(home):
    """Return the URL of the home's registry."""
    return find_url(home)


@pytest.fixture
def write_run(home):
    """Return a function that writes a journal, without a database, and returns its folder."""

    def write(run_id="aaaa0000", *, steps=3, ended=True, created=1000.0, events=(), **started):
        folder = home / "runs" / run_id
        sink = JournalSink(folder)
        facts = {"name": f"run-{run_id}", "steps": steps, "host": socket.gethostname()}
        sink.emit(RunStarted(time=created, run_id=run_id, **{**facts, **started}))
        for step in range(1, steps + 1):
            values = {"train/loss": 1.0 / step, "train/lr": 1e-3}
            sink.emit(Metrics(time=created + step, step=step, values=values))
        for event in events:
            sink.emit(event)
        if ended:
            sink.emit(RunEnded(time=created + steps + 1, status=Status.COMPLETED, step=steps))
        sink.close()
        return folder

    return write


@pytest.fixture
def start_python():
    """Return a function that starts Python on a script; what is left is killed at the end."""
    started = []

    def start(script, *arguments, **options):
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def dead_pid():
    """Return the id of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def wait_until():
    """Return a function that waits for a condition, with a generous bound."""

    def wait(condition, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.01)

    return wait
