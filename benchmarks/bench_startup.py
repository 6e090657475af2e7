"""How long commands take to start, against what they cannot do without.

    python -m benchmarks.bench_startup [--rounds 21]

`tsx --help` is held against a lean Typer app with as many verbs (plain help, one argument and one
option each), `tsx runs` on a registry of 50 runs against the bare import of the libraries it
needs. All cases are started in turn, round after round, so that the machine's moods hit them alike;
the table shows medians of wall and processor time and the ratio of the wall medians. Exit status 1
when a ratio is over its limit. On a machine that is busy with other work trust the processor time.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from registry.connection import find_url
from registry.events import Metrics, RunEnded, RunStarted, Status
from registry.store import Recorder
from tsx.cli.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
NUM_RUNS = 50

LEAN_HEAD = """
import typer
app = typer.Typer(add_completion=False, rich_markup_mode=None)
@app.callback()
def root() -> None:
    "Do one thing or another."
"""
LEAN_VERB = """
@app.command()
def {name}(name: str, as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    "Do this."
"""
LIBRARIES = "import msgspec, sqlalchemy, typer"


class Times(NamedTuple):
    """One start, in milliseconds."""

    wall: float
    cpu: float


class Case(NamedTuple):
    """One command; `base` is the case it is held against, `limit` the ratio it may reach."""

    name: str
    arguments: list[str]
    base: str = ""
    limit: float = 0.0


def list_cases(folder: Path) -> list[Case]:
    """Return the cases; the lean app is written into `folder`."""
    lean = folder / "lean.py"
    verbs = "".join(LEAN_VERB.format(name=f"verb{number}") for number in range(len(VERBS)))
    lean.write_text(f"{LEAN_HEAD}{verbs}\napp()\n")
    return [
        Case("python", ["-c", "pass"]),
        Case(f"lean app, {len(VERBS)} verbs", [str(lean), "--help"]),
        Case("tsx --help", ["-m", "tsx", "--help"], f"lean app, {len(VERBS)} verbs", 1.3),
        Case("import of libraries", ["-c", LIBRARIES]),
        Case("tsx runs", ["-m", "tsx", "runs"], "import of libraries", 1.4),
        Case("tsx recipes", ["-m", "tsx", "recipes"]),
        Case("tsx", ["-m", "tsx"]),
    ]


def record_runs(home: Path) -> None:
    """Fill a registry with ended runs."""
    for number in range(NUM_RUNS):
        run_id = f"run{number:05d}"
        folder = home / "runs" / run_id
        folder.mkdir(parents=True)
        recorder = Recorder(folder, find_url(home))
        recorder.emit(RunStarted(time=float(number), run_id=run_id, name=f"run-{number}", steps=9))
        for step in range(1, 10):
            values = {"train/loss": 1.0 / step, "train/aux": 1.0, "val/loss": 2.0 / step}
            recorder.emit(Metrics(time=number + step / 10, step=step, values=values))
        recorder.emit(RunEnded(time=number + 1.0, status=Status.COMPLETED, step=9))
        recorder.close()


def make_environ(folder: Path, home: Path) -> dict[str, str]:
    """Return this process's environment with a home and, as installed, bytecode of its own."""
    left_out = ("TSX_REGISTRY", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    own = {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONPATH": str(ROOT)}
    return {**kept, **own, "TSX_HOME": str(home)}


def measure(case: Case, environ: dict[str, str], cwd: Path) -> Times:
    """Start one command and return how long it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *case.arguments], env=environ, cwd=cwd, capture_output=True, check=False
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{case.name} failed: {done.stderr.decode()}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Times(wall * 1000, cpu * 1000)


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = folder / "home"
        record_runs(home)
        environ = make_environ(folder, home)
        cases = list_cases(folder)
        times: dict[str, list[Times]] = {case.name: [] for case in cases}
        for turn in range(rounds + 1):
            for case in cases:
                taken = measure(case, environ, folder)
                if turn:  # the first round fills the file cache and writes bytecode
                    times[case.name].append(taken)
    return report(cases, times)


def report(cases: list[Case], times: dict[str, list[Times]]) -> int:
    """Print one line per case; return 1 when a ratio is over its limit."""
    status = 0
    walls = {name: statistics.median(taken.wall for taken in each) for name, each in times.items()}
    cpus = {name: statistics.median(taken.cpu for taken in each) for name, each in times.items()}
    print(f"{'command':<24}{'wall ms':>8}{'cpu ms':>8}{'ratio':>8}{'limit':>7}{'cpu ratio':>11}")
    for case in cases:
        line = f"{case.name:<24}{walls[case.name]:>8.0f}{cpus[case.name]:>8.0f}"
        if case.base:
            ratio = walls[case.name] / walls[case.base]
            cpu_ratio = cpus[case.name] / cpus[case.base]
            line += f"{ratio:>8.2f}{case.limit:>7.1f}{cpu_ratio:>11.2f}"
            status = max(status, int(ratio > case.limit))
        print(line)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
