"""What is measured of whom, in which order: the parts of one run of `benchmarks.rivals`.

What can be interleaved is: every rival has its turn in each round, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.rivals_contract import KEYS, Rival

WIDTH = 1000  # columns of a chart
WRITERS, READERS = 8, 4


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    rounds: int = 3
    kills: int = 50
    kills_at_full_speed: int = 10
    paces: tuple[tuple[float, int], ...] = ((1, 300), (10, 150), (50, 60))  # milliseconds, calls
    steps: int = 100_000
    long_steps: int = 1_000_000
    slow_steps: int = 10_000  # of eight keys, where recording takes milliseconds
    runs: int = 200
    many_runs: int = 10_000
    crowd_s: float = 5.0


QUICK = Scale(
    rounds=1,
    kills=6,
    kills_at_full_speed=3,
    paces=((1, 100), (10, 50), (50, 20)),
    steps=10_000,
    long_steps=100_000,
    slow_steps=2_000,
    runs=20,
    many_runs=500,
    crowd_s=2.0,
)


@dataclass(frozen=True)
class Task:
    """One process: what is asked of which rival, in which of its folders."""

    rival: type[Rival]
    part: str  # what its answer is kept under
    what: str  # a key of rivals_measures.MEASURES
    folder: str
    options: dict[str, Any] = field(default_factory=dict)
    seconds: float = 5.0  # about what it takes, to foretell the end
    limit_s: float = 600.0  # beyond this it is stopped and counts as failed


def iter_tasks(rivals: Sequence[type[Rival]], scale: Scale) -> Iterator[Task]:
    """Yield everything that is to be done, in order."""
    for turn in range(scale.rounds + 1):
        for rival in rivals:
            order = {"run": f"start{turn}"}
            seconds = 10.0 if rival.slow else 3.0
            yield Task(rival, "start", "start", "start", order, seconds)
    for turn in range(scale.rounds):
        for rival in rivals:
            yield _pace(rival, turn, scale)
    yield from _iter_kills(rivals, "kills", scale.kills, pace_ms=2.0, last_s=1.5)
    many = scale.kills_at_full_speed
    yield from _iter_kills(rivals, "kills_full", many, pace_ms=0.0, last_s=0.5)
    yield from _iter_curves(rivals, scale)
    yield from _iter_lists(rivals, scale)
    for rival in rivals:
        if rival.shares:
            yield _crowd(rival, scale)
    for rival in rivals:
        steps = scale.slow_steps if rival.slow else scale.steps
        size = {"run": "size", "steps": steps, "keys": len(KEYS), "prepare": True}
        yield Task(rival, "size", "fill", "size", size, steps * 4e-4)


def _pace(rival: type[Rival], turn: int, scale: Scale) -> Task:
    """Return one round of paced log calls; fewer where one takes milliseconds."""
    paces = [(pace, calls // 4 if rival.slow else calls) for pace, calls in scale.paces]
    seconds = 2 * sum(calls * (pace + 30 * rival.slow) / 1e3 for pace, calls in paces)
    order = {"run": f"pace{turn}", "paces": paces}
    return Task(rival, "pace", "pace", "pace", order, seconds + 3)


def _iter_kills(
    rivals: Sequence[type[Rival]], part: str, kills: int, *, pace_ms: float, last_s: float
) -> Iterator[Task]:
    """Yield the kills of every rival, then what its reader finds."""
    order = {
        **{"run": "kill", "kills": kills, "pace_ms": pace_ms, "between_s": (0.05, last_s)},
        **{"seed": 1, "settle_s": 3.0},
    }
    if not kills:
        return
    for rival in rivals:
        yield Task(rival, f"{part} made", "kills", part, order, kills * (last_s / 2 + 0.4) + 5)
        yield Task(rival, part, "check_kills", part, {}, 5 + kills * 0.05)


def _iter_curves(rivals: Sequence[type[Rival]], scale: Scale) -> Iterator[Task]:
    """Yield the reading of long curves, whole and as wide as a chart."""
    order: dict[str, Any] = {"run": "series", "steps": scale.steps, "keys": 1}
    for rival in rivals:
        yield Task(rival, "series made", "fill", "series", order, scale.steps * 3e-4)
    for part, width in (("series", {}), ("outline", {"width": WIDTH})):
        for _ in range(scale.rounds):
            for rival in rivals:
                yield Task(rival, part, "read", "series", order | {"times": 3} | width, 8)
    for rival in rivals:
        if rival.promises:
            order = {"run": "long", "steps": scale.long_steps, "keys": 1}
            yield Task(rival, "long made", "fill", "long", order, scale.long_steps * 3e-5)
            for _ in range(scale.rounds):
                order = order | {"times": 5, "width": WIDTH}
                yield Task(rival, "long outline", "read", "long", order, 3)


def _iter_lists(rivals: Sequence[type[Rival]], scale: Scale) -> Iterator[Task]:
    """Yield the lists of some and of many runs."""
    listing = [rival for rival in rivals if rival.lists]
    for rival in listing:
        seconds = scale.runs * 0.15
        yield Task(rival, "list made", "make_runs", "list", {"runs": scale.runs}, seconds)
    for _ in range(scale.rounds):
        for rival in listing:
            order = {"limit": scale.runs, "runs": scale.runs, "times": 3}
            yield Task(rival, "list", "list", "list", order, 5)
    for rival in listing:
        if rival.promises:
            made = {"runs": scale.many_runs}
            yield Task(rival, "page made", "make_journals", "many", made, scale.many_runs * 0.01)
            for _ in range(scale.rounds):
                yield Task(rival, "page", "list", "many", made | {"limit": 100, "times": 5}, 3)


def _crowd(rival: type[Rival], scale: Scale) -> Task:
    """Return writers and readers at one registry."""
    order = {
        **{"writers": WRITERS, "readers": READERS, "pace_ms": 2.0},
        **{"seconds": scale.crowd_s, "start_s": 3.0},
    }
    return Task(rival, "crowd", "crowd", "crowd", order, scale.crowd_s + 15, limit_s=180.0)
