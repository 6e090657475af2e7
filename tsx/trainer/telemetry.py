"""Everything a run says, and the one place that calls `EventSink.emit`.

Before the first step a sink that fails stops the run: nothing is lost yet. From then on training
never stops for telemetry: what a failing sink refused is counted, and the count is emitted as a
finding as soon as the sink takes events again. `Pulse` is a daemon thread that samples the system
and, when nothing else was said for a while, sends a heartbeat; it also beats through a step, an
evaluation or a compilation that takes minutes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from registry.events import Event, EventSink, Finding, Heartbeat, Metrics, Severity

DEVICE_KEYS = {
    "sm_util_pct": "sys/gpu_util_pct",
    "mem_ctrl_util_pct": "sys/gpu_mem_ctrl_util_pct",
    "hbm_util_pct": "sys/gpu_hbm_util_pct",
}
MAX_SAMPLES = 1000  # kept for one log line

HEARTBEAT_S = 5.0  # a reader takes a run on another host for dead after several of these


class Telemetry:
    """Stamps events with the time and hands them to a sink. Safe to call from several threads."""

    def __init__(self, sink: EventSink, *, clock: Callable[[], float] = time.time) -> None:
        self._sink = sink
        self._clock = clock
        self._lock = threading.Lock()
        self._guarded = False
        self._unsaid = 0  # refused since the last finding about it
        self._last_error = ""
        self.step = 0  # what heartbeats and samples are stamped with
        self.last_emit = clock()
        self.lost = 0

    def guard(self) -> None:
        """From here on swallow and count what the sink refuses, instead of raising it."""
        self._guarded = True

    def now(self) -> float:
        """Return the time to stamp an event with, UTC seconds."""
        return self._clock()

    def emit(self, event: Event) -> None:
        """Record one event; see `guard` for what happens when the sink fails."""
        if not self._guarded:
            self._sink.emit(event)
            self.last_emit = self._clock()
            return
        if self._try(event) and self._unsaid:
            self._confess()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step; nothing for no values."""
        if values:
            plain = {key: float(value) for key, value in values.items()}
            self.emit(Metrics(time=self._clock(), step=step, values=plain))

    def warn(self, kind: str, cause: str, fix: str, evidence: dict[str, Any]) -> None:
        """Record a warning about the run itself at the current step."""
        finding = Finding(
            time=self._clock(),
            kind=kind,
            severity=Severity.WARNING,
            step=self.step,
            cause=cause,
            evidence=evidence,
            fix=fix,
        )
        self.emit(finding)

    def heartbeat(self) -> None:
        """Say that the run is alive."""
        self.emit(Heartbeat(time=self._clock(), step=self.step))

    def beat_if_silent(self) -> None:
        """Say that the run is alive if nothing was said for `HEARTBEAT_S`."""
        if self._clock() - self.last_emit >= HEARTBEAT_S:
            self.heartbeat()

    def _try(self, event: Event) -> bool:
        """Emit one event; count it where the sink refuses."""
        try:
            self._sink.emit(event)
        except Exception as error:  # a sink may raise anything; training goes on
            with self._lock:
                self.lost += 1
                self._unsaid += 1
                self._last_error = f"{type(error).__name__}: {error}"
            return False
        self.last_emit = self._clock()
        return True

    def _confess(self) -> None:
        """Say how many events were refused, now that the sink takes them again."""
        with self._lock:
            unsaid, self._unsaid = self._unsaid, 0
        finding = Finding(
            time=self._clock(),
            kind="telemetry-lost",
            severity=Severity.WARNING,
            step=self.step,
            cause="the event sink refused events; training went on without them",
            evidence={"lost": unsaid, "last_error": self._last_error},
            fix="look at the disk that holds the run's folder",
            count=unsaid,
        )
        if not self._try(finding):
            with self._lock:
                self._unsaid += unsaid - 1  # the refused finding itself is no loss of data
                self.lost -= 1


class Pulse:
    """A daemon thread that samples the system every `period_s` and keeps the heart beating.

    A sampler that fails is reported once and not asked again.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        sample: Callable[[], Mapping[str, float]] | None,
        *,
        period_s: float,
    ) -> None:
        self._telemetry = telemetry
        self._sample = sample if period_s > 0 else None
        self._device_samples: list[Mapping[str, float]] = []  # since they were last taken
        self._tick_s = min(period_s or HEARTBEAT_S, HEARTBEAT_S)
        self._period_s = period_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tsx-pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=HEARTBEAT_S)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._done.wait(self._tick_s):
            is_due = time.monotonic() >= due
            if is_due:
                due = time.monotonic() + self._period_s
            self.beat(sample=is_due)

    def beat(self, *, sample: bool = True) -> None:
        """Sample the system if asked; send a heartbeat if nothing was said for a while."""
        if sample and self._sample is not None:
            try:
                values = self._sample()
                self._telemetry.metrics(self._telemetry.step, values)
                self._keep(values)
            except Exception as error:  # a driver's fault is no reason to stop training
                self._sample = None
                self._telemetry.warn(
                    "telemetry-lost",
                    "sampling the system failed; there are no more sys/ curves in this run",
                    "set perf.sample_every_s=0 to do without",
                    {"error": f"{type(error).__name__}: {error}"},
                )
        self._telemetry.beat_if_silent()

    def take_device_means(self) -> dict[str, float]:
        """Return the GPU's utilisation under `train/...`, averaged since the last call."""
        samples, self._device_samples = self._device_samples, []
        return {
            f"train/{name}": fmean(sample[key] for sample in samples if key in sample)
            for name, key in DEVICE_KEYS.items()
            if any(key in sample for sample in samples)
        }

    def _keep(self, values: Mapping[str, float]) -> None:
        if any(key in values for key in DEVICE_KEYS.values()):
            self._device_samples = [*self._device_samples[-(MAX_SAMPLES - 1) :], values]
