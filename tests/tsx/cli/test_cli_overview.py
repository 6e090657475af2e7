"""Bare `tsx`: what is running and what to type next."""

from __future__ import annotations

import os
import re
import time

import pytest

from registry.connection import find_home, find_url
from registry.events import Heartbeat, Metrics, RunEnded, RunPrepared, RunStarted, Status
from registry.liveness import RunLock
from registry.store import Recorder


@pytest.fixture
def record():
    """Return a function that records one run; a running one holds its lock until the test ends."""
    locks = []

    def make(run_id, status, name="a run", recipe="sanity"):
        home = find_home()
        folder = home / "runs" / run_id
        folder.mkdir(parents=True)
        now = time.time()
        recorder = Recorder(folder, find_url(home))
        facts = {"name": name, "recipe": recipe, "steps": 4, "pid": os.getpid()}
        recorder.emit(RunStarted(time=now, run_id=run_id, **facts))
        recorder.emit(
            RunPrepared(
                time=now, pid=os.getpid(), device="cpu", device_name="CPU", precision="fp32"
            )
        )
        recorder.emit(Metrics(time=now, step=2, values={"train/loss": 0.5}))
        if status == Status.RUNNING:
            locks.append(RunLock.acquire(folder))
            recorder.emit(Heartbeat(time=now, step=2))
        else:
            recorder.emit(RunEnded(time=now, status=status, step=2))
        recorder.close()

    yield make
    for lock in locks:
        lock.release()


def list_commands(text):
    """Return the commands offered, in order."""
    return re.findall(r"^  (tsx(?: \S+)*)  +\S", text, re.MULTILINE)


def test_empty_registry_shows_the_first_command_and_creates_nothing(tsx):
    done = tsx()
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("No runs yet.\n")
    assert list_commands(done.out) == ["tsx run sanity", "tsx recipes", "tsx --help"]
    assert not find_home().exists()


def test_running_runs_come_first(tsx, record):
    record("aaaaaaaa", Status.COMPLETED)
    record("bbbbbbbb", Status.RUNNING)
    out = tsx().out
    assert out.index("running") < out.index("bbbbbbbb") < out.index("ended last")
    assert out.index("ended last") < out.index("aaaaaaaa")
    assert list_commands(out)[0] == "tsx dashboard"
    assert "tsx run sanity" not in list_commands(out)


@pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.KILLED, Status.OOM, Status.FAILED])
def test_a_run_cut_short_can_be_resumed(tsx, record, status):
    record("aaaaaaaa", status)
    assert list_commands(tsx().out)[0] == "tsx resume aaaaaaaa"


def test_a_programs_own_run_is_not_for_tsx_to_resume(tsx, record):
    record("aaaaaaaa", Status.KILLED, recipe="")
    assert list_commands(tsx().out)[0] == "tsx show aaaaaaaa"
    done = tsx("resume", "aaaaaaaa", "--set", "train.nothing=1")
    assert done.status == 2
    assert "is a program's own" in done.err
    assert "tsx.init(resume='aaaaaaaa'" in done.err


def test_a_run_whose_process_is_gone_is_shown_as_killed(tsx, record):
    record("aaaaaaaa", Status.RUNNING)
    lock_free = find_home() / "runs" / "aaaaaaaa" / "lock"
    lock_free.unlink()
    (find_home() / "runs" / "aaaaaaaa" / "lock").touch()
    out = tsx().out
    assert "killed" in out
    assert list_commands(out)[0] == "tsx resume aaaaaaaa"


def test_two_ended_runs_can_be_compared(tsx, record):
    record("aaaaaaaa", Status.COMPLETED)
    record("bbbbbbbb", Status.COMPLETED)
    assert list_commands(tsx().out)[:2] == [
        "tsx show bbbbbbbb",
        "tsx compare aaaaaaaa bbbbbbbb",
    ]


def test_only_the_last_few_are_listed(tsx, record):
    for number in range(7):
        record(f"aaaaaaa{number}", Status.COMPLETED)
    listed = re.findall(r"^(aaaaaaa\d) ", tsx().out, re.MULTILINE)
    assert listed == [f"aaaaaaa{number}" for number in (6, 5, 4, 3, 2)]


def test_hostile_name_is_inert(tsx, record):
    record("aaaaaaaa", Status.COMPLETED, name="\x1b[2J[red]x")
    out = tsx().out
    assert "\x1b" not in out
    assert "[red]x" in out
