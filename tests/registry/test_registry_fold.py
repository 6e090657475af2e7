"""Journals become rows exactly once, whatever is in them."""

from __future__ import annotations

import math
import random

import pytest
from sqlalchemy import select

from registry import fold as fold_module
from registry import records
from registry.codec import encode
from registry.connection import open_engine
from registry.errors import StoreError
from registry.events import (
    Artifact,
    Finding,
    Heartbeat,
    Histogram,
    Metrics,
    Output,
    RunEnded,
    RunPrepared,
    RunResumed,
    RunStarted,
    Severity,
    Status,
)
from registry.fold import fold_batch
from registry.queries import Reader
from registry.schema import metrics, runs
from registry.store import ingest


@pytest.fixture
def engine(url):
    made = open_engine(url, readonly=False)
    yield made
    made.dispose()


@pytest.fixture
def reader(url):
    with Reader.open(url) as made:
        yield made


def values_of(reader, key, run_id="aaaa0000"):
    series = reader.get_series(run_id, key)
    return list(zip(series.steps, series.values, strict=True))


def test_everything_of_a_run_is_found_again(engine, reader, write_run):
    started = {
        "name": "sanity",
        "project": "probes",
        "recipe": "sanity",
        "tags": ("a", "b", "a"),
        "note": "why",
        "parent": "sweep001",
        "seed": 2**62,
        "smoke": True,
        "config": {"train": {"lr": 1e-3}},
        "fingerprint": "f" * 16,
        "command": ("tsx", "run"),
        "cwd": "/here",
        "git_commit": "c" * 40,
        "git_branch": "main",
        "git_diff": "+x",
        "versions": {"python": "3.11"},
        "pid": 5,
    }
    prepared = RunPrepared(
        time=1000.5,
        pid=6,
        device="cuda:0",
        device_name="H100",
        precision="bf16",
        threads=4,
        params_total=10,
        params_active=5,
        flops_per_token=2.5,
        peak_tflops=989.0,
        peak_source="device name",
        warmup_steps=1,
        expected_s=9.0,
        data_source="demo",
        data_fingerprint="d" * 16,
        data={"train": {"series": 3, "mean": math.nan}},
        versions={"torch": "2.13", "python": "3.11.7"},
    )
    ingest(engine, write_run(events=[prepared], **started))
    detail = reader.get_detail("aaaa0000")
    run = detail.run
    assert (run.name, run.recipe, run.note, run.parent) == ("sanity", "sanity", "why", "sweep001")
    assert run.project == "probes"
    assert (run.tags, run.seed, run.smoke) == (("a", "b"), 2**62, True)
    assert (run.device, run.precision, run.data_source) == ("cuda:0", "bf16", "demo")
    assert (run.created, run.ended, run.step, run.steps) == (1000.0, 1004.0, 3, 3)
    assert run.metrics == {"train/loss": 1 / 3, "train/lr": 1e-3}
    assert detail.config == {"train": {"lr": 1e-3}}
    environment = detail.environment
    left_out = ("time", "type", "run_id", "name", "project", "recipe", "tags", "note", "parent")
    left_out += ("seed",)
    for event, extra in (
        (RunStarted(time=0.0, run_id="", **started), ("smoke", "steps", "config")),
        (prepared, ()),
    ):
        for field in event.__struct_fields__:
            if field not in (*left_out, *extra):
                assert field in environment, field
    assert environment["versions"] == {"python": "3.11.7", "torch": "2.13"}
    assert environment["pid"] == 6
    assert environment["command"] == ["tsx", "run"]
    assert math.isnan(environment["data"]["train"]["mean"])
    assert environment["exit_code"] == 0


def test_folding_again_changes_nothing(engine, reader, write_run):
    folder = write_run(events=[Finding(time=1.0, kind="k", severity=Severity.INFO)])
    ingest(engine, folder)
    before = reader.get_detail("aaaa0000")
    version = reader.data_version()
    ingest(engine, folder)
    assert not fold_batch(engine, folder)
    assert reader.get_detail("aaaa0000") == before
    assert reader.data_version() == version


