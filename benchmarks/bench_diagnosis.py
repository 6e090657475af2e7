"""Score and cost of looking for NaN, beside who else does: `make diagnosis`.

    python -m benchmarks.bench_diagnosis [--only tsx] [--no-cost] [--steps 61] [--json]

The score is on the planted faults of kind nan-origin and on the healthy loops of `tests/faults`,
which tsx sees through `run.watch` and `run.compute` and each rival in its own way. An alarm counts
as a detection at the very step of the fault, and before it if it blames the guilty module, where a
bad value may lie unused; any other is a false one. The cost is a ratio of medians of step times,
against the loop that nobody looks at; all loops take turns in one process, in another order each.

`make diagnosis` makes an environment with the rivals on first use; without it a rival that is not
installed is left out, and said so. Exit status 1 where a rival names more than tsx.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.diagnosis_rivals import SCORED, TIMED, Onlooker, Tsx
from benchmarks.plain_loops import SIZES, OwnClock, PlainLoop, QuietRun, Size
from tests.faults.plant import Healthy, Plant, list_healthy, list_plants
from tsx.diagnostics.nonfinite.origin import KIND

THREADS = 2
WARM_UP = 5  # steps of each loop that are not counted
NOBODY = "nobody"
HEAD = (
    *("who", "detected", "right module", "among all it prints", "right line", "right cause"),
    *("alarm too early", "crashed", "healthy loops accused", "crashed on healthy loops"),
)

Cost = dict[str, dict[str, float]]  # size to who to median milliseconds of a step


@dataclass(slots=True)
class Score:
    """What one of them is worth; None where it has no such thing to say."""

    name: str
    plants: int = 0
    lines: int = 0  # of the plants, those with a guilty line
    healthy: int = 0
    detected: int = 0
    module: int | None = None
    printed: int | None = None  # the right module is anywhere in the report
    line: int | None = None
    cause: int | None = None
    early: int = 0
    crashed: int = 0
    accused: int = 0
    crashed_on_healthy: int = 0


def main() -> int:
    """Score and time everyone who is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="these onlookers alone, by name")
    parser.add_argument("--no-cost", action="store_true", help="leave the timing out")
    parser.add_argument("--steps", type=int, default=61, help="timed steps of each loop")
    parser.add_argument("--json", action="store_true", help="print plain data")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    asked = [one for one in TIMED if not options.only or one.name in options.only]
    there = [one for one in asked if one.find_version()]
    absent = [one.name for one in asked if one not in there]
    plants = [plant for plant in list_plants() if plant.kind == KIND]
    scores = [score(one(), plants, list_healthy()) for one in there if one in SCORED]
    cost = {} if options.no_cost else {s.name: time_all(s, there, options.steps) for s in SIZES}
    if options.json:
        print(json.dumps({"scores": [asdict(s) for s in scores], "ms": cost, "absent": absent}))
    else:
        print(", ".join(dict.fromkeys(one.find_version() or "" for one in there)) + ".\n")
        print(write_scores(scores))
        print(f"\n{write_cost(cost)}" if cost else "")
        if absent:
            print(f"\nNot installed and left out: {', '.join(absent)}; see `make diagnosis`.")
    return 1 if list_beaten(scores) else 0


def score(onlooker: Onlooker, plants: Sequence[Plant], healthy: Sequence[Healthy]) -> Score:
    """Return what an onlooker makes of all loops."""
    found = Score(onlooker.name, len(plants), sum(bool(p.marker) for p in plants), len(healthy))
    for name in onlooker.says:
        setattr(found, name, 0)
    if "module" in onlooker.says:
        found.printed = 0
    for plant in plants:
        _count(found, onlooker, plant)
    for loop in healthy:
        torch._dynamo.reset()
        said = onlooker.play(loop)
        found.accused += bool(said.step)
        found.crashed_on_healthy += bool(said.crash)
    return found


def _count(found: Score, onlooker: Onlooker, plant: Plant) -> None:
    """Count what is said of one plant."""
    said = onlooker.play(plant)
    found.crashed += bool(said.crash)
    is_foreseen = bool(plant.module) and said.module == plant.module
    is_early = 0 < said.step < plant.steps and not is_foreseen
    found.early += is_early
    if not said.step or is_early:
        return
    found.detected += 1
    if found.module is not None and found.printed is not None:
        found.module += said.module == plant.module
        found.printed += plant.module in said.printed
    if found.line is not None and plant.marker:
        found.line += said.line == f"{Path(plant.path).name}:{plant.line}"
    if found.cause is not None:
        found.cause += said.cause in (plant.mechanism, *plant.also)


def time_all(size: Size, onlookers: Sequence[type[Onlooker]], steps: int) -> dict[str, float]:
    """Return the median milliseconds of a step under each onlooker, and under nobody."""
    loops = {NOBODY: (PlainLoop(size, QuietRun()), Onlooker(), OwnClock())}
    runs = []
    for one in onlookers:
        onlooker = one()
        runs.append(onlooker.make_run())
        loop = PlainLoop(size, runs[-1])
        onlooker.attach(loop.model)
        loops[one.name] = (loop, onlooker, OwnClock())
    times: dict[str, list[float]] = {name: [] for name in loops}
    order, names = random.Random(0), list(loops)
    for turn in range(WARM_UP + steps):
        order.shuffle(names)
        for name in names:
            loop, onlooker, clock = loops[name]
            with onlooker.looking():
                clock.go()
                loop.step()
                took = clock.rest()
            if turn >= WARM_UP:
                times[name].append(1000 * took)
    for run in runs:
        run.close()
    return {name: statistics.median(taken) for name, taken in times.items()}


def write_scores(scores: Sequence[Score]) -> str:
    """Return the table of scores."""
    rows = [
        (
            one.name,
            f"{one.detected} of {one.plants}",
            _write(one.module),
            _write(one.printed),
            _write(one.line, one.lines),
            _write(one.cause),
            *(str(count) for count in (one.early, one.crashed)),
            f"{one.accused} of {one.healthy}",
            str(one.crashed_on_healthy),
        )
        for one in scores
    ]
    return _draw(HEAD, rows)


def write_cost(cost: Cost) -> str:
    """Return the table of step times, as ratios to the loop that nobody looks at."""
    names = list(next(iter(cost.values())))
    rows = [
        (
            f"{size} step",
            f"{medians[NOBODY]:.1f} ms",
            *(f"{medians[name] / medians[NOBODY]:.3f}x" for name in names[1:]),
        )
        for size, medians in cost.items()
    ]
    return _draw(("loop", *names), rows)


def list_beaten(scores: Sequence[Score]) -> list[str]:
    """Return the rivals that name more than tsx, or accuse less; [] where tsx was not asked."""
    ours = next((one for one in scores if one.name == Tsx.name), None)
    if ours is None:
        return []
    return [
        one.name
        for one in scores
        if one.detected > ours.detected
        or (one.module or 0) > (ours.module or 0)
        or (one.line or 0) > (ours.line or 0)
        or one.accused + one.early < ours.accused + ours.early
    ]


def _write(count: int | None, total: int | None = None) -> str:
    """Return a count, "n/a" where there is none."""
    return "n/a" if count is None else str(count) if total is None else f"{count} of {total}"


def _draw(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
