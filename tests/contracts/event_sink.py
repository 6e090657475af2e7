"""What every EventSink promises, held against every implementation."""

from __future__ import annotations

import math
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
from registry.sinks import JournalSink, ListSink
from registry.store import Recorder

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
        made = Case(ListSink(), folder, "")
    elif request.param == "journal":
        made = Case(JournalSink(folder), folder, "")
    else:
        postgresql = request.param.endswith("PostgreSQL")
        url = request.getfixturevalue("postgresql_url") if postgresql else find_url(tmp_path)
        made = Case(Recorder(folder, url), folder, url)
    yield made
    made.sink.close()


def read_back(case):
    """Return the events that the sink's durable (or only) copy holds."""
    if isinstance(case.sink, ListSink):
        return case.sink.events
    return read_events(case.folder / "events.jsonl")


def same(left, right):
    """Compare events; NaN equals NaN."""
    return len(left) == len(right) and all(
        type(a) is type(b) and repr(a) == repr(b) for a, b in zip(left, right, strict=True)
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
