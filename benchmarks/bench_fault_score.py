"""How many planted faults are named, kind by kind: `python -m benchmarks.bench_fault_score`.

Plays every loop of `tests/faults` in a watched run; embedded plants go through the real trainer,
and once more, for comparison, through `run.watch` and `run.compute`. Healthy loops and shipped
recipes (`--smoke`) must raise no finding of severity warning or above. Exit status 1 where a share
is under its limit or something healthy is accused. `--kind KIND` and `--only NAME` play a part,
`--json` prints plain data instead of the table; what is not right is listed below it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fault_verdicts import (
    Verdict,
    judge,
    list_missed_limits,
    measure_shares,
    write_misses,
    write_table,
)
from registry.events import Finding
from tests.faults.healthy.embedded import RECIPES
from tests.faults.plant import Plant, list_healthy, list_plants
from tests.faults.watched import list_alarms, play_watched, train_recipe_watched, train_watched

Alarms = dict[str, list[str]]  # by the name of what is healthy


def main() -> int:
    """Play what is asked for and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", help="play these kinds alone, no healthy loops")
    parser.add_argument("--only", action="append", help="play these plants or healthy loops alone")
    parser.add_argument("--json", action="store_true", help="print plain data")
    options = parser.parse_args()
    plants = [
        plant
        for plant in list_plants()
        if (not options.kind or plant.kind in options.kind)
        and (not options.only or plant.name in options.only)
    ]
    verdicts = [_play(plant) for plant in plants]
    embedded = [plant for plant in plants if plant.architecture == "embedded"]
    looped = [_judge(plant, play_watched) for plant in embedded]
    alarms = {} if options.kind else _accuse(options.only)
    missed = list_missed_limits(verdicts)
    if options.json:
        print(json.dumps(_to_json(verdicts, looped, alarms), indent=1))
    else:
        _print(verdicts, looped, alarms, missed)
    return 1 if missed or any(alarms.values()) else 0


def _play(plant: Plant) -> Verdict:
    """Return how a plant is answered where its users would meet it."""
    return _judge(plant, train_watched if plant.architecture == "embedded" else play_watched)


def _judge(plant: Plant, play: Callable[[Plant], list[Finding]]) -> Verdict:
    try:
        torch._dynamo.reset()  # nothing that an earlier plant compiled may count
        return judge(plant, play(plant))
    except Exception as error:
        return judge(plant, [], error=f"{type(error).__name__}: {error}".splitlines()[0])


def _accuse(only: Sequence[str] | None) -> Alarms:
    """Return what is said of each healthy loop and recipe; an error is an alarm too."""
    alarms: Alarms = {}
    with tempfile.TemporaryDirectory() as home:
        tasks: dict[str, Callable[[], list[Finding]]] = {
            loop.name: lambda loop=loop: play_watched(loop)  # type: ignore[misc]
            for loop in list_healthy()
        }
        for name in RECIPES:
            tasks[f"recipe {name}"] = lambda name=name: train_recipe_watched(  # type: ignore[misc]
                name, Path(home)
            )
        for name, task in tasks.items():
            if only and name not in only:
                continue
            try:
                found = list_alarms(task())
                alarms[name] = [f"{f.kind} [{f.module}] {f.where} {f.cause}" for f in found]
            except Exception as error:
                alarms[name] = [f"{type(error).__name__}: {error}"]
    return alarms


def _print(
    verdicts: Sequence[Verdict], looped: Sequence[Verdict], alarms: Alarms, missed: Sequence[str]
) -> None:
    print(write_table(verdicts))
    print(f"\nMore than one thing was said of {sum(v.others > 0 for v in verdicts)} plants.")
    if looped:
        shares = ", ".join(f"{k} {100 * v:.1f} %" for k, v in measure_shares(looped).items())
        print(f"Embedded plants in a watched loop ({len(looped)}): {shares}.")
    if alarms:
        accused = {name: found for name, found in alarms.items() if found}
        print(f"Healthy loops and recipes accused: {len(accused)} of {len(alarms)}.")
        for name, found in accused.items():
            print(*(f"- {name}: {text}" for text in found), sep="\n")
    if misses := write_misses(verdicts):
        print(f"\nNot right:\n\n{misses}")
    if missed:
        print(f"\nUnder their limit: {', '.join(missed)}.")


def _to_json(
    verdicts: Sequence[Verdict], looped: Sequence[Verdict], alarms: Alarms
) -> dict[str, Any]:
    return {
        "plants": [verdict.to_json() for verdict in verdicts],
        "embedded_in_a_loop": [verdict.to_json() for verdict in looped],
        "shares": measure_shares(verdicts),
        "shares_blind": measure_shares([v for v in verdicts if v.blind]),
        "healthy": alarms,
    }


if __name__ == "__main__":
    sys.exit(main())
