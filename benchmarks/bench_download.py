"""How much longer `tsx data download` takes than a raw transfer of the same bytes on loopback.

    python -m benchmarks.bench_download

A small Hub (tests/assets/hub_server.py) in a process of its own serves 384 MiB in six shards: at
the pace of a gigabit line (119 MiB/s), and as fast as both processes can. The raw transfer is
urllib with as many connections, read and written in mebibytes, nothing checked. Ours is all from
the listing to the last check: metas, digests of all bytes, the readers' own opening. Both in this
process, interleaved; imports are outside the clock. Beside them the client's own
`snapshot_download`, which checks sizes only.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tsx.data.layout import SeriesWriter

SHARDS, SHARD_MIB = 6, 64
GIGABIT_MIB = 1e9 / 8 / 2**20
MAX_OVERHEAD = 0.05
SERVER = Path(__file__).resolve().parent.parent / "tests" / "assets" / "hub_server.py"


def write_repository(root: Path) -> int:
    """Write one data set and return its bytes."""
    points = SHARD_MIB * 2**18
    values = np.random.default_rng(0).normal(size=points).astype("float32")
    with SeriesWriter(root / "bench" / "set", dtype="float32", points_per_shard=points) as writer:
        for _ in range(SHARDS):
            writer.append(values)
        writer.finish()
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def fetch_raw(urls: dict[str, str], folder: Path, workers: int) -> None:
    """Fetch all URLs with urllib in so many threads."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for item in urls.items():
        waiting.put(item)

    def toil() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                name, url = waiting.get_nowait()
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with urllib.request.urlopen(url) as answer, path.open("wb", buffering=0) as file:
                    while chunk := answer.read(1 << 20):
                        file.write(chunk)

    threads = [threading.Thread(target=toil) for _ in range(min(workers, len(urls)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(root: Path, rounds: int) -> dict[str, list[float]]:
    """Time all three, one after the other, several times."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    from tsx.data.download import WORKERS, download
    from tsx.data.download_plan import make_plan
    from tsx.data.hub import DEFAULT_REPO, Hub

    disable_progress_bars()
    hub = Hub(DEFAULT_REPO, print)
    listing = hub.list_files("main")
    base = f"{hub.endpoint}/datasets/{DEFAULT_REPO}/resolve/{listing.commit}"
    urls = {file.path: f"{base}/{file.path}" for file in listing.files}

    def fetch_ours(folder: Path) -> None:
        with hub.session():
            plan = make_plan(folder, hub.list_files("main"), ["bench"])
            download(plan, hub, lambda _: None, print)

    cases: dict[str, Callable[[Path], object]] = {
        "raw": lambda folder: fetch_raw(urls, folder, WORKERS),
        "tsx": fetch_ours,
        "client": lambda folder: snapshot_download(
            DEFAULT_REPO, repo_type="dataset", local_dir=folder, endpoint=hub.endpoint
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, fetch in cases.items():
            os.sync()
            start = time.perf_counter()
            fetch(root / name)
            times[name].append(time.perf_counter() - start)
            shutil.rmtree(root / name)
    return times


def serve(root: Path, mib_per_s: float, rounds: int) -> dict[str, float]:
    """Start a Hub of this pace and return the medians."""
    server = subprocess.Popen(
        [sys.executable, str(SERVER), str(root / "repo"), str(mib_per_s)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        os.environ["HF_ENDPOINT"] = server.stdout.readline().strip().partition("=")[2]
        times = measure(root, rounds)
    finally:
        server.terminate()
        server.wait()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Print medians and ratios; status 1 when over the limit."""
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mib = write_repository(root / "repo") / 2**20
        for label, mib_per_s, rounds in (("gigabit", GIGABIT_MIB, 5), ("unpaced", 0.0, 9)):
            medians = serve(root, mib_per_s, rounds)
            for name, seconds in medians.items():
                over = seconds / medians["raw"] - 1
                print(f"{label} {name:<7} {seconds:6.3f} s {mib / seconds:6.0f} MiB/s {over:+7.1%}")
            missed |= medians["tsx"] / medians["raw"] - 1 > MAX_OVERHEAD
    print(f"limit {MAX_OVERHEAD:.0%}: {'missed' if missed else 'kept'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
