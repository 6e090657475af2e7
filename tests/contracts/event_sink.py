"""What every EventSink promises, held against every implementation."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from registry.connection import find_url
from registry.events import (
    Artifact,
    EventSink,
    Finding,
    Heartbeat,
    Metrics,
    Output,
    RunEnded,
    RunPrepared,
    RunResumed,
    RunStarted,
    Severity,
    Status,
)
from registry.journal import read_events
from registry.queries import Reader
from registry.recover import recover
from registry.sinks import JournalSink, ListSink
from registry.store import Recorder

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = "abcd1234"
EVENTS = (
    RunStarted(time=100.0, run_id=RUN, name="first", steps=3, tags=("a", "b"), config={"x": {}}),
    RunPrepared(time=101.0, pid=7, device="cpu", device_name="a cpu", precision="fp32"),
    Metrics(time=102.0, step=1, values={"train/loss": 2.0, "train/lr": 1e-3}),
    Heartbeat(time=103.0, step=1),
    Metrics(time=104.0, step=2, values={"train/loss": 1.0}),
    Finding(time=105.0, kind="spike", severity=Severity.WARNING, step=2, cause="too fast"),
    Artifact(time=106.0, kind="checkpoint", path="checkpoints/2", step=2, metadata={"best": True}),
    RunResumed(time=107.0, from_step=1, steps=3, command=("tsx", "resume", RUN)),
    Metrics(time=108.0, step=2, values={"train/loss": math.nan, "val/loss": -math.inf}),
    Output(time=109.0, stream="stdout", text="done\n"),
    RunEnded(time=110.0, status=Status.COMPLETED, step=3),
)


class Case(NamedTuple):
    """A sink, and where what it took can be found."""

    sink: EventSink
    folder: Path
    url: str  # of its database; empty where it has none
    source: str  # makes such a sink in another process; empty where it would be lost with it


@pytest.fixture(
    params=[
        "recorder on SQLite",
        pytest.param("recorder on PostgreSQL", marks=pytest.mark.all),
        "journal",
        "list",
    ]
)
def case(request, tmp_path):
    folder = tmp_path / "home" / "runs" / RUN
    if request.param == "list":
        made = Case(ListSink(), folder, "", "")
    elif request.param == "journal":
        made = Case(JournalSink(folder), folder, "", "JournalSink(folder)")
    else:
        postgresql = request.param.endswith("PostgreSQL")
        url = request.getfixturevalue("postgresql_url") if postgresql else find_url(tmp_path)
        made = Case(Recorder(folder, url), folder, url, f"Recorder(folder, {url!r})")
    yield made
    made.sink.close()


def read_back(case, folder=None):
    """Return the events that the sink's durable (or only) copy holds."""
    if isinstance(case.sink, ListSink):
        return case.sink.events
    return read_events((folder or case.folder) / "events.jsonl")


def same(left, right):
    """Compare events; NaN equals NaN."""
    return len(left) == len(right) and all(
        type(a) is type(b) and repr(a) == repr(b) for a, b in zip(left, right, strict=True)
    )


PREAMBLE = """
import mmap, os, random, sys, time
from pathlib import Path
from registry import store, tail, writer
from registry.events import Heartbeat, Metrics, RunEnded, RunStarted, Status
from registry.sinks import JournalSink
from registry.store import Recorder
def start(folder):
    sink = SINK
    sink.emit(RunStarted(time=1.0, run_id=folder.name, name="x", pid=os.getpid()))
    return sink
"""

