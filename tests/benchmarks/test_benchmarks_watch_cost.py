"""How the cost of watching is taken apart: what counts for whom, not how long it takes."""

from __future__ import annotations

import json
import sys
import time

import pytest

from benchmarks import bench_watch_cost, part_times
from benchmarks.part_times import Ledger, Part
from benchmarks.plain_loops import OwnClock, PlainLoop, QuietRun, Size
from benchmarks.watch_interval import Interval, bootstrap, measure_interval
from benchmarks.watch_parts import TRACED, WHEN, Costs, Row, measure_parts, sum_up, time_watch
from benchmarks.watch_postmortem import measure_postmortems
from benchmarks.watched_loops import Case, OwnLoop, TrainerLoop, list_cases, write_sections
from tsx.config import ModelConfig
from tsx.diagnostics.detector import Detector
from tsx.diagnostics.engine import Engine
from tsx.diagnostics.roster import DETECTORS
from tsx.trainer import objective

pytestmark = pytest.mark.trainer

SMALL = Size("small", 32, 1, 2, 8)
SECTIONS = write_sections(hidden_size=16, context_length=8, batch_size=2)
CASES = [
    Case(
        "a loop",
        1.0,
        70,
        lambda is_watched: OwnLoop(SMALL, is_watched=is_watched),
        (PlainLoop, "measure"),
    ),
    Case(
        "the trainer",
        1.0,
        70,
        lambda is_watched: TrainerLoop(SECTIONS, is_watched=is_watched),
        (objective, "compute_loss"),
    ),
]
TINY = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_experts=2, top_k=1, d_ff=16)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Works:
    def __init__(self, clock):
        self.clock = clock
        self.seconds = 2.0

    def outer(self):
        self.clock.now += 1.0
        self.inner()

    def inner(self):
        self.clock.now += self.seconds

    def fail(self):
        self.clock.now += 4.0
        raise ValueError("no")

    def probe(self):
        self.inner()


class Inherits(Works):
    pass


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(part_times, "time", made)
    return made


def test_a_part_is_not_charged_for_another_inside_it(clock):
    with Ledger() as ledger:
        ledger.time_part(Works, "outer", "outer")
        ledger.time_part(Works, "inner", "inner")
        Works(clock).outer()
        assert ledger.take() == {"outer": Part(1, 1.0), "inner": Part(1, 2.0)}
        assert ledger.take() == {}


def test_a_part_that_fails_is_timed_and_fails(clock):
    with Ledger() as ledger:
        ledger.time_part(Works, "fail", "fail")
        with pytest.raises(ValueError, match="no"):
            Works(clock).fail()
        assert ledger.take() == {"fail": Part(1, 4.0)}


def test_classes_are_as_they_were_afterwards(clock):
    before = dict(vars(Works)), dict(vars(Inherits))
    with Ledger() as ledger:
        ledger.time_part(Works, "outer", "outer")
        ledger.time_part(Inherits, "inner", "inner")
        ledger.time_part(Works, "outer", "twice")
        assert dict(vars(Works)) != before[0]
    assert (dict(vars(Works)), dict(vars(Inherits))) == before


def test_a_phase_counts_what_it_takes_longer_and_belongs_to_who_runs_it_again(clock):
    special = [False, False, True]
    works = Works(clock)
    with Ledger() as ledger:
        ledger.time_phase(Works, "inner", "phase", lambda: special.pop(0))
        ledger.time_part(Works, "probe", "detector", is_opaque=True)
        works.inner()
        works.inner()
        works.probe()
        works.seconds = 5.0
        works.inner()
        assert ledger.take() == {"detector": Part(1, 2.0), "phase": Part(1, 3.0)}


def test_traced_calls_are_divided_by_the_steps_of_a_run_and_the_rest_by_the_window():
    parts = {TRACED: Part(2, 0.4), "look: norms": Part(10, 0.1)}
    costs = sum_up(parts, steps=200, loop_s=2.5, start={"engine": Part(3, 0.7)})
    assert costs.step_ms == pytest.approx(10.0)
    assert costs.start_s == pytest.approx(0.7)
    look, trace = costs.rows
    assert (look.label, look.calls_per_step, look.ms) == ("look: norms", 0.05, 10.0)
    assert look.ms_per_step == pytest.approx(0.5)
    assert trace.ms_per_step == pytest.approx(200.0 * 7 / 9936)  # 128, 256 ... 8192
    assert costs.share == pytest.approx((0.5 + 1400 / 9936) / 10.0)


