"""How long `tsx data inspect` takes on ten million points, and what it costs in memory.

    python -m benchmarks.bench_inspect [--points 10000000]

Each case is written to a temporary folder and inspected by a process of its own, start of Python
included. "first" parses the file where its format asks for it, "again" finds the parsed copy; "cpu"
is the processor time of the first, which other work on the machine leaves alone. The peak is the
resident memory of the whole process (VmHWM, pages of mapped files included).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAX_SECONDS, MAX_MB = 10.0, 300.0
SERIES = 1000

_PROBE = """
import resource, sys
from pathlib import Path
from tsx.cli.main import main
status = main(["data", "inspect", sys.argv[1]])
if sys.platform == "linux":  # ru_maxrss would begin with what the parent had
    text = Path("/proc/self/status").read_text()
    peak = int(text.split("VmHWM:")[1].split()[0]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Path(sys.argv[2]).write_text(str(peak))
sys.exit(status)
"""

Table = npt.NDArray[np.float64]


def write_layout(folder: Path, table: Table) -> None:
    """Write the rows in the Time-300B layout."""
    folder = folder / "bench" / "set"
    folder.mkdir(parents=True)
    table.astype("<f4").tofile(folder / "data-1-of-1.bin")
    rows, points = table.shape
    meta = {
        "num_sequences": rows,
        "dtype": "float32",
        "files": {"data-1-of-1.bin": table.size},
        "scales": [{"offset": row * points, "length": points} for row in range(rows)],
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def write_short(folder: Path, table: Table) -> None:
    """Write a series for every ten points."""
    write_layout(folder, table.reshape(-1, 10))


def write_npy(folder: Path, table: Table) -> None:
    """Write one array."""
    np.save(folder / "bench.npy", table)


def write_npy_gz(folder: Path, table: Table) -> None:
    """Write one packed array, its values rounded as measurements are."""
    with gzip.open(folder / "bench.npy.gz", "wb", compresslevel=1) as file:
        np.save(file, table.round(2))


def write_jsonl(folder: Path, table: Table) -> None:
    """Write a line for each row."""
    with (folder / "bench.jsonl").open("w") as file:
        for row in table.round(4).tolist():
            file.write(json.dumps(row) + "\n")


def write_json(folder: Path, table: Table) -> None:
    """Write one list of all rows."""
    with (folder / "bench.json").open("w") as file:
        for number, row in enumerate(table.round(4).tolist()):
            file.write(("[" if number == 0 else ",\n") + json.dumps(row))
        file.write("]")


def write_csv(folder: Path, table: Table) -> None:
    """Write ten columns after one of dates."""
    with (folder / "bench.csv").open("w") as file:
        file.write("date," + ",".join(f"c{column}" for column in range(10)) + "\n")
        for row in table.round(4).reshape(-1, 10).tolist():
            file.write("2016-07-01 00:00:00," + ",".join(map(repr, row)) + "\n")


def write_parquet(folder: Path, table: Table) -> None:
    """Write a list column, a row for each series."""
    import pyarrow as pa
    from pyarrow import parquet

    lists = pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), table.shape[1])
    column = lists.cast(pa.list_(pa.float64()))
    parquet.write_table(pa.table({"sequence": column}), folder / "bench.parquet")


def write_arrow(folder: Path, table: Table) -> None:
    """Write ten columns."""
    import pyarrow as pa
    from pyarrow import feather

    columns = {f"c{number}": column for number, column in enumerate(table.reshape(-1, 10).T)}
    feather.write_feather(pa.table(columns), folder / "bench.feather")


CASES: dict[str, Callable[[Path, Table], None]] = {
    "Time-300B, series of 10,000": write_layout,
    "Time-300B, a million of 10": write_short,
    "npy": write_npy,
    "npy.gz": write_npy_gz,
    "jsonl": write_jsonl,
    "json": write_json,
    "csv, ten columns": write_csv,
    "parquet, lists": write_parquet,
    "feather, ten columns": write_arrow,
}


def measure(folder: Path, home: Path) -> tuple[float, float, float]:
    """Return seconds, peak MB and seconds of processor time of one inspection."""
    peak = home.parent / "peak"
    environ = {**os.environ, "TSX_HOME": str(home)}
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", _PROBE, str(folder), str(peak)],
        check=True,
        env=environ,
        stdout=subprocess.DEVNULL,
    )
    seconds, after = time.perf_counter() - start, os.times()
    busy = after.children_user + after.children_system
    busy -= before.children_user + before.children_system
    return seconds, int(peak.read_text()) / 1e6, busy


def main() -> int:
    """Print the table; 1 when a case is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000_000)
    points = parser.parse_args().points
    table = np.random.default_rng(0).standard_normal((SERIES, points // SERIES)).cumsum(axis=1)
    print(f"{points:,} points; bounds: {MAX_SECONDS:g} s, {MAX_MB:g} MB")
    heads = ("first s", "cpu s", "peak MB", "again s", "peak MB")
    print(f"{'case':<30}" + "".join(f"{head:>10}" for head in heads))
    missed = False
    for name, write in CASES.items():
        with tempfile.TemporaryDirectory() as root:
            folder, home = Path(root) / "corpus", Path(root) / "home"
            folder.mkdir()
            write(folder, table)
            first, again = measure(folder, home), measure(folder, home)
        missed |= max(first[0], again[0]) > MAX_SECONDS or max(first[1], again[1]) > MAX_MB
        print(
            f"{name:<30}{first[0]:>10.2f}{first[2]:>10.2f}{first[1]:>10.0f}"
            f"{again[0]:>10.2f}{again[1]:>10.0f}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
