"""`tsx run RECIPE`: expand it into runs, train each in a process of its own, record every line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsx.cli import output

if TYPE_CHECKING:
    from tsx.launch.plan import RunPlan

MAX_SEEDS = 1000


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or path; see `tsx recipes`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the (first) run.")] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=MAX_SEEDS, help="Runs with seeds s, s+1, s+2, ...")
    ] = 1,
    name: Annotated[str, typer.Option(help="Name of the run; default: the recipe's.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Tag; may be repeated.")] = None,
    note: Annotated[str, typer.Option(help="A sentence to remember it by.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "",
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Series to train on.")] = None,
    allow_nonfinite: Annotated[
        bool,
        typer.Option("--allow-nonfinite", help="Leave NaN and infinity in the data out."),
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink to under a minute, through the same code.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prepare and check everything, train nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Train in the background and return at once.")
    ] = False,
) -> int:
    """Train a recipe and record every line of it.

    Each run gets a process of its own; Ctrl-C writes a checkpoint and ends it as `interrupted`.
    """
    from registry.connection import find_home, find_url

    asked = list(overrides or [])
    asked += [f"train.seed={seed}"] if seed is not None else []
    asked += [f"train.device={device}"] if device else []
    asked += [f"data.path={name_path(data)}"] if data is not None else []
    asked += ["data.allow_nonfinite=true"] if allow_nonfinite else []
    plans = _plan(recipe, asked, seeds, name, tuple(tag or ()), note, smoke=smoke)
    home = find_home()
    url = find_url(home)
    if dry_run:
        return _rehearse(plans, home)
    if detach:
        return _detach(plans, home, url)
    return train(plans, home, url)


def name_path(path: str, *, of: str = "--data") -> str:
    """Return the path as --set takes it: an absolute one is no TOML value, but text as it is.

    Raises:
        ConfigError: there is none; `of` says what is empty.
    """
    if not path:
        from tsx.errors import ConfigError

        raise ConfigError(f"{of} is empty", next_command=f"a path for {of}")
    return os.path.abspath(Path(path).expanduser())


def _plan(
    recipe: str,
    overrides: list[str],
    seeds: int,
    name: str,
    tags: tuple[str, ...],
    note: str,
    *,
    smoke: bool,
) -> list[RunPlan]:
    """Expand the recipe's sweep and the seeds into one plan a run."""
    from tsx.cli.expansion import expand_recipe
    from tsx.launch.plan import RunPlan, as_sweep, new_run_id, with_seeds

    resolved, runs = expand_recipe(recipe, overrides, smoke=smoke)
    for key in resolved.repeated:
        output.warn(f"{key} is given more than once; the last one wins")
    plans = [
        RunPlan(
            run_id=new_run_id(),
            name=f"{name or resolved.name}{'-' + suffix if suffix else ''}",
            recipe=resolved.name,
            config=config,
            tags=tags,
            note=note,
            smoke=smoke,
            command=("tsx", *sys.argv[1:]),
        )
        for suffix, config in runs
    ]
    return as_sweep([seeded for plan in plans for seeded in with_seeds(plan, seeds)])


def train(plans: list[RunPlan], home: Path, url: str) -> int:
    """Train the plans here, one after another."""
    from tsx.cli.live import make_view
    from tsx.launch.provenance import collect
    from tsx.launch.supervise import Supervisor

    endings = Supervisor(home, url, make_view()).run_all(plans, collect())
    if len(plans) > 1:
        output.talk(f"{len(endings)} of {len(plans)} runs done")
        output.talk(f"next: tsx compare {' '.join(plan.run_id for plan in plans[:4])}")
    return next((ending.exit_code for ending in endings if ending.exit_code), 0)


def _rehearse(plans: list[RunPlan], home: Path) -> int:
    """Show what the first plan would do, and how many there are."""
    from tsx.cli.live import PlainView
    from tsx.launch.rehearse import iter_rehearsal

    view = PlainView(plans[0].config)
    for event in iter_rehearsal(plans[0].config, home):
        view.see(event)
    count = len(plans)
    output.talk(
        f"dry run: {count} run{'s' if count > 1 else ''} of {plans[0].config.train.steps} steps; "
        "nothing was trained or recorded"
    )
    return 0


def _detach(plans: list[RunPlan], home: Path, url: str) -> int:
    """Hand the plans to a supervisor in the background and print the run ids."""
    from tsx.launch.detached import start_detached
    from tsx.launch.provenance import collect

    pid = start_detached(plans, collect(), home, url)
    for plan in plans:
        output.data(plan.run_id)
    output.talk(f"training in the background; stop it with: kill {pid}")
    output.talk("next: tsx dashboard")
    return 0
