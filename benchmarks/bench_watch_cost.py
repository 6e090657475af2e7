"""What `run.watch` and `run.compute` cost a loop: `python -m benchmarks.bench_watch_cost`.

    python -m benchmarks.bench_watch_cost [--only CASE] [--steps 400] [--detail] [--no-postmortem]
                                          [--json]

Three measurements, two threads, on the loops of `benchmarks.watched_loops`.

- Parts: `run.compute`, the optimizer's hooks, lines and traced calls timed apart while a watched
  loop runs alone, divided by how often they come (`benchmarks.watch_parts`). Their sum is held
  against the limits; what the first steps cost, once a run, is told beside it. `--detail` gives
  each detector a timer of its own, whose cost then is in the sum.
- End to end: watched and unwatched steps in turn, with a bootstrapped interval
  (`benchmarks.watch_interval`). What else the machine does is in it.
- Post-mortem: seconds to the origin of a NaN on the base model of 113 million parameters, T=512.

Exit status 1 where a sum or a post-mortem is over its limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from benchmarks.watch_interval import Interval, measure_interval
from benchmarks.watch_parts import RUN_STEPS, START_STEPS, Costs, measure_parts
from benchmarks.watch_postmortem import LIMIT_S, measure_postmortems
from benchmarks.watched_loops import Case, list_cases

THREADS = 2


class Measured(NamedTuple):
    """What one loop came to."""

    case: Case
    costs: Costs
    seen: Interval


def main() -> int:
    """Measure all three and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[case.name for case in list_cases()])
    parser.add_argument("--steps", type=int, help="of each loop, at least 64; fewer are quicker")
    parser.add_argument("--detail", action="store_true", help="time each detector apart")
    parser.add_argument("--no-postmortem", action="store_true", help="leave the base model out")
    parser.add_argument("--json", action="store_true", help="print plain data")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    cases = [case for case in list_cases() if options.only in (None, case.name)]
    if options.steps:
        cases = [case._replace(steps=options.steps) for case in cases]
    found = [
        Measured(case, measure_parts(case, is_detailed=options.detail), measure_interval(case))
        for case in cases
    ]
    postmortems = {} if options.no_postmortem else measure_postmortems()
    if options.json:
        print(json.dumps(_to_json(found, postmortems), indent=1))
    else:
        print(f"{write_parts(found)}\n\n{write_sums(found)}")
        print(f"\n{write_postmortems(postmortems)}" if postmortems else "")
    is_over = any(one.costs.parts_ms > one.case.limit_ms for one in found)
    return 1 if is_over or any(took > LIMIT_S for took in postmortems.values()) else 0


def write_parts(found: Sequence[Measured]) -> str:
    """Return the table of parts: how often in 1,000 steps, how long each, what part of a step."""
    rows = [{row.label: row for row in one.costs.rows} for one in found]
    head = ("part: times in 1,000 steps x us, % of a step", *(one.case.name for one in found))
    lines = [_line(head), "|" + "---|" * len(head)]
    for label in sorted({label for some in rows for label in some}):
        cells = [label]
        for one, held in zip(found, rows, strict=True):
            row = held.get(label)
            if row is None:
                cells.append("")
            else:
                share = 100 * row.ms_per_step / one.costs.step_ms
                times = f"{1000 * row.calls_per_step:,.0f}"
                cells.append(f"{times} x {1000 * row.ms:,.0f}, {share:.3f} %")
        lines.append(_line(cells))
    return "\n".join(lines)


def write_sums(found: Sequence[Measured]) -> str:
    """Return the table of sums against their limits, with what was seen end to end."""
    head = (
        *("loop", "a step, ms", "sum of parts, us", "limit, us", "of this step"),
        "end to end (95 % interval)",
        f"the first {START_STEPS} steps, s",
    )
    lines = [_line(head), "|" + "---|" * len(head)]
    for case, costs, seen in found:
        missed = ": **missed**" if costs.parts_ms > case.limit_ms else ""
        cells = (
            case.name,
            f"{costs.step_ms:.1f}",
            f"{1000 * costs.parts_ms:.0f}",
            f"{1000 * case.limit_ms:g}{missed}",
            f"{100 * costs.share:.2f} %",
            f"{100 * seen.share:+.2f} % ({100 * seen.low:+.2f} to {100 * seen.high:+.2f})",
            f"{costs.start_s:.2f}",
        )
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


def _to_json(found: Sequence[Measured], postmortems: dict[str, float]) -> dict[str, Any]:
    return {
        "loops": {
            one.case.name: {
                "limit_ms": one.case.limit_ms,
                "parts": asdict(one.costs),
                "share": one.costs.share,
                "end_to_end": one.seen._asdict(),
            }
            for one in found
        },
        "postmortem_s": postmortems,
    }


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
