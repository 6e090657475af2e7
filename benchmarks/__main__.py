"""Run every benchmark in turn: `make bench`, or `python -m benchmarks`.

Nothing else should run meanwhile. Exit status 1 when one of them missed a limit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run each `bench_*.py` beside this file in a process of its own."""
    missed = []
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        print(f"== {path.stem}", flush=True)
        if subprocess.run(
            [sys.executable, "-m", f"benchmarks.{path.stem}"], check=False
        ).returncode:
            missed.append(path.stem)
    if missed:
        print(f"limits missed in: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
