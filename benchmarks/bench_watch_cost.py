"""What `run.watch` and `run.compute` cost a loop: `python -m benchmarks.bench_watch_cost`.

    python -m benchmarks.bench_watch_cost [--steps 400] [--no-postmortem] [--json]

Three measurements, two threads; the loops are those of `benchmarks.plain_loops`.

- Parts: each detector and each hook timed apart while a watched loop runs alone, divided by how
  often it comes (`benchmarks.watch_parts`). Their sum is held against the limits. The timers' own
  cost is in it; what the first steps cost, once a run, is told beside it.
- End to end: watched and unwatched steps in turn, with a bootstrapped interval
  (`benchmarks.watch_interval`). What else the machine does is in it.
- Post-mortem: seconds to the origin of a NaN on the base model of 113 million parameters, T=512.

Exit status 1 where a sum or a post-mortem is over its limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.plain_loops import SIZES
from benchmarks.watch_interval import Interval, measure_interval
from benchmarks.watch_parts import RUN_STEPS, START_STEPS, Costs, measure_parts
from benchmarks.watch_postmortem import LIMIT_S, measure_postmortems

THREADS = 2
LIMITS = {"15 ms": 0.015, "100 ms": 0.005}  # of a step, for the sum of the parts
STEPS = {"15 ms": 1000, "100 ms": 300}  # of each loop, after its first steps


def main() -> int:
    """Measure all three and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="of each loop, at least 64; fewer are quicker")
    parser.add_argument("--no-postmortem", action="store_true", help="leave the base model out")
    parser.add_argument("--json", action="store_true", help="print plain data")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    steps = {size.name: options.steps or STEPS[size.name] for size in SIZES}
    costs = {size.name: measure_parts(size, steps[size.name]) for size in SIZES}
    intervals = {size.name: measure_interval(size, steps[size.name]) for size in SIZES}
    postmortems = {} if options.no_postmortem else measure_postmortems()
    if options.json:
        print(json.dumps(_to_json(costs, intervals, postmortems), indent=1))
    else:
        print(f"{write_parts(costs)}\n\n{write_sums(costs, intervals)}")
        print(f"\n{write_postmortems(postmortems)}" if postmortems else "")
    is_over = any(cost.share > LIMITS[name] for name, cost in costs.items())
    return 1 if is_over or any(took > LIMIT_S for took in postmortems.values()) else 0


def write_parts(costs: dict[str, Costs]) -> str:
    """Return the table of parts: how often, how long, and what that is of a step."""
    head = ["part"]
    for name in costs:
        head += [f"{name} loop: times in 1,000 steps", "us each", "% of a step"]
    rows = {name: {row.label: row for row in cost.rows} for name, cost in costs.items()}
    lines = [_line(head), "|" + "---|" * len(head)]
    for label in sorted({label for some in rows.values() for label in some}):
        cells = [label]
        for name, cost in costs.items():
            row = rows[name].get(label)
            if row is None:
                cells += ["", "", ""]
            else:
                share = f"{100 * row.ms_per_step / cost.step_ms:.3f}"
                cells += [f"{1000 * row.calls_per_step:,.0f}", f"{1000 * row.ms:,.1f}", share]
        lines.append(_line(cells))
    return "\n".join(lines)


def write_sums(costs: dict[str, Costs], intervals: dict[str, Interval]) -> str:
    """Return the table of sums against their limits, with what was seen end to end."""
    head = (
        *("loop", "a step, ms", "sum of parts", "limit", "end to end (95 % interval)"),
        f"the first {START_STEPS} steps, parts, s",
    )
    lines = [_line(head), "|" + "---|" * len(head)]
    for name, cost in costs.items():
        found, limit = intervals[name], LIMITS[name]
        missed = ": **missed**" if cost.share > limit else ""
        interval = f"{100 * found.share:+.2f} % ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
        cells = (name, f"{cost.step_ms:.1f}", f"{100 * cost.share:.2f} %")
        cells += (f"{100 * limit:g} %{missed}", interval, f"{cost.start_s:.2f}")
        lines.append(_line(cells))
    lines.append(f"\nTraced calls are divided by the steps of a run of {RUN_STEPS:,}.")
    return "\n".join(lines)


def write_postmortems(took: dict[str, float]) -> str:
    """Return the table of post-mortems."""
    head = ("post-mortem, base model, B2 T512", "s", "limit")
    lines = [_line(head), "|" + "---|" * len(head)]
    for name, seconds in took.items():
        missed = ": **missed**" if seconds > LIMIT_S else ""
        lines.append(_line((name, f"{seconds:.1f}", f"{LIMIT_S:g} s{missed}")))
    return "\n".join(lines)


def _to_json(
    costs: dict[str, Costs], intervals: dict[str, Interval], postmortems: dict[str, float]
) -> dict[str, Any]:
    return {
        "parts": {name: asdict(cost) | {"share": cost.share} for name, cost in costs.items()},
        "end_to_end": {name: found._asdict() for name, found in intervals.items()},
        "postmortem_s": postmortems,
    }


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