# One process that has imported everything forks a run for every folder it is told, and kills it.
KILLING = """
store._PERIOD_S, store._SHORTEST_S = 0.005, 0.001  # many drains and folds in a short life
tail.SIZE = writer.SIZE = 16 * 1024
acknowledged = memoryview(mmap.mmap(-1, 4096)).cast("Q")
rng = random.Random(7)
for line in sys.stdin:
    acknowledged[0] = 0
    child = os.fork()
    if child == 0:
        sink = start(Path(line.strip()))
        for step in range(1, 10**9):
            sink.emit(Metrics(time=1.0, step=step, values={"a": step * 0.5, "b": 1.0}))
            if step % 97 == 0:
                sink.emit(Heartbeat(time=2.0, step=step))
            acknowledged[0] = step
    while not acknowledged[0]:
        time.sleep(0.0005)
    time.sleep(rng.uniform(0.0, 0.012))
    os.kill(child, 9)
    os.waitpid(child, 0)
    print(acknowledged[0], flush=True)
"""

FORKING = """
sink = start(Path(sys.argv[1]))
def log(who, steps):
    for step in steps:
        sink.emit(Metrics(time=1.0, step=step, values={who: float(step)}))
log("parent", range(100))
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        log(f"child{number}", range(200))
        if number == 0:
            sink.close()
            os._exit(0)
        sys.exit(0)  # through everything an interpreter does at its end
    children.append(child)
    log("parent", range(100 + 50 * number, 150 + 50 * number))
status = [os.waitpid(child, 0)[1] for child in children]
log("parent", range(250, 300))
sink.emit(RunEnded(time=2.0, status=Status.COMPLETED, step=300))
sink.close()
print(status, sink.lost)
"""


def run_python(case, body, *arguments, **options):
    """Start a script in which `start(folder)` makes the sink of the case and begins a run."""
    script = PREAMBLE.replace("SINK", case.source) + body
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


