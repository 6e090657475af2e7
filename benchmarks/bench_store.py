"""The registry's speed and size: `python -m benchmarks.bench_store`.

Journals are written and folded in, then read back through `registry.queries.Reader` in this
process: a curve of 100,000 steps whole, one of a million steps at the width of a chart (the first
time through a new connection, then again), the newest 200 of 10,000 runs with their last values,
and a page at the end of the list. A resume cuts a run of 100,000 steps and 8 curves by a tenth.
Takes about a minute and 200 MB of disk.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

from registry.codec import encode
from registry.connection import open_engine
from registry.events import Event, Metrics, RunEnded, RunResumed, RunStarted, Status
from registry.journal import JOURNAL_NAME
from registry.queries import Reader
from registry.store import ingest

TARGETS = {
    "size per point, rollups included": 40.0,
    "100,000 steps into memory": 120.0,
    "chart of a million steps, first": 10.0,
    "chart of a million steps": 10.0,
    "200 of 10,000 runs with 30 values each": 30.0,
    "the last page of 10,000 runs": 100.0,
}
CHART_WIDTH = 220  # dots side by side in a chart of 110 cells
LAST = "train/m0"


def append(folder: Path, *events: Event) -> None:
    """Add lines to a journal without the cost of a recorder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / JOURNAL_NAME).open("ab") as file:
        file.writelines(map(encode, events))


def write_run(folder: Path, steps: int, num_keys: int, created: float = 1e9) -> None:
    """Write the journal of a run that has ended."""
    source = random.Random(steps)
    keys = [f"train/m{number}" for number in range(num_keys)]
    append(folder, RunStarted(time=created, run_id=folder.name, name="bench", steps=steps))
    for start in range(1, steps + 1, 10_000):
        block = range(start, min(start + 10_000, steps + 1))
        append(
            folder,
            *(
                Metrics(
                    time=created + step * 0.05,
                    step=step,
                    values={key: source.gauss(0.0, 1.0) for key in keys},
                )
                for step in block
            ),
        )
    append(folder, RunEnded(time=created + steps, status=Status.COMPLETED, step=steps))


def take_ms(call: Callable[[], object]) -> float:
    """Return the milliseconds of one call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def take_median_ms(call: Callable[[], object], times: int = 9) -> float:
    """Return the median of several calls in milliseconds."""
    return statistics.median(take_ms(call) for _ in range(times))


def measure_wide(folder: Path, engine: Engine, url: str, steps: int) -> dict[str, float]:
    """Measure a run of 8 curves: folding, size, one curve whole, and a rewind."""
    run = folder / "runs" / "wide0000"
    write_run(run, steps, 8)
    fold_s = take_ms(lambda: ingest(engine, run)) / 1e3
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    found = {"folding, thousand points a second": steps * 8 / fold_s / 1e3}
    found["size per point, rollups included"] = (folder / "registry.db").stat().st_size / steps / 8
    with Reader.open(url) as reader:
        read = take_median_ms(lambda: reader.get_series("wide0000", LAST))
    found["100,000 steps into memory"] = read
    append(run, RunResumed(time=2e9, from_step=steps * 9 // 10, steps=steps))
    found["a resume cuts 8 curves by a tenth"] = take_ms(lambda: ingest(engine, run))
    return found


def measure_long(folder: Path, engine: Engine, url: str, steps: int) -> dict[str, float]:
    """Measure the chart of a long curve."""
    run = folder / "runs" / "long0000"
    write_run(run, steps, 1)
    ingest(engine, run)
    with Reader.open(url) as reader:

        def draw() -> object:
            return reader.get_outline("long0000", LAST, CHART_WIDTH)

        first = take_ms(draw)
        return {
            "chart of a million steps, first": first,
            "chart of a million steps": take_median_ms(draw, 21),
            "the same curve whole": take_ms(lambda: reader.get_series("long0000", LAST)),
        }


def measure_lists(folder: Path, engine: Engine, url: str, num_runs: int) -> dict[str, float]:
    """Measure lists of many runs."""
    for number in range(num_runs):
        run = folder / "runs" / f"r{number:07d}"
        write_run(run, 1, 30, created=1e9 + number)
        ingest(engine, run)
    with Reader.open(url) as reader:
        return {
            "200 of 10,000 runs with 30 values each": take_median_ms(
                lambda: reader.list_runs(limit=200)
            ),
            "the last page of 10,000 runs": take_median_ms(
                lambda: reader.list_runs(limit=200, offset=num_runs - 200)
            ),
            "all of them, two values each": take_ms(
                lambda: reader.list_runs(keys=(LAST, "train/m1"))
            ),
        }


def main() -> int:
    """Print the table; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the full size; for a try")
    share = parser.parse_args().share
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'registry.db'}"
        engine = open_engine(url, readonly=False)
        found = measure_wide(folder, engine, url, round(100_000 * share))
        found |= measure_long(folder, engine, url, round(1_000_000 * share))
        found |= measure_lists(folder, engine, url, round(10_000 * share))
        engine.dispose()
    missed = 0
    for what, value in found.items():
        target = TARGETS.get(what)
        verdict = ""
        if target is not None:
            verdict = f"target {target:g}: " + ("ok" if value <= target else "MISSED")
            missed += value > target
        unit = "k/s" if "folding" in what else "B" if "size" in what else "ms"
        print(f"{what:<40} {value:>9.2f} {unit:<3} {verdict}")
    if missed and os.getloadavg()[0] > 1:
        print(f"load average {os.getloadavg()[0]:.1f}: other programs share these cores")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
