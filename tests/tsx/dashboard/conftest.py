"""A registry in memory with a frozen clock, and the dashboard over it."""

import asyncio
import math
import random
import time
from array import array
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from registry.errors import UnknownRun
from registry.views import ArtifactRow, FindingRow, MetricSummary, RunDetail, RunRow, Series
from tsx.config import RunConfig, to_plain
from tsx.dashboard.app import DashboardApp

NOW = 1_790_000_000.0


@dataclass(frozen=True)
class Mark:
    """A bookmark in a curve: points read, and how often the run was rewound."""

    read: int
    rewinds: int


def make_curves(seed, steps, done, nan_at=None):
    """Return curves like those of a real run, the same for the same seed."""
    source = random.Random(seed)

    def loss(x):
        return 2.4 * math.exp(-x / (steps / 4)) + 0.35 + 0.06 * source.random()

    def bad(x, value):
        return math.nan if nan_at and x >= nan_at else value

    every, some = range(1, done + 1), range(25, done + 1, 25)
    shapes = {
        "train/loss": (every, lambda x: bad(x, loss(x) + (0.9 if x == steps * 3 // 5 else 0))),
        "val/loss": (some, lambda x: loss(x) * 1.08),
        "train/aux": (every, lambda x: 1 + 0.35 * math.exp(-x / 30) + 0.01 * source.random()),
        "val/aux": (some, lambda x: 1 + 0.3 * math.exp(-x / 30)),
        "train/mfu": (every, lambda x: 31 + 2 * source.random() - 12 * math.exp(-x / 4)),
        "train/lr": (every, lambda x: 1e-3 * min(x / 20, 1) * (1 + math.cos(3.14 * x / steps)) / 2),
        "train/step_time_ms": (every, lambda x: 88 + 3 * source.random()),
        "train/toks_per_sec": (every, lambda x: 23_243 + 800 * source.random()),
        "val/mse_h1": (some, lambda x: loss(x) * 0.3),
        "val/mse_h32": (some, lambda x: loss(x) * 0.6),
    }
    return {key: make_series(key, xs, [f(x) for x in xs]) for key, (xs, f) in shapes.items()}


def make_series(key, steps, values):
    times = array("d", [NOW - 600 + step for step in steps])
    return Series(key, array("q", steps), array("d", values), times)


def summarize(series):
    finite = [(v, s) for v, s in zip(series.values, series.steps, strict=True) if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else ((math.nan, 0), (math.nan, 0))
    bad = len(series) - len(finite)
    last = series.values[-1], series.steps[-1]
    return MetricSummary(series.key, *last, *low, *high, len(series), bad)


class FakeReader:
    """What the dashboard asks of a reader; counts the calls."""

    def __init__(self):
        self.version = 1
        self.runs = []
        self.curves = {}
        self.findings = {}
        self.rewinds = {}
        self.calls = Counter()
        self.error = None

    def add(self, run_id, name, status="completed", *, steps=200, done=None, age=3600.0, **more):
        nan_at = more.pop("nan_at", None)
        self.curves[run_id] = make_curves(run_id, steps, done or steps, nan_at)
        fields = {"recipe": "sanity", "reason": "", "created": NOW - age, "tags": (), "parent": ""}
        fields |= {"ended": None if status == "running" else NOW - age + 200, "note": "", "seed": 0}
        fields |= {"smoke": False, "device": "cpu", "precision": "fp32", "data_source": "demo"}
        fields |= {"step": done or steps, "steps": steps, "host": "box", "metrics": {}} | more
        self.runs.append(RunRow(id=run_id, name=name, status=status, **fields))
        self.runs.sort(key=lambda run: -run.created)
        self.refresh(run_id)

    def refresh(self, run_id):
        """Bring the row of a run up to its curves, and count a version on."""
        last = {
            key: series.values[-1] for key, series in self.curves[run_id].items() if len(series)
        }
        self.runs = [replace(r, metrics=last) if r.id == run_id else r for r in self.runs]
        self.version += 1

    def find(self, run_id, *findings):
        """Put findings into a run, and their counts into its row."""
        self.findings[run_id] = [*self.findings.get(run_id, ()), *findings]
        counts = dict(Counter(finding.severity for finding in self.findings[run_id]))
        self.runs = [replace(r, finding_counts=counts) if r.id == run_id else r for r in self.runs]
        self.version += 1

    def extend(self, run_id, key, steps, values):
        held = self.curves[run_id][key]
        self.curves[run_id][key] = make_series(key, [*held.steps, *steps], [*held.values, *values])
        self.refresh(run_id)

    def data_version(self):
        self.calls["data_version"] += 1
        if self.error is not None:
            raise self.error
        return self.version

    def list_runs(self, *, limit, offset, keys):
        self.calls["list_runs"] += 1
        page = self.runs[offset : offset + limit]
        return [
            replace(run, metrics={key: run.metrics[key] for key in keys if key in run.metrics})
            for run in page
        ]

    def count_runs(self):
        return Counter(run.status for run in self.runs)

    def list_keys(self, run_id):
        return sorted(self.curves[run_id])

    def get_outline_since(self, run_id, key, width, cursor):
        self.calls["get_outline_since"] += 1
        held, rewinds = self.curves[run_id][key], self.rewinds.get(run_id, 0)
        start = cursor.read if cursor is not None and cursor.rewinds == rewinds else 0
        self.calls["points"] += len(held) - start
        part = Series(key, held.steps[start:], held.values[start:], held.times[start:])
        return part, Mark(len(held), rewinds)

    def get_detail(self, run_id):
        self.calls["get_detail"] += 1
        run = next((run for run in self.runs if run.id == run_id), None)
        if run is None:
            raise UnknownRun(f"no run {run_id}", reference=run_id)
        config = to_plain(RunConfig())
        config["optim"]["lr"] = 0.0003
        environment = {"command": ["tsx", "run", "sanity"], "git_commit": "abc1234", "host": "box"}
        metrics = {key: summarize(series) for key, series in self.curves[run_id].items()}
        files = (ArtifactRow("checkpoint", "checkpoints/step-200", 200, 12_345_678, {}, NOW),)
        findings = tuple(self.findings.get(run_id, ()))
        return RunDetail(run, config, environment, metrics, findings, files, (), ())

    def close(self):
        self.calls["close"] += 1


@pytest.fixture(autouse=True)
def _fixed_look(monkeypatch):
    """Show UTC, in color."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def empty():
    return FakeReader()


@pytest.fixture
def filled():
    """Return a registry of six runs, one of each kind that looks different."""
    reader = FakeReader()
    reader.add("a1b2c3d4", "sanity", "running", done=124, age=95)
    reader.add("k3m2x9q1", "patch-probe", steps=500, age=5400, recipe="patch-probe")
    reason = "train/loss is NaN at step 80"
    reader.add("zz91ab3c", "nan-at-80", "diverged", done=96, age=9000, nan_at=80, reason=reason)
    reader.add("q8w7e6r5", "overfit", steps=300, age=86_400, recipe="overfit")
    evil = "big \x1b[31m[bold]red[/bold]\u202e"
    reader.add("p0o9i8u7", evil, "killed", steps=1000, done=400, age=90_000, reason=evil)
    reader.add("m1n2b3v4", "higher-lr", "interrupted", done=50, age=200_000, tags=("lr",))
    origin = FindingRow(
        kind="nan-origin",
        severity="error",
        step=80,
        phase="forward",
        module="blocks.3.attention",
        op="softmax",
        where="attention.py:123",
        cause="bool mask inverted: rows of unpadded sequences are fully masked",
        evidence={},
        fix="pass True where a key may be attended",
        count=3,
        time=NOW,
    )
    frozen = replace(
        origin,
        kind="frozen-param",
        severity="warning",
        step=8,
        phase="optimizer",
        module="blocks.3.attention.gate",
        op="",
        where="train.py:41",
        cause="parameter gate is in no optimizer",
        fix="give it to the optimizer",
        count=1,
    )
    router = replace(
        frozen,
        kind="router",
        module="blocks.3.moe.router",
        where="moe.py:57",
        cause="expert 2 of 8 gets no tokens",
        fix="raise the weight of the balance loss",
    )
    reader.find("zz91ab3c", frozen, router, origin)
    reader.find("m1n2b3v4", frozen)
    return reader


@pytest.fixture
def crowded(filled):
    """Return a registry of 3000 runs: those of `filled`, and older ones without curves."""
    last = filled.runs[-1]
    for number in range(3000 - len(filled.runs)):
        run_id = f"old{number:05d}"
        created = last.created - 60.0 * (number + 1)
        filled.runs.append(replace(last, id=run_id, name=run_id, created=created, metrics={}))
        filled.curves[run_id] = {}
    return filled


@pytest.fixture
def make_app():
    """Return a function that makes a dashboard over a reader, its clock stopped at NOW."""

    def make(reader, **more):
        open_reader = more.pop("open_reader", lambda: reader)
        return DashboardApp(open_reader, place="~/tsx/registry.db", clock=lambda: NOW, **more)

    return make


@pytest.fixture
def until():
    """Return a function that waits for something to become true, and fails where it never does."""

    async def wait(pilot, is_true):
        for _ in range(250):
            await pilot.pause()
            if is_true():
                await pilot.pause()
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it never happened")

    return wait


@pytest.fixture
def read_screen():
    """Return a function that reads the text on the terminal."""

    def read(app):
        width, height = app.size
        strips = app.screen._compositor.render_strips(app.size)
        assert len(strips) == height
        assert {strip.cell_length for strip in strips} == {width}
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    return read
