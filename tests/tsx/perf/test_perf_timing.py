"""Interval averages on a clock that only moves when told to."""

from __future__ import annotations

import pytest

from tsx.perf.timing import IntervalTimer, Speed

pytestmark = pytest.mark.trainer


class Clock:
    """Seconds that pass when a test says so, and how often the device was waited for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits = 0

    def __call__(self) -> float:
        return self.now

    def wait(self) -> None:
        self.waits += 1


def make(clock: Clock, *, warmup_steps: int = 0, peak: float = 2.0) -> IntervalTimer:
    return IntervalTimer(
        flops_per_token=1e9,
        peak_tflops=peak,
        warmup_steps=warmup_steps,
        synchronize=clock.wait,
        clock=clock,
    )


def step(timer: IntervalTimer, clock: Clock, *, data_s: float = 0.0, compute_s: float) -> None:
    with timer.waiting_for_data():
        clock.now += data_s
    clock.now += compute_s
    timer.end_step(tokens=100, points=400, valid_points=300)


def read(timer: IntervalTimer) -> Speed:
    speed = timer.read()
    assert speed is not None
    return speed


def test_figures_are_averages_over_the_interval() -> None:
    clock = Clock()
    timer = make(clock)
    step(timer, clock, data_s=0.5, compute_s=0.5)
    step(timer, clock, data_s=0.0, compute_s=3.0)
    speed = read(timer)
    assert speed.steps == 2
    assert speed.step_time_ms == pytest.approx(2000.0)
    assert speed.data_time_ms == pytest.approx(250.0)
    assert speed.toks_per_sec == pytest.approx(50.0)
    assert speed.points_per_sec == pytest.approx(200.0)
    assert speed.valid_points_per_sec == pytest.approx(150.0)
    assert speed.tflops == pytest.approx(50e9 / 1e12)
    assert speed.mfu == pytest.approx(0.025)
    assert speed.to_metrics()["train/mfu"] == pytest.approx(2.5)  # percent


def test_each_read_begins_anew() -> None:
    clock = Clock()
    timer = make(clock)
    step(timer, clock, data_s=1.0, compute_s=8.0)
    read(timer)
    step(timer, clock, compute_s=2.0)
    speed = read(timer)
    assert (speed.steps, speed.data_time_ms) == (1, 0.0)
    assert speed.step_time_ms == pytest.approx(2000.0)


def test_first_steps_are_left_out() -> None:
    clock = Clock()
    timer = make(clock, warmup_steps=2)
    step(timer, clock, data_s=7.0, compute_s=50.0)
    assert timer.read() is None
    step(timer, clock, compute_s=9.0)
    assert timer.read() is None
    step(timer, clock, compute_s=1.0)
    speed = read(timer)
    assert (speed.steps, speed.step_time_ms, speed.data_time_ms) == (1, 1000.0, 0.0)


def test_pauses_are_left_out() -> None:
    clock = Clock()
    timer = make(clock)
    step(timer, clock, compute_s=1.0)
    with timer.paused():
        clock.now += 60.0
        with timer.paused():
            clock.now += 5.0
    step(timer, clock, compute_s=3.0)
    assert read(timer).step_time_ms == pytest.approx(2000.0)


def test_a_step_within_a_pause_is_not_counted() -> None:
    clock = Clock()
    timer = make(clock)
    step(timer, clock, data_s=0.5, compute_s=1.5)
    with timer.paused():
        step(timer, clock, data_s=7.0, compute_s=30.0)
    speed = read(timer)
    assert (speed.steps, speed.step_time_ms, speed.data_time_ms) == (1, 2000.0, 500.0)
    assert speed.model_time_ms == 1500.0
    with timer.paused():
        step(timer, clock, compute_s=30.0)
    assert timer.read() is None


def test_reading_within_a_pause_counts_none_of_it() -> None:
    clock = Clock()
    timer = make(clock)
    step(timer, clock, compute_s=2.0)
    with timer.paused():
        clock.now += 10.0
        assert read(timer).step_time_ms == pytest.approx(2000.0)
        clock.now += 30.0
    step(timer, clock, compute_s=1.0)
    assert read(timer).step_time_ms == pytest.approx(1000.0)


def test_a_pause_that_fails_still_ends() -> None:
    clock = Clock()
    timer = make(clock)

    def fail() -> None:
        with timer.paused():
            clock.now += 4.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    step(timer, clock, compute_s=1.0)
    assert read(timer).step_time_ms == pytest.approx(1000.0)


def test_the_device_is_waited_for_at_boundaries_alone() -> None:
    clock = Clock()
    timer = make(clock)
    begun = clock.waits
    for _ in range(50):
        step(timer, clock, compute_s=0.1)
    assert clock.waits == begun
    read(timer)
    assert clock.waits > begun


def test_no_peak_no_mfu() -> None:
    clock = Clock()
    timer = make(clock, peak=0.0)
    step(timer, clock, compute_s=1.0)
    speed = read(timer)
    assert speed.mfu is None
    assert "train/mfu" not in speed.to_metrics()
    assert speed.tflops > 0


def test_metric_keys_are_the_agreed_ones() -> None:
    clock = Clock()
    timer = make(clock)
    step(timer, clock, compute_s=1.0)
    metrics = read(timer).to_metrics()
    agreed = {"toks_per_sec", "points_per_sec", "step_time_ms", "tflops", "mfu"}
    assert {f"train/{name}" for name in agreed} <= set(metrics)


def test_a_clock_that_stands_still_divides_by_nothing() -> None:
    clock = Clock()
    timer = make(clock)
    step(timer, clock, compute_s=0.0)
    assert read(timer).toks_per_sec < float("inf")
