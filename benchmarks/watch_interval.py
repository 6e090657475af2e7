"""A watched loop against the same one unwatched, end to end, with an interval around the ratio.

The two take turns step by step, in random order, in one process. Each has a clock of its own that
runs in its turns only, so looks come as often as they would if the loop ran alone. Steps with a
traced call are left out of both: they come at doubling distances, a handful in a run.
"""

from __future__ import annotations

import random
import statistics
from typing import NamedTuple
from unittest import mock

from benchmarks.plain_loops import OwnClock
from benchmarks.watch_parts import START_STEPS
from benchmarks.watched_loops import Case
from tsx.diagnostics.watch import Watch

BLOCK = 10  # pairs of steps that are drawn together: neighbours share what else is going on
DRAWS = 2000
TAIL = 0.025


class Interval(NamedTuple):
    """What watching adds to a step, as a share of it: ratio of sums and 95 % interval."""

    plain_ms: float
    share: float
    low: float
    high: float


def measure_interval(case: Case) -> Interval:
    """Return what watching adds to a loop, after its first steps."""
    clocks = OwnClock(), OwnClock()
    with mock.patch.dict(Watch.__init__.__kwdefaults__, {"clock": clocks[1]}):
        loops = case.make(False), case.make(True)
    pairs: list[tuple[float, float]] = []
    order = random.Random(0)
    for step in range(1, START_STEPS + case.steps + 1):
        took = [0.0, 0.0]
        for which in order.sample((0, 1), 2):
            clocks[which].go()
            loops[which].step()
            took[which] = clocks[which].rest()
        if step > START_STEPS and step & (step - 1):
            pairs.append((took[0], took[1]))
    for loop in loops:
        loop.close()
    return bootstrap(pairs)


def bootstrap(pairs: list[tuple[float, float]]) -> Interval:
    """Return the share by which the second of pairs exceeds the first, and its interval."""
    blocks = [
        [sum(side) for side in zip(*pairs[at : at + BLOCK], strict=True)]
        for at in range(0, len(pairs) - len(pairs) % BLOCK, BLOCK)
    ]
    draw = random.Random(0)
    shares = sorted(_divide(draw.choices(blocks, k=len(blocks))) for _ in range(DRAWS))
    low, high = shares[int(TAIL * DRAWS)], shares[int((1 - TAIL) * DRAWS) - 1]
    plain_ms = 1000 * statistics.median(first for first, _ in pairs)
    return Interval(plain_ms, _divide(blocks), low, high)


def _divide(blocks: list[list[float]]) -> float:
    return sum(block[1] for block in blocks) / sum(block[0] for block in blocks) - 1.0
