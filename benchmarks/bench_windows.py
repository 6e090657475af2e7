"""How long opening a corpus of a million windows takes, and what it costs in memory.

    python -m benchmarks.bench_windows

Each case is written to a temporary folder (shards are sparse files: only their size counts) and
opened in a process of its own. "added" is resident memory after opening against before, "peak" the
highest in between. The last column is a batch of 32 windows of 512 points, series not seen before
included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MAX_SECONDS, MAX_MIB = 1.0, 100.0

# name: (data sets, series each, points a series, stride, context)
CASES = {
    "long series, stride 512": (16, 16, 2_000_000, 512, 512),
    "every offset of some series": (4, 25, 10_512, 1, 512),
    "a million short series": (1, 1_000_000, 16, 512, 512),
}

_PROBE = """
import json, resource, sys, time
import numpy as np, psutil
from pathlib import Path
from tsx.config import DataConfig
from tsx.data.corpus import open_corpus
from tsx.data.stream import BatchStream
path, stride, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = DataConfig(path=path, stride=stride, context_length=context)
process = psutil.Process()
before = process.memory_info().rss
start = time.perf_counter()
corpus = open_corpus(config, home=Path(path) / "home")
seconds = time.perf_counter() - start
after = process.memory_info().rss
if sys.platform == "linux":  # ru_maxrss would begin with what the parent had
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream = BatchStream(corpus.train, batch_size=32, seed=0)
times = []
for _ in range(50):
    start = time.perf_counter()
    stream.next_batch()
    times.append(time.perf_counter() - start)
print(json.dumps({
    "windows": len(corpus.train) + len(corpus.val), "seconds": seconds, "batch": sorted(times)[25],
    "added": max(0, after - before) / 2**20, "peak": max(0, peak - before) / 2**20,
}))
"""


def write_corpus(root: Path, datasets: int, series: int, points: int) -> None:
    """Write data sets of equally long series of zeros."""
    for index in range(datasets):
        folder = root / "bench" / f"set-{index}"
        folder.mkdir(parents=True)
        with (folder / "data-1-of-1.bin").open("wb") as shard:
            shard.truncate(series * points * 4)
        meta = {
            "num_sequences": series,
            "dtype": "float32",
            "files": {"data-1-of-1.bin": series * points},
            "scales": [{"offset": i * points, "length": points} for i in range(series)],
        }
        (folder / "meta.json").write_text(json.dumps(meta))


def measure(case: tuple[int, int, int, int, int]) -> dict[str, float]:
    """Open one case in a fresh process."""
    datasets, series, points, stride, context = case
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), datasets, series, points)
        command = [sys.executable, "-c", _PROBE, folder, str(stride), str(context)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    values: dict[str, float] = json.loads(result.stdout)
    return values


def main() -> int:
    """Print the table; 1 when a case is over its bound."""
    print(f"bounds: {MAX_SECONDS:g} s, {MAX_MIB:g} MiB")
    print(
        f"{'case':<30}{'windows':>11}{'seconds':>10}{'added MiB':>11}"
        f"{'peak MiB':>10}{'batch ms':>10}"
    )
    missed = False
    for name, case in CASES.items():
        row = measure(case)
        missed |= row["seconds"] > MAX_SECONDS or row["peak"] > MAX_MIB
        print(
            f"{name:<30}{int(row['windows']):>11,}{row['seconds']:>10.3f}{row['added']:>11.1f}"
            f"{row['peak']:>10.1f}{row['batch'] * 1e3:>10.2f}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
