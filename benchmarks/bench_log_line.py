"""Cost of one log line as the training loop sees it: `python -m benchmarks.bench_log_line`.

A paced loop stands for training: every step works for 50 ms (numbers are added, so the recorder's
thread has to share the interpreter as it does in a real run), then emits one line of 14 values.
The bare floor (json.dumps and os.write of the same line) is measured in the same loop, line by
line, and so is the processor time of the recorder's thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from registry.events import Metrics, RunEnded, RunStarted, Status
from registry.store import Recorder

TARGET_LINE_US = 20.0
TARGET_SHARE = 0.01
KEYS = (
    *("train/loss", "train/pred", "train/aux", "train/lr", "train/grad_norm"),
    *("train/toks_per_sec", "train/points_per_sec", "train/step_time_ms", "train/tflops"),
    *("train/mfu", "router/layer0/entropy", "router/layer1/entropy"),
    *("router/layer0/load_max_over_mean", "router/layer1/load_max_over_mean"),
)


def work(until: float) -> None:
    """Keep the interpreter busy until a moment of time.perf_counter."""
    total = 0.0
    while time.perf_counter() < until:
        for number in range(200):
            total += number * 0.5


def measure(steps: int, step_s: float, folder: Path) -> dict[str, float]:
    """Return the medians in microseconds and the shares of the step for a paced run."""
    url = f"sqlite:///{folder / 'registry.db'}"
    recorder = Recorder(folder / "runs" / "bench000", url)
    recorder.emit(RunStarted(time=time.time(), run_id="bench000", name="bench", steps=steps))
    floor_fd = os.open(folder / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line_s, floor_s = [], []
    process_s, main_s = time.process_time(), time.thread_time()
    for step in range(1, steps + 1):
        work(time.perf_counter() + step_s)
        values = {key: step * 0.1 + index for index, key in enumerate(KEYS)}
        start = time.perf_counter()
        recorder.emit(Metrics(time=time.time(), step=step, values=values))
        line_s.append(time.perf_counter() - start)
        work(time.perf_counter() + step_s)  # each of the two meets the same cold caches
        start = time.perf_counter()
        os.write(floor_fd, (json.dumps({"step": step, "values": values}) + "\n").encode())
        floor_s.append(time.perf_counter() - start)
    thread_s = (time.process_time() - process_s) - (time.thread_time() - main_s)
    tight_s = []
    for step in range(steps + 1, steps + 1001):
        start = time.perf_counter()
        recorder.emit(Metrics(time=time.time(), step=step, values=values))
        tight_s.append(time.perf_counter() - start)
    recorder.emit(RunEnded(time=time.time(), status=Status.COMPLETED, step=steps))
    start = time.perf_counter()
    recorder.close()
    close_s = time.perf_counter() - start
    os.close(floor_fd)
    return {
        "line_us": statistics.median(line_s) * 1e6,
        "line_p99_us": sorted(line_s)[int(len(line_s) * 0.99)] * 1e6,
        "tight_us": statistics.median(tight_s) * 1e6,
        "floor_us": statistics.median(floor_s) * 1e6,
        "emit_share": sum(line_s) / (steps * step_s),
        "thread_share": thread_s / (2 * steps * step_s),
        "close_ms": close_s * 1e3,
        "lost": recorder.lost,
    }


def main() -> int:
    """Print the table; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step-ms", type=float, default=50.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.steps, options.step_ms / 1e3, Path(folder))
    share = found["emit_share"] + found["thread_share"]
    rows = (
        ("log line, median", found["line_us"], "us", TARGET_LINE_US),
        ("log line, 99th percentile", found["line_p99_us"], "us", None),
        ("log line one after another, median", found["tight_us"], "us", None),
        ("bare json.dumps + os.write, median", found["floor_us"], "us", None),
        ("log line over the bare one", found["line_us"] / found["floor_us"], "x", None),
        ("emit, share of the step", found["emit_share"] * 100, "%", None),
        ("recorder thread, share of one core", found["thread_share"] * 100, "%", None),
        ("both together", share * 100, "%", TARGET_SHARE * 100),
        ("close", found["close_ms"], "ms", None),
        ("events lost", found["lost"], "", 0.0),
    )
    missed = 0
    for name, value, unit, target in rows:
        verdict = ""
        if target is not None:
            verdict = f"target {target:g}: " + ("ok" if value <= target else "MISSED")
            missed += value > target
        print(f"{name:<38} {value:>9.2f} {unit:<3} {verdict}")
    if missed and os.getloadavg()[0] > 1:
        print(f"load average {os.getloadavg()[0]:.1f}: other programs share these cores")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