def test_every_detector_of_the_roster_is_timed_wherever_it_looks():
    def list_own():
        return [
            getattr(kind, name)
            for kind in DETECTORS
            for methods in WHEN.values()
            for name in methods
            if getattr(kind, name) is not getattr(Detector, name)
        ]

    assert len(list_own()) >= len(DETECTORS)
    with Ledger() as ledger:
        time_watch(ledger, is_detailed=True)
        assert all(hasattr(method, "__wrapped__") for method in list_own())
    assert not any(hasattr(method, "__wrapped__") for method in list_own())


@pytest.mark.parametrize("is_detailed", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_watch_is_taken_apart_and_no_class_stays_changed(case, is_detailed):
    before = dict(vars(Engine)), objective.compute_loss
    labels = {row.label for row in measure_parts(case, is_detailed=is_detailed).rows}
    assert (dict(vars(Engine)), objective.compute_loss) == before
    assert {"run.compute", "hooks of the optimizer", "traced call: forward"} <= labels
    assert ("engine" in labels) == is_detailed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_watched_loop_of_a_pair_has_a_clock_of_its_own(case):
    made = []

    def make(is_watched):
        loop = case.make(is_watched)
        made.append(loop.engine._clock if is_watched else None)
        return loop

    found = measure_interval(case._replace(make=make))
    assert found.low <= found.share <= found.high
    assert [type(clock) for clock in made] == [type(None), OwnClock]
    loop = case.make(True)
    assert loop.engine._clock is time.perf_counter
    loop.close()


def test_a_clock_of_its_own_stands_still_between_turns():
    clock = OwnClock()
    clock.go()
    took = clock.rest()
    assert clock() == clock() == took


def test_the_interval_holds_the_share_of_all_pairs():
    assert bootstrap([(1.0, 1.1)] * 40).share == pytest.approx(0.1)
    mixed = bootstrap([(1.0, 1.0)] * 90 + [(1.0, 2.0)] * 10)
    assert mixed.share == pytest.approx(0.1)
    assert mixed.low < 0.05 < 0.15 < mixed.high
    assert mixed.plain_ms == 1000.0


@pytest.mark.parametrize(
    ("share", "took_s", "status"), [(0.09, 4.9, 0), (0.2, 1.0, 1), (0.01, 5.1, 1)]
)
def test_what_is_over_its_limit_is_said_and_fails(share, took_s, status, monkeypatch, capsys):
    cost = Costs(10.0, [Row("engine", 2.0, 1.0, 10.0 * share)], start_s=0.5)
    monkeypatch.setattr(bench_watch_cost, "list_cases", lambda: CASES[:1])
    monkeypatch.setattr(bench_watch_cost, "measure_parts", lambda case, is_detailed: cost)
    interval = Interval(10.0, 0.01, -0.01, 0.02)
    monkeypatch.setattr(bench_watch_cost, "measure_interval", lambda case: interval)
    monkeypatch.setattr(bench_watch_cost, "measure_postmortems", lambda: {"forward": took_s})
    monkeypatch.setattr(bench_watch_cost.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert bench_watch_cost.main() == status
    out = capsys.readouterr().out
    assert ("**missed**" in out) == bool(status)
    assert f"| engine | 2,000 x 1,000, {100 * share:.3f} % |" in out
    assert "+1.00 % (-1.00 to +2.00)" in out
    monkeypatch.setattr(sys, "argv", ["bench", "--json"])
    bench_watch_cost.main()
    assert json.loads(capsys.readouterr().out)["loops"]["a loop"]["share"] == pytest.approx(share)


def test_the_loops_are_a_users_own_and_the_trainers():
    names = [case.name for case in list_cases()]
    assert names == ["a loop, 15 ms", "a loop, 100 ms", "the trainer, 15 ms", "the trainer, 100 ms"]
    assert [case.limit_ms for case in list_cases()] == pytest.approx([0.225, 0.5] * 2)


def test_the_post_mortems_find_their_fault():
    assert set(measure_postmortems(TINY)) == {
        f"{where}: {what}"
        for where in ("a loop", "the trainer")
        for what in ("forward, log of zero", "backward, root of zero")
    }


def test_a_loop_that_nobody_watches_learns():
    loop = PlainLoop(SMALL, QuietRun())
    ids = loop._ids[0]
    first = loop.measure(ids[:, :-1], ids[:, 1:]).item()
    for _ in range(60):
        loop.step()
    assert loop.measure(ids[:, :-1], ids[:, 1:]).item() < first - 0.3
