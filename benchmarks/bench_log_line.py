"""Cost of one log line as the training loop sees it: `python -m benchmarks.bench_log_line`.

A paced loop stands for training: between two calls it works (numbers are added, so the recorder's
thread has to share the interpreter as it does in a real run) or sleeps for 1, 10 or 50 ms, then
emits one line of 8 scalars. The longer it did something else, the colder are the caches, and the
more each call costs, whatever it does: so the bare floor (json.dumps and os.write of the same line)
is measured in the same loop, call by call, and so is the processor time of the recorder's thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from registry.events import Metrics, RunEnded, RunStarted, Status
from registry.store import Recorder

TARGET_LINE_US = 10.0  # of a loop with warm caches, at 1 ms
TARGET_OF_FLOOR = 0.5  # at every pace
TARGET_SHARE = 0.01  # of a step of 50 ms
KEYS = (
    *("train/loss", "train/lr", "train/grad_norm", "train/toks_per_sec", "train/step_time_ms"),
    *("router/layer0/entropy", "router/layer0/load_max_over_mean", "val/loss"),
)
PACES = ((1.0, 1000), (10.0, 200), (50.0, 60))  # milliseconds between two calls, calls of each kind
TIGHT_CALLS = 1000  # fewer than the tail holds: nobody waits for a drain

Row = tuple[str, float, str, float | None]  # name, value, unit, target


class Paced(NamedTuple):
    """What one pace has cost."""

    line_us: list[float]
    floor_us: list[float]
    thread_share: float  # of one core, by the recorder's thread


def work(seconds: float) -> None:
    """Keep the interpreter busy."""
    until = time.perf_counter() + seconds
    total = 0.0
    while time.perf_counter() < until:
        for number in range(200):
            total += number * 0.5


class Loop:
    """A run that logs, and the floor beside it."""

    def __init__(self, folder: Path) -> None:
        self.recorder = Recorder(folder / "runs" / "bench000", f"sqlite:///{folder}/registry.db")
        self.recorder.emit(
            RunStarted(time=time.time(), run_id="bench000", name="bench", steps=10_000)
        )
        self._floor_fd = os.open(folder / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._step = 0

    def run(self, wait: Callable[[float], None], pace_s: float, calls: int) -> Paced:
        """Make calls of both kinds at a pace."""
        line_us, floor_us = [], []
        process_s, main_s, began = time.process_time(), time.thread_time(), time.perf_counter()
        for _ in range(calls):
            wait(pace_s)
            line_us.append(self.log())
            wait(pace_s)  # each of the two meets the same cold caches
            floor_us.append(self.log_bare())
        thread_s = (time.process_time() - process_s) - (time.thread_time() - main_s)
        return Paced(line_us, floor_us, thread_s / (time.perf_counter() - began))

    def log(self) -> float:
        """Emit one line; return its cost in microseconds."""
        values = self._make_values()
        start = time.perf_counter()
        self.recorder.emit(Metrics(time=time.time(), step=self._step, values=values))
        return (time.perf_counter() - start) * 1e6

    def log_bare(self) -> float:
        """Write the same with the least that JSON lines need; return its cost in microseconds."""
        values = self._make_values()
        start = time.perf_counter()
        line = json.dumps({"time": time.time(), "step": self._step, "values": values}) + "\n"
        os.write(self._floor_fd, line.encode())
        return (time.perf_counter() - start) * 1e6

    def close(self) -> float:
        """End the run; return what closing took in milliseconds."""
        self.recorder.emit(RunEnded(time=time.time(), status=Status.COMPLETED, step=self._step))
        start = time.perf_counter()
        self.recorder.close()
        close_ms = (time.perf_counter() - start) * 1e3
        os.close(self._floor_fd)
        return close_ms

    def _make_values(self) -> dict[str, float]:
        self._step += 1
        return {key: self._step * 0.1 + index for index, key in enumerate(KEYS)}


def measure(folder: Path, scale: float) -> list[Row]:
    """Return the rows of the table."""
    loop = Loop(folder)
    rows: list[Row] = []
    for pace_ms, calls in PACES:
        for verb, wait in (("works", work), ("sleeps", time.sleep)):
            found = loop.run(wait, pace_ms / 1e3, max(10, round(calls * scale)))
            line, floor = statistics.median(found.line_us), statistics.median(found.floor_us)
            place = f"loop {verb} {pace_ms:g} ms"
            target = TARGET_LINE_US if pace_ms == PACES[0][0] else None
            rows.append((f"{place}: log line, median", line, "us", target))
            p99 = sorted(found.line_us)[int(len(found.line_us) * 0.99)]
            rows.append((f"{place}: log line, 99th percentile", p99, "us", None))
            rows.append((f"{place}: json.dumps + os.write", floor, "us", None))
            rows.append((f"{place}: line over bare one", line / floor, "x", TARGET_OF_FLOOR))
            share = statistics.fmean(found.line_us) / 1e6 / (pace_ms / 1e3) + found.thread_share
            if pace_ms == PACES[-1][0]:
                rows.append((f"{place}: with thread", share * 100, "%", TARGET_SHARE * 100))
    tight_us = [loop.log() for _ in range(TIGHT_CALLS)]
    rows.append(("one line after another, median", statistics.median(tight_us), "us", None))
    rows.append(("close", loop.close(), "ms", None))
    rows.append(("events lost", loop.recorder.lost, "", 0.0))
    return rows


def main() -> int:
    """Print the table; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of calls")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.scale)
    missed = 0
    for name, value, unit, target in rows:
        verdict = ""
        if target is not None:
            verdict = f"target {target:g}: " + ("ok" if value <= target else "MISSED")
            missed += value > target
        print(f"{name:<46} {value:>9.2f} {unit:<3} {verdict}".rstrip())
    if missed and os.getloadavg()[0] > 1:
        print(f"load average {os.getloadavg()[0]:.1f}: other programs share these cores")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
