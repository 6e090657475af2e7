"""A run of this process that is gone after each test, programs of their own, and what they left."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from registry.connection import find_url
from registry.home import find_home
from registry.queries import Reader
from registry.recover import recover
from tsx import api

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _no_run_is_left(monkeypatch):
    """Finish the run that a test has begun; no test sees another's."""
    monkeypatch.delenv("TSX_QUIET", raising=False)
    monkeypatch.setattr(api, "_current", None)
    yield
    if api._current is not None:
        api._current.finish()


@pytest.fixture
def read():
    """Return a function that gives everything known of a run, its curves aside."""

    def detail(reference="@last"):
        home = find_home()
        url = find_url(home)
        recover(home, url)
        with Reader.open(url) as reader:
            return reader.get_detail(reader.get_run(reference).id)

    return detail


@pytest.fixture
def read_curve():
    """Return a function that gives (step, value) pairs of one curve."""

    def curve(key, reference="@last"):
        home = find_home()
        with Reader.open(find_url(home)) as reader:
            series = reader.get_series(reader.get_run(reference).id, key)
        return list(zip(series.steps, series.values, strict=True))

    return curve


@pytest.fixture
def list_runs():
    """Return a function that lists all runs, newest first."""

    def listed():
        home = find_home()
        recover(home, find_url(home))
        with Reader.open(find_url(home)) as reader:
            return reader.list_runs()

    return listed


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a program; what is left is killed at the end."""
    started = []

    def begin(text, *arguments, **environment):
        script = tmp_path / "train.py"
        script.write_text(textwrap.dedent(text))
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_program(start):
    """Return a function that runs a program to its end: status, stdout, stderr."""

    def run(text, *arguments, **environment):
        process = start(text, *arguments, **environment)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