@pytest.mark.parametrize("size", [1, 2, 7])
def test_any_split_into_batches_gives_the_same(engine, reader, write_run, monkeypatch, size):
    resumed = [
        Finding(time=5.0, kind="k", severity=Severity.INFO, count=2),
        RunResumed(time=1010.0, from_step=2, steps=9),
        Metrics(time=1011.0, step=3, values={"train/loss": math.inf}),
        Finding(time=6.0, kind="k", severity=Severity.INFO),
    ]
    ingest(engine, write_run("aaaa0000", events=resumed))
    monkeypatch.setattr(fold_module, "_BATCH_LINES", size)
    ingest(engine, write_run("bbbb0000", events=resumed))
    one, two = reader.get_detail("aaaa0000"), reader.get_detail("bbbb0000")
    assert one.metrics == two.metrics
    assert one.findings == two.findings
    assert one.findings[0].count == 3
    assert values_of(reader, "train/loss") == values_of(reader, "train/loss", "bbbb0000")


def test_summaries_equal_the_curve(engine, reader, write_run):
    random.seed(1)
    special = [math.nan, math.inf, -math.inf]
    points = [
        (step, random.choice([*special, random.gauss(0, 1), random.gauss(0, 1)]))
        for step in random.sample(range(300), 200)
    ]
    events = [Metrics(time=1.0, step=step, values={"x": value}) for step, value in points]
    events.append(RunResumed(time=2.0, from_step=250, steps=300))
    ingest(engine, write_run(steps=0, events=events, ended=False))
    kept = sorted((step, value) for step, value in points if step <= 250)
    finite = [(value, step) for step, value in kept if math.isfinite(value)]
    found = reader.get_detail("aaaa0000").metrics["x"]
    assert (found.count, found.nonfinite_count) == (len(kept), len(kept) - len(finite))
    assert (found.min, found.min_step) == min(finite)
    assert (found.max, found.max_step) == max(finite)
    assert (found.last_step, repr(found.last)) == (kept[-1][0], repr(kept[-1][1]))
    assert repr(values_of(reader, "x")) == repr(kept)


def test_a_curve_of_nothing_finite(engine, reader, write_run):
    events = [Metrics(time=1.0, step=1, values={"x": math.nan})]
    ingest(engine, write_run(events=events))
    found = reader.get_detail("aaaa0000").metrics["x"]
    assert math.isnan(found.min)
    assert math.isnan(found.max)
    assert math.isnan(found.last)


def test_a_resume_rewinds(engine, reader, write_run):
    resumed = [
        RunResumed(time=1010.0, from_step=2, steps=9, config={"new": 1}, command=("tsx", "resume")),
        Metrics(time=1011.0, step=3, values={"train/loss": 9.0}),
    ]
    ingest(engine, write_run(steps=5, events=resumed, ended=False))
    assert values_of(reader, "train/loss") == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert values_of(reader, "train/lr") == [(1, 1e-3), (2, 1e-3)]
    detail = reader.get_detail("aaaa0000")
    assert (detail.run.status, detail.run.step, detail.run.steps) == ("running", 3, 9)
    assert detail.config == {"new": 1}
    assert detail.metrics["train/lr"].count == 2
    assert detail.resumes == ((1010.0, 2, 9),)


def test_a_resume_to_the_start_leaves_no_curve(engine, reader, write_run):
    ingest(engine, write_run(events=[RunResumed(time=9.0, from_step=0, steps=3)], ended=False))
    assert reader.list_keys("aaaa0000") == []
    assert reader.get_run("aaaa0000").metrics == {}


