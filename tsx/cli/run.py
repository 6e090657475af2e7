"""`tsx run RECIPE`: expand it into runs, train each in a process of its own, record every line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsx.cli import output

if TYPE_CHECKING:
    from recipes.loader import Plan
    from tsx.config import RunConfig
    from tsx.launch.plan import RunPlan

MAX_SEEDS = 1000

# Of `tsx run` and of `tsx train` alike.
SetFlag = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."),
]
SeedFlag = Annotated[int | None, typer.Option(min=0, help="Seed of the (first) run.")]
NameFlag = Annotated[str, typer.Option(help="Name of the run; default: the recipe's.")]
TagFlag = Annotated[list[str] | None, typer.Option(help="Tag; may be repeated.")]
NoteFlag = Annotated[str, typer.Option(help="A sentence to remember it by.")]
DeviceFlag = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
SmokeFlag = Annotated[
    bool, typer.Option("--smoke", help="Shrink to under a minute, through the same code.")
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Prepare and check everything, train nothing.")
]
DetachFlag = Annotated[
    bool, typer.Option("--detach", help="Train in the background and return at once.")
]


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or path; see `tsx recipes`.")],
    overrides: SetFlag = None,
    seed: SeedFlag = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=MAX_SEEDS, help="Runs with seeds s, s+1, s+2, ...")
    ] = 1,
    name: NameFlag = "",
    tag: TagFlag = None,
    note: NoteFlag = "",
    device: DeviceFlag = "",
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Series to train on.")] = None,
    allow_nonfinite: Annotated[
        bool,
        typer.Option("--allow-nonfinite", help="Leave NaN and infinity in the data out."),
    ] = False,
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory a run may use, such as 8GiB.")
    ] = "",
    grow: Annotated[
        str, typer.Option(metavar="SECTION.KEY", help="Search the largest value that fits.")
    ] = "",
    start_at: Annotated[
        int | None, typer.Option("--start", min=1, help="First value of a search.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Last value of a search.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a search's table as JSON.")
    ] = False,
    smoke: SmokeFlag = False,
    dry_run: DryRunFlag = False,
    detach: DetachFlag = False,
) -> int:
    """Train a recipe and record every line of it.

    Each run gets a process of its own; Ctrl-C writes a checkpoint and ends it as `interrupted`. A
    recipe with [search], or --grow, asks for the largest value that fits into memory instead.
    """
    from tsx.cli import search
    from tsx.cli.expansion import expand_recipe

    asked = list(overrides or [])
    asked += [f"train.seed={seed}"] if seed is not None else []
    asked += [f"train.device={device}"] if device else []
    asked += [f"data.path={name_path(data)}", "data.source=auto"] if data is not None else []
    asked += ["data.allow_nonfinite=true"] if allow_nonfinite else []
    if memory_budget:
        asked.append(f"perf.memory_budget_gib={search.parse_budget(memory_budget)}")
    resolved, runs = expand_recipe(recipe, asked, smoke=smoke)
    plans = make_plans(resolved, runs, seeds=seeds, name=name, tags=tuple(tag or ()), note=note)
    sought = search.find_search(resolved, runs[0][1], grow=grow, start=start_at, limit=limit)
    search.check_flags(sought, seeds=seeds, detach=detach, as_json=as_json)
    if sought is not None:
        return search.run(sought, plans[0], resolved, dry_run=dry_run, as_json=as_json)
    return start(plans, dry_run=dry_run, detach=detach)


def start(plans: list[RunPlan], *, dry_run: bool, detach: bool) -> int:
    """Train the plans here or in the background, or rehearse the first; return the exit status."""
    from registry.connection import find_home, find_url

    home = find_home()
    url = find_url(home)
    for plan in plans:
        _check_data(plan.config, home)
    if dry_run:
        return _rehearse(plans, home)
    if detach:
        return _detach(plans, home, url)
    return train(plans, home, url)


def _check_data(config: RunConfig, home: Path) -> None:
    """Refuse a run on Time-300B that is not there before anything of it is recorded."""
    from tsx.config import Source

    if config.data.source is Source.TIME300B:
        from tsx.data.corpus import refuse_missing

        refuse_missing(config.data, home)


def name_path(path: str, *, of: str = "--data") -> str:
    """Return the path as --set takes it: an absolute one is no TOML value, but text as it is.

    Raises:
        ConfigError: there is none; `of` says what is empty.
    """
    if not path:
        from tsx.errors import ConfigError

        raise ConfigError(f"{of} is empty", next_command=f"a path for {of}")
    return os.path.abspath(Path(path).expanduser())


def make_plans(
    resolved: Plan,
    runs: list[tuple[str, RunConfig]],
    *,
    seeds: int,
    name: str,
    tags: tuple[str, ...],
    note: str,
) -> list[RunPlan]:
    """Return one plan for each run of the recipe's sweep and each seed."""
    from tsx.launch.plan import RunPlan, as_sweep, new_run_id, with_seeds

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
            smoke=resolved.smoke,
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
