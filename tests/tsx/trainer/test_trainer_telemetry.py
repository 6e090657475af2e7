from __future__ import annotations

import threading

import pytest

from registry.events import Finding, Heartbeat, Metrics
from tsx.trainer.telemetry import HEARTBEAT_S, Pulse, Telemetry

pytestmark = pytest.mark.trainer


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Sink:
    def __init__(self):
        self.events = []
        self.error = None

    def emit(self, event):
        if self.error is not None:
            raise self.error
        self.events.append(event)

    def close(self):
        pass


@pytest.fixture
def scene():
    clock, sink = Clock(), Sink()
    return clock, sink, Telemetry(sink, clock=clock)


def test_metrics_are_stamped_and_plain_floats(scene):
    clock, sink, telemetry = scene
    clock.now = 7.5
    telemetry.metrics(3, {"a": 1, "b": float("nan")})
    telemetry.metrics(4, {})
    (event,) = sink.events
    assert (event.step, event.time, type(event.values["a"])) == (3, 7.5, float)


def test_faults_raise_until_guarded_then_count(scene):
    _, sink, telemetry = scene
    sink.error = OSError("disk")
    with pytest.raises(OSError, match="disk"):
        telemetry.metrics(0, {"a": 1.0})
    telemetry.guard()
    telemetry.metrics(1, {"a": 1.0})
    telemetry.heartbeat()
    assert telemetry.lost == 2


def test_what_was_lost_is_said_once_the_sink_is_back(scene):
    _, sink, telemetry = scene
    telemetry.guard()
    sink.error = RuntimeError("gone")
    for step in range(3):
        telemetry.metrics(step, {"a": 1.0})
    sink.error = None
    telemetry.metrics(3, {"a": 1.0})
    telemetry.metrics(4, {"a": 1.0})
    kinds = [type(event) for event in sink.events]
    assert kinds == [Metrics, Finding, Metrics]
    assert sink.events[1].evidence == {"lost": 3, "last_error": "RuntimeError: gone"}
    assert sink.events[1].count == 3


def test_a_confession_that_is_refused_is_made_later(scene):
    _, sink, telemetry = scene
    telemetry.guard()
    sink.error = RuntimeError("gone")
    telemetry.metrics(0, {"a": 1.0})
    emit, sink.error = sink.emit, None

    def no_findings(event):
        if isinstance(event, Finding):
            raise RuntimeError("not yet")
        emit(event)

    sink.emit = no_findings
    telemetry.metrics(1, {"a": 1.0})
    sink.emit = emit
    telemetry.metrics(2, {"a": 1.0})
    assert [e.evidence["lost"] for e in sink.events if isinstance(e, Finding)] == [1]
    assert telemetry.lost == 1


def test_interrupts_are_not_swallowed(scene):
    _, sink, telemetry = scene
    telemetry.guard()
    sink.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        telemetry.metrics(1, {"a": 1.0})


def test_heartbeat_only_after_silence(scene):
    clock, sink, telemetry = scene
    telemetry.step = 12
    pulse = Pulse(telemetry, None, period_s=0)
    telemetry.metrics(12, {"a": 1.0})
    clock.now += HEARTBEAT_S / 2
    pulse.beat()
    assert [type(e) for e in sink.events] == [Metrics]
    clock.now += HEARTBEAT_S / 2
    pulse.beat()
    pulse.beat()
    assert [type(e) for e in sink.events] == [Metrics, Heartbeat]
    assert sink.events[-1].step == 12


def test_samples_are_metrics_of_the_current_step(scene):
    _, sink, telemetry = scene
    telemetry.step = 5
    Pulse(telemetry, lambda: {"sys/cpu_pct": 50.0}, period_s=2).beat()
    assert [(e.step, e.values) for e in sink.events] == [(5, {"sys/cpu_pct": 50.0})]


def test_a_period_of_zero_never_samples(scene):
    _, sink, telemetry = scene
    Pulse(telemetry, lambda: {"sys/cpu_pct": 50.0}, period_s=0).beat()
    assert sink.events == []


def test_a_failing_sampler_is_reported_once(scene):
    _, sink, telemetry = scene

    def fail():
        raise OSError("no driver")

    pulse = Pulse(telemetry, fail, period_s=2)
    pulse.beat()
    pulse.beat()
    (finding,) = sink.events
    assert finding.evidence == {"error": "OSError: no driver"}


def test_gpu_figures_are_averaged_between_log_lines(scene):
    _, _, telemetry = scene
    samples = iter([{"sys/gpu_util_pct": 80.0}, {"sys/gpu_util_pct": 90.0}])
    pulse = Pulse(telemetry, lambda: next(samples), period_s=2)
    assert pulse.take_device_means() == {}
    pulse.beat()
    pulse.beat()
    assert pulse.take_device_means() == {"train/sm_util_pct": 85.0}
    assert pulse.take_device_means() == {}


def test_the_thread_samples_and_ends(scene):
    _, sink, telemetry = scene
    sampled = threading.Event()

    def sample():
        sampled.set()
        return {"sys/cpu_pct": 1.0}

    with Pulse(telemetry, sample, period_s=0.01):
        assert sampled.wait(timeout=30)
    assert isinstance(sink.events[0], Metrics)
    assert not any(thread.name == "tsx-pulse" for thread in threading.enumerate())