def test_a_resume_cuts_histograms_too(engine, reader, write_run):
    events = [
        Histogram(time=1.0, step=step, key="w", edges=(0.0, 1.0), counts=(step,))
        for step in (1, 2, 3)
    ]
    ingest(engine, write_run(events=[*events, RunResumed(time=2.0, from_step=2, steps=9)]))
    assert [row.step for row in reader.list_histograms("aaaa0000", "w")] == [1, 2]
    assert reader.get_run("aaaa0000").step == 3


def test_findings_are_counted_by_what_they_say(engine, reader, write_run):
    same = {"kind": "nan", "module": "m", "op": "o", "where": "f.py:1", "cause": "c"}
    events = [
        Finding(time=5.0 + n, severity=Severity.ERROR, step=n, evidence={"n": n}, **same)
        for n in range(3)
    ]
    events += [
        Finding(time=9.0, severity=Severity.ERROR, **{**same, field: "other"}) for field in same
    ]
    ingest(engine, write_run(events=events))
    found = reader.get_detail("aaaa0000").findings
    assert [finding.count for finding in found] == [3, 1, 1, 1, 1, 1]
    assert (found[0].step, found[0].time, found[0].evidence) == (0, 5.0, {"n": 0})


def test_a_file_written_again_is_one_artifact(engine, reader, write_run):
    events = [
        Artifact(time=float(n), kind="checkpoint", path="last", step=n, size_bytes=n)
        for n in range(3)
    ]
    events.append(Artifact(time=9.0, kind="trace", path="t.json"))
    ingest(engine, write_run(events=events))
    found = reader.get_detail("aaaa0000").artifacts
    assert [(artifact.path, artifact.step) for artifact in found] == [("last", 2), ("t.json", 0)]


def test_the_newest_output_counts(engine, reader, write_run):
    events = [Output(time=1.0, stream="stdout", text=text) for text in ("a", "a\x00b")]
    events.append(Output(time=1.0, stream="stderr", text="e", dropped_bytes=5))
    ingest(engine, write_run(events=events))
    found = reader.get_detail("aaaa0000").output
    assert [(text.stream, text.text) for text in found] == [("stdout", "a\ufffdb"), ("stderr", "e")]


def test_how_a_run_ends(engine, reader, write_run):
    ended = RunEnded(time=5000.0, status=Status.OOM, reason="no memory", exit_code=5, step=44)
    ingest(engine, write_run(events=[Heartbeat(time=1.0, step=9), ended], ended=False))
    detail = reader.get_detail("aaaa0000")
    assert (detail.run.status, detail.run.reason, detail.run.step) == ("oom", "no memory", 44)
    assert (detail.run.ended, detail.environment["exit_code"]) == (5000.0, 5)


ABSURD = (
    b"\n",
    b"null\n",
    b"\xff\xfe\x00garbage\n",
    b'{"type":"metrics","time":1,"step":"x","values":{}}\n',
    b'{"type":"metrics","time":1,"step":99999999999999999999,"values":{"a":1}}\n',
    b'{"type":"output","time":1,"stream":"s","text":5}\n',
    b"[" * 100_000 + b"\n",
    b'{"type":"finding","time":1,"kind":"k","severity":"info","evidence":'
    + b'{"a":' * 20_000
    + b"1"
    + b"}" * 20_001
    + b"\n",
)


def test_absurd_lines_are_counted_and_skipped(engine, reader, write_run):
    folder = write_run(ended=False)
    with (folder / "events.jsonl").open("ab") as file:
        for line in ABSURD:
            file.write(line)
        file.write(b"x" * 100_000_000 + b"\n")
        file.write(encode(RunEnded(time=2000.0, status=Status.COMPLETED, step=3)))
    ingest(engine, folder)
    detail = reader.get_detail("aaaa0000")
    assert detail.run.status == "completed"
    assert detail.environment["journal_bad_lines"] == len(ABSURD) + 1
    assert len(values_of(reader, "train/loss")) == 3