class TestEventSink:
    def test_every_kind_of_event_is_kept_in_order(self, case):
        for event in EVENTS:
            case.sink.emit(event)
        assert same(read_back(case), list(EVENTS))

    def test_an_event_is_safe_when_emit_returns(self, case):
        for number, event in enumerate(EVENTS, start=1):
            case.sink.emit(event)
            assert len(read_back(case)) == number

    def test_close_twice_then_emit(self, case):
        case.sink.emit(EVENTS[0])
        case.sink.close()
        case.sink.close()
        with pytest.raises(ValueError, match="closed"):
            case.sink.emit(EVENTS[2])
        assert len(read_back(case)) == 1

    def test_close_without_an_event(self, case):
        case.sink.close()
        assert read_back(case) == []

    def test_several_threads(self, case):
        case.sink.emit(EVENTS[0])

        def log(thread):
            for step in range(50):
                case.sink.emit(Metrics(time=1.0, step=step, values={f"t{thread}": float(step)}))

        threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = read_back(case)[1:]
        assert len(found) == 200
        for number in range(4):
            steps = [event.step for event in found if f"t{number}" in event.values]
            assert steps == list(range(50))

    def test_signal_handlers_that_emit(self, case):
        case.sink.emit(EVENTS[0])
        numbers = itertools.count()
        handled = []

        def handle(signum, frame):  # may itself be interrupted
            step = next(numbers)
            handled.append(step)
            case.sink.emit(Metrics(time=1.0, step=step, values={"handler": 1.0}))
            case.sink.emit(Heartbeat(time=1.0, step=step))

        before = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            steps = 0
            while steps < 2000 or len(handled) < 20:
                case.sink.emit(Metrics(time=1.0, step=steps, values={"main": float(steps)}))
                steps += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        found = read_back(case)[1:]
        metrics = [event for event in found if isinstance(event, Metrics)]
        assert [event.step for event in metrics if "main" in event.values] == list(range(steps))
        for found_steps in (
            [event.step for event in metrics if "handler" in event.values],
            [event.step for event in found if isinstance(event, Heartbeat)],
        ):
            assert sorted(found_steps) == list(range(len(handled)))
        assert case.sink.lost == 0

    @pytest.mark.slow
    def test_killed_at_any_moment(self, case):
        if not case.source:
            pytest.skip("it is in memory")
        home = case.folder.parent.parent
        killer = run_python(case, KILLING, stdin=subprocess.PIPE)
        steps = {}
        for number in range(50):
            folder = home / "runs" / f"aaaa{number:04d}"
            killer.stdin.write(f"{folder}\n")
            killer.stdin.flush()
            acknowledged = int(killer.stdout.readline())
            found = [event.step for event in read_back(case, folder) if type(event) is Metrics]
            assert acknowledged <= len(found) <= acknowledged + 1
            assert found == list(range(1, len(found) + 1))
            steps[folder.name] = found
        killer.stdin.close()
        assert killer.wait() == 0
        killer.stdout.close()
        if not case.url:
            return
        recover(home, case.url)
        with Reader.open(case.url) as reader:
            for name, expected in steps.items():
                assert reader.get_run(name).status == "killed"
                assert list(reader.get_series(name, "a").steps) == expected

    def test_a_forked_child_emits_and_ends_nothing(self, case):
        if not case.source:
            pytest.skip("a child has a list of its own")
        folder = case.folder.parent / "bbbb0000"
        parent = run_python(case, FORKING, folder)
        assert parent.stdout.read() == "[0, 0, 0] 0\n"
        assert parent.wait() == 0
        parent.stdout.close()
        found = read_back(case, folder)
        assert [type(event) for event in found].count(RunStarted) == 1
        assert type(found[-1]) is RunEnded
        metrics = [event for event in found if isinstance(event, Metrics)]
        for who in ("child0", "child1", "child2"):
            steps = [event.step for event in metrics if who in event.values]
            assert steps == list(range(200))
        steps = [event.step for event in metrics if "parent" in event.values]
        assert sorted(steps) == sorted([*range(100), *range(100, 250), *range(250, 300)])
        assert [path.name for path in folder.iterdir()] == ["events.jsonl"]
        if case.url:
            with Reader.open(case.url) as reader:
                assert reader.get_run("bbbb0000").status == "completed"
                assert len(reader.get_series("bbbb0000", "child2")) == 200

    def test_absurd_values_never_raise_after_the_first_event(self, case):
        case.sink.emit(EVENTS[0])
        cycle = {}
        cycle["itself"] = cycle
        absurd = (
            Metrics(time=1.0, step=1, values={"big": 10**400, "text": "x", "none": None}),
            Metrics(time=1.0, step=2**70, values={"a": 1.0}),
            Finding(time=1.0, kind="k", severity=Severity.INFO, evidence={"o": object()}),
            Finding(time=1.0, kind="k", severity=Severity.INFO, evidence=cycle),
            Finding(time=1.0, kind="\ud800", severity=Severity.INFO, evidence={1: {2, 3}}),
        )
        for event in absurd:
            case.sink.emit(event)
        case.sink.emit(EVENTS[2])
        case.sink.close()
        assert read_back(case)[-1] == EVENTS[2]
        assert case.sink.lost == 0

    def test_the_database_agrees(self, case):
        if not case.url:
            pytest.skip("no database")
        for event in EVENTS:
            case.sink.emit(event)
        case.sink.close()
        with Reader.open(case.url) as reader:
            run = reader.get_run("@last")
            detail = reader.get_detail(run.id)
            loss = reader.get_series(run.id, "train/loss")
        assert (run.id, run.name, run.status, run.step, run.steps) == (
            (RUN, "first", "completed", 3, 3)
        )
        assert (run.created, run.ended, run.tags) == (100.0, 110.0, ("a", "b"))
        assert list(loss.steps) == [1, 2]
        assert loss.values[0] == 2.0
        assert math.isnan(loss.values[1])
        assert list(loss.times) == [102.0, 108.0]
        assert detail.metrics["train/loss"].count == 2
        assert detail.metrics["train/loss"].nonfinite_count == 1
        assert detail.metrics["val/loss"].last == -math.inf
        assert [finding.cause for finding in detail.findings] == ["too fast"]
        assert detail.artifacts[0].metadata == {"best": True}
        assert [output.text for output in detail.output] == ["done\n"]
        assert detail.resumes == ((107.0, 1, 3),)
