"""Speed as averages over intervals.

Owns the clock of the training loop: steps between two reads, without the first steps (allocation,
compilation, caches) and without pauses (validation, checkpoints). Refuses figures of a single
moment: a read covers all steps since the last one.

    timer = IntervalTimer(...)
    for each step:
        with timer.waiting_for_data(): batch = ...
        ...
        timer.end_step(tokens=..., points=..., valid_points=...)
        if it is time to log: speed = timer.read()
        with timer.paused(): evaluate()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Speed:
    """Averages over the steps of one interval.

    Attributes:
        steps: optimizer steps covered.
        step_time_ms: wall time of one optimizer step, data included.
        data_time_ms: of that, waiting for the next batch.
        model_time_ms: the rest of it: forward, backward and update.
        toks_per_sec: model tokens, padded ones included.
        points_per_sec: points, padded ones included.
        valid_points_per_sec: points that are not padding.
        tflops: achieved model TFLOP/s, by docs/mfu.md.
        mfu: fraction of the peak, 0 to 1; None where no peak is known.
    """

    steps: int
    step_time_ms: float
    data_time_ms: float
    model_time_ms: float
    toks_per_sec: float
    points_per_sec: float
    valid_points_per_sec: float
    tflops: float
    mfu: float | None

    def to_metrics(self) -> dict[str, float]:
        """Return the values under the metric keys of the registry; MFU in percent."""
        metrics = {
            "train/step_time_ms": self.step_time_ms,
            "train/data_time_ms": self.data_time_ms,
            "train/model_time_ms": self.model_time_ms,
            "train/toks_per_sec": self.toks_per_sec,
            "train/points_per_sec": self.points_per_sec,
            "train/valid_points_per_sec": self.valid_points_per_sec,
            "train/tflops": self.tflops,
        }
        if self.mfu is not None:
            metrics["train/mfu"] = 100.0 * self.mfu  # percent, as the diaries print it
        return metrics


class IntervalTimer:
    """Accumulates time and work between reads.

    Args:
        flops_per_token: model FLOPs of one token, forward and backward.
        peak_tflops: dense peak; 0 is unknown.
        warmup_steps: first steps of this process that are left out.
        synchronize: waits for the device. Called where an interval or a pause begins or ends and
            nowhere else: a step is never waited for.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        flops_per_token: float,
        peak_tflops: float,
        warmup_steps: int = 2,
        synchronize: Callable[[], None] = lambda: None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._flops_per_token = flops_per_token
        self._peak_tflops = peak_tflops
        self._warmup_left = warmup_steps
        self._synchronize = synchronize
        self._clock = clock
        self._pause_start: float | None = None
        self._begin()

    @property
    def is_warming_up(self) -> bool:
        """Whether the next step is one of the first, which are left out."""
        return self._warmup_left > 0

    def end_step(self, *, tokens: int, points: int, valid_points: int) -> None:
        """Count one optimizer step and the work of all its micro-batches.

        A step that ends within a pause is left out, as one under a profiler must be.
        """
        if self._pause_start is not None:
            return
        if self._warmup_left > 0:
            self._warmup_left -= 1
            if self._warmup_left == 0:
                self._begin()
            return
        self._steps += 1
        self._tokens += tokens
        self._points += points
        self._valid_points += valid_points

    def read(self) -> Speed | None:
        """Return the averages since the last read and begin anew; None without a counted step."""
        if self._steps == 0:
            return None
        self._synchronize()
        elapsed_s = max(self._clock() - self._start - self._paused_so_far(), 1e-9)
        tflops = self._tokens * self._flops_per_token / elapsed_s / 1e12
        speed = Speed(
            steps=self._steps,
            step_time_ms=1e3 * elapsed_s / self._steps,
            data_time_ms=1e3 * self._data_s / self._steps,
            model_time_ms=1e3 * max(elapsed_s - self._data_s, 0.0) / self._steps,
            toks_per_sec=self._tokens / elapsed_s,
            points_per_sec=self._points / elapsed_s,
            valid_points_per_sec=self._valid_points / elapsed_s,
            tflops=tflops,
            mfu=tflops / self._peak_tflops if self._peak_tflops > 0 else None,
        )
        self._begin()
        return speed

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as data time; it stays part of the step."""
        start = self._clock()
        try:
            yield
        finally:
            if self._pause_start is None:
                self._data_s += self._clock() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of every figure. A pause within a pause changes nothing."""
        if self._pause_start is not None:
            yield
            return
        self._synchronize()
        self._pause_start = self._clock()
        try:
            yield
        finally:
            self._synchronize()
            self._paused_s = self._paused_so_far()
            self._pause_start = None

    def _paused_so_far(self) -> float:
        """Return the seconds of this interval that were pauses, the one under way included."""
        if self._pause_start is None:
            return self._paused_s
        return self._paused_s + self._clock() - self._pause_start

    def _begin(self) -> None:
        """Start an interval now."""
        self._synchronize()
        self._start = self._clock()
        if self._pause_start is not None:
            self._pause_start = self._start
        self._steps = self._tokens = self._points = self._valid_points = 0
        self._data_s = self._paused_s = 0.0
