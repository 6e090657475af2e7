"""Our training step beside the official one: `make speed OFFICIAL=PATH/TO/Time-MoE`.

A step is forward, loss, backward and AdamW, fp32, two CPU threads, the same weights and batch. Ours
is the trainer's own (its loss, its fused AdamW), theirs the official forward and torch's default
AdamW, as the official trainer has it; a second figure gives theirs a fused AdamW too. Steps are
interleaved in one process under one allocator setting; medians. A context of 4096 does not fit
twice, so there each model has a process of its own, in turn, under the default malloc (with freed
memory kept the official step outgrows 24 GiB). Exit status 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import official
from benchmarks.official import BASE, TINY, Data
from tsx.config import ModelConfig, OptimConfig, Precision
from tsx.data.windows import Batch
from tsx.perf.allocator import keep_freed_memory
from tsx.trainer import optim
from tsx.trainer.objective import accumulate_gradients

THREADS = 2


class Case(NamedTuple):
    """One size, and how much faster ours must be."""

    name: str
    config: ModelConfig
    batch: int
    points: int
    steps: int
    limit: float


CASES = (
    Case("tiny", TINY, 32, 512, 15, 0.9),
    Case("base", BASE, 2, 512, 7, 1.0),
)
LONG = Case("long", BASE, 1, 4096, 1, 3.0)
LONG_MEMORY_LIMIT = 0.5
LONG_ROUNDS = 2  # an official step takes over a minute
ROUNDS = 3  # of processes, where each case has its own


def main() -> int:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of Time-MoE/Time-MoE")
    parser.add_argument("--only", choices=("interleaved", "long", "allocator"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return _run_child(args.checkout, json.loads(args.child))
    print("| case | official ms | ours ms | ratio | limit |\n|---|---|---|---|---|")
    passed = []
    if args.only in (None, "interleaved"):
        passed += [_compare(args.checkout, case, tuned) for case in CASES for tuned in (0, 1)]
    if args.only in (None, "long"):
        passed.append(_compare_long(args.checkout))
    if args.only in (None, "allocator"):
        for case in CASES:
            _compare_allocator(args.checkout, case)
    return 0 if all(passed) else 1


def _compare(checkout: Path, case: Case, tuned: int) -> bool:
    """Print one interleaved case, measured in a fresh process; return whether its limit holds."""
    found = _spawn(checkout, {"case": case.name, "who": "both", "tuned": tuned})
    theirs, fused, ours = found["official"], found["official fused"], found["ours"]
    setting = "freed memory kept" if tuned else "default malloc"
    what = f"{case.name}, B{case.batch} T{case.points}, {setting}"
    _print(what, theirs, ours, theirs / ours, case.limit)
    _print(f"{what}, official with fused AdamW", fused, ours, fused / ours, None)
    return theirs / ours >= case.limit


def _compare_long(checkout: Path) -> bool:
    """Print time and peak memory of the long context; return whether both limits hold."""
    runs: dict[str, list[dict[str, float]]] = {"official": [], "ours": []}
    for _ in range(LONG_ROUNDS):
        for who, found in runs.items():
            found.append(_spawn(checkout, {"case": LONG.name, "who": who, "tuned": 0}))
    theirs, ours = (
        {key: statistics.median(run[key] for run in runs[who]) for key in ("step", "gib")}
        for who in ("official", "ours")
    )
    ratio, share = theirs["step"] / ours["step"], ours["gib"] / theirs["gib"]
    _print(f"base, B{LONG.batch} T{LONG.points}", theirs["step"], ours["step"], ratio, LONG.limit)
    print(
        f"| its peak memory | {theirs['gib']:.1f} GiB | {ours['gib']:.1f} GiB | {share:.2f}x | "
        f"at most {LONG_MEMORY_LIMIT}x |"
    )
    return ratio >= LONG.limit and share <= LONG_MEMORY_LIMIT


def _compare_allocator(checkout: Path, case: Case) -> None:
    """Print our step with malloc as it is and with freed memory kept."""
    times: dict[int, list[float]] = {0: [], 1: []}
    peaks: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(ROUNDS):
        for tuned, found in times.items():
            run = _spawn(checkout, {"case": case.name, "who": "ours", "tuned": tuned})
            found.append(run["step"])
            peaks[tuned].append(run["gib"])
    default, kept = statistics.median(times[0]), statistics.median(times[1])
    more = statistics.median(peaks[1]) / statistics.median(peaks[0])
    print(
        f"| {case.name}, ours: default malloc against freed memory kept | {default:.0f} (default) "
        f"| {kept:.0f} (kept) | {default / kept:.2f}x, peak memory {more:.2f}x | |",
        flush=True,
    )


def _print(what: str, theirs: float, ours: float, ratio: float, limit: float | None) -> None:
    missed = ": **missed**" if limit is not None and ratio < limit else ""
    shown = "" if limit is None else f"{limit:g}x{missed}"
    print(f"| {what} | {theirs:.0f} | {ours:.0f} | {ratio:.2f}x | {shown} |", flush=True)


def _spawn(checkout: Path, order: dict[str, Any]) -> dict[str, float]:
    """Measure in a fresh process, whose allocator and peak memory are its own."""
    line = [sys.executable, "-m", "benchmarks.speed", str(checkout), "--child", json.dumps(order)]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run_child(checkout: Path, order: dict[str, Any]) -> int:
    """Measure what the order says and print it as JSON."""
    if order["tuned"]:
        keep_freed_memory()
    official.open_checkout(checkout)
    torch.set_num_threads(THREADS)
    case = next(case for case in (*CASES, LONG) if case.name == order["case"])
    data = official.draw_batch(case.batch, case.points, padded=False)
    tensors = official.draw_tensors(case.config, seed=0)
    steps: dict[str, Callable[[], None]] = {}
    if order["who"] in ("official", "both"):
        steps["official"] = _make_official_step(case.config, tensors, data, fused=False)
    if order["who"] == "both":
        steps["official fused"] = _make_official_step(case.config, tensors, data, fused=True)
    if order["who"] in ("ours", "both"):
        steps["ours"] = _make_our_step(case.config, tensors, data)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(case.steps + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn:  # the first is warm-up
                times[name].append(1000 * (time.perf_counter() - started))
    found = {name: statistics.median(values) for name, values in times.items()}
    if len(steps) == 1:
        found = {"step": next(iter(found.values()))}
    found["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))
    return 0


def _make_official_step(
    config: ModelConfig, tensors: Any, data: Data, *, fused: bool
) -> Callable[[], None]:
    model = official.make_official(config, tensors)
    settings = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(model.parameters(), **settings, fused=fused or None)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(
            input_ids=data.input_BC.clone(),
            labels=data.target_BC.clone(),
            loss_masks=data.mask_BC.float(),
            use_cache=False,
        ).loss
        loss.backward()
        optimizer.step()

    return step


def _make_our_step(config: ModelConfig, tensors: Any, data: Data) -> Callable[[], None]:
    model = official.make_ours(config, tensors)
    optimizer = optim.build_optimizer(model, OptimConfig(lr=1e-4))
    mask = data.mask_BC.numpy()
    batch = Batch(data.input_BC.numpy(), data.target_BC.numpy(), mask, mask)

    def step() -> None:
        optimizer.zero_grad()
        accumulate_gradients(model, [batch], Precision.FP32, torch.device("cpu"))
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