def test_events_that_decode_but_are_absurd(engine, reader, write_run):
    events = [
        Metrics(time=-1e300, step=-(2**63), values={"a": 1.0}),
        Metrics(time=1e300, step=2**63 - 1, values={"": 1.0, "a\x00b": 2.0, "k" * 100_000: 3.0}),
        Finding(time=1.0, kind="k" * 1_000_000, severity=Severity.INFO, count=-5),
        Finding(time=1.0, kind="huge", severity=Severity.INFO, count=2**63 - 1),
        Artifact(time=1.0, kind="", path="../../../etc/passwd", size_bytes=-(2**63)),
        Output(time=1.0, stream="x" * 1000, text=""),
        RunPrepared(time=1.0, pid=-1, device="\x00", device_name="", precision="x" * 10_000),
        RunResumed(time=1.0, from_step=-(2**63), steps=-1),
    ]
    ingest(engine, write_run(events=events))
    detail = reader.get_detail("aaaa0000")
    assert detail.run.status == "completed"
    assert "journal_bad_lines" not in detail.environment


def test_a_row_the_database_refuses_takes_no_other_with_it(engine, reader, write_run, monkeypatch):
    events = [Output(time=1.0, stream="stdout", text="poison")]
    folder = write_run(events=events)
    clean = records.clean

    def refuse(text):
        if text == "poison":
            raise ValueError("the database will not have it")
        return clean(text)

    monkeypatch.setattr(records, "clean", refuse)
    ingest(engine, folder)
    detail = reader.get_detail("aaaa0000")
    assert detail.run.status == "completed"
    assert detail.environment["journal_bad_lines"] == 1
    assert len(values_of(reader, "train/loss")) == 3
    assert detail.output == ()


def test_a_journal_without_its_first_line(engine, reader, write_run):
    folder = write_run()
    path = folder / "events.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    ingest(engine, folder)
    run = reader.get_run("aaaa0000")
    assert (run.name, run.status, run.step) == ("aaaa0000", "completed", 3)
    assert run.created == 1001.0


def test_an_empty_or_absent_journal_makes_no_run(engine, reader, home):
    (home / "runs" / "aaaa0000").mkdir(parents=True)
    ingest(engine, home / "runs" / "aaaa0000")
    (home / "runs" / "aaaa0000" / "events.jsonl").touch()
    ingest(engine, home / "runs" / "aaaa0000")
    (home / "runs" / "aaaa0000" / "events.jsonl").write_bytes(b'{"torn')
    ingest(engine, home / "runs" / "aaaa0000")
    assert reader.list_runs() == []


def test_a_failed_batch_leaves_mark_and_rows_together(engine, reader, write_run, monkeypatch):
    folder = write_run(steps=10)
    monkeypatch.setattr(fold_module, "_BATCH_LINES", 4)
    assert fold_batch(engine, folder)

    def fail(self, *, end):
        self._flush()
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(fold_module.RunFold, "finish", fail)
        with pytest.raises(StoreError):
            ingest(engine, folder)
    assert len(values_of(reader, "train/loss")) == 3
    ingest(engine, folder)
    assert len(values_of(reader, "train/loss")) == 10


def test_a_point_costs_at_most_forty_bytes(engine, write_run, home):
    keys = [f"group{number % 5}/metric{number}" for number in range(60)]
    events = [
        Metrics(time=1000.0 + step, step=step * 10, values=dict.fromkeys(keys, step * 0.123))
        for step in range(1, 400)
    ]
    ingest(engine, write_run(steps=0, events=events))
    with engine.begin() as connection:
        count = len(connection.execute(select(metrics.c.seq)).all())
    engine.dispose()
    assert count == 60 * 399
    assert (home / "registry.db").stat().st_size / count <= 40


def test_runs_know_where_they_are(engine, write_run, home):
    ingest(engine, write_run())
    with engine.begin() as connection:
        assert connection.execute(select(runs.c.folder)).scalar() == str(home / "runs" / "aaaa0000")
