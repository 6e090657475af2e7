"""Our training step three ways: the loop over experts, the eager path and the compiled one.

    python -m benchmarks.bench_step [--only tiny] [--eager]

A step is forward, loss, backward and AdamW, fp32, two CPU threads, freed memory kept, as a run has
it. The three share one process and take turns; medians, and ratios of medians. Needs no official
checkout: `benchmarks.speed` holds the official step beside ours. Exit status 1 when the eager path
is slower than the loop, or the compiled one than the eager.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from tsx.config import CompileMode, ModelConfig, OptimConfig, Precision
from tsx.data.windows import Batch
from tsx.model.experts import Experts
from tsx.model.forecaster import build_forecaster
from tsx.perf.allocator import keep_freed_memory
from tsx.trainer import optim
from tsx.trainer.objective import accumulate_gradients

THREADS = 2
CPU = torch.device("cpu")
NOISE = 0.97  # ratios above it are not slower: two runs of the same code differ by as much
TINY = ModelConfig(hidden_size=64, num_layers=2, num_heads=4, num_experts=2, top_k=1, d_ff=256)


class Case(NamedTuple):
    """One size."""

    name: str
    config: ModelConfig
    batch: int
    points: int
    steps: int


CASES = (Case("tiny", TINY, 32, 512, 21), Case("base", ModelConfig(), 2, 512, 9))
PATHS = ("loop", "eager", "compiled")


def main() -> int:
    """Measure each case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[case.name for case in CASES])
    parser.add_argument("--eager", action="store_true", help="leave the compiled path out")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    paths = PATHS[:2] if args.eager else PATHS
    print("| case | path | ms | over the loop | compiling, s |\n|---|---|---|---|---|")
    passed = [_measure(case, paths) for case in CASES if args.only in (None, case.name)]
    return 0 if all(passed) else 1


def _measure(case: Case, paths: tuple[str, ...]) -> bool:
    """Print one case; return whether no path is slower than the one before it."""
    steps = {path: _make_step(case, path) for path in paths}
    times: dict[str, list[float]] = {path: [] for path in paths}
    first: dict[str, float] = {}
    for turn in range(case.steps + 2):
        for path, step in steps.items():
            started = time.perf_counter()
            step()
            took = time.perf_counter() - started
            if turn > 1:
                times[path].append(1000 * took)
            first.setdefault(path, took)
    medians = [statistics.median(times[path]) for path in paths]
    for path, median in zip(paths, medians, strict=True):
        compiling = f"{first[path]:.0f}" if path == "compiled" else ""
        what = f"{case.name}, B{case.batch} T{case.points}"
        print(f"| {what} | {path} | {median:.0f} | {medians[0] / median:.2f}x | {compiling} |")
    sys.stdout.flush()
    return all(a / b >= NOISE for a, b in pairwise(medians))


def _make_step(case: Case, path: str) -> Callable[[], None]:
    """Return a function that takes one training step along a path."""
    model = build_forecaster(case.config, seed=0, num_tokens=case.points)
    if path == "loop":
        for experts in (part for part in model.modules() if isinstance(part, Experts)):
            vars(experts)["forward"] = experts.run_loop  # found before the class's own
    elif path == "compiled":
        for block in model.blocks:
            block.compile(mode=str(CompileMode.DEFAULT), fullgraph=True, dynamic=False)
    optimizer = optim.build_optimizer(model, OptimConfig(lr=1e-4))
    series = np.random.default_rng(0).standard_normal((case.batch, case.points + 1))
    series_f32 = series.astype(np.float32)
    mask = np.ones((case.batch, case.points), dtype=np.bool_)
    batch = Batch(series_f32[:, :-1].copy(), series_f32[:, 1:].copy(), mask, mask)

    def step() -> None:
        optimizer.zero_grad()
        accumulate_gradients(model, [batch], Precision.FP32, CPU)
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
