"""`tsx train`: the training command of the research notes, flag by flag."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from tsx.cli import output
from tsx.cli.run import (
    DetachFlag,
    DeviceFlag,
    DryRunFlag,
    NameFlag,
    NoteFlag,
    SeedFlag,
    SetFlag,
    SmokeFlag,
    TagFlag,
)
from tsx.cli.train_flags import iter_parameters, list_flags_of

NAME = "train"  # of the recipe that the registry keeps, and of a run without --name


def command(
    *,
    overrides: SetFlag = None,
    seed: SeedFlag = None,
    name: NameFlag = "",
    tag: TagFlag = None,
    note: NoteFlag = "",
    device: DeviceFlag = "",
    smoke: SmokeFlag = False,
    dry_run: DryRunFlag = False,
    detach: DetachFlag = False,
    **typed: Any,
) -> int:
    """Train as the research notes' command line says.

    Their flags, under their names. The run is recorded, resumed and compared as a recipe's, and a
    recipe is the shorter way to say the same: `tsx run sanity`. docs/moving.md has the whole table.
    """
    asked = list(overrides or [])
    asked += [f"train.seed={seed}"] if seed is not None else []
    asked += [f"train.device={device}"] if device else []
    run = typed.pop("resume_checkpoint", None)
    if run is not None:
        unfit = {"--name": name, "--tag": tag, "--note": note, "--smoke": smoke}
        unfit |= {"--dry-run": dry_run, "--detach": detach}
        return _go_on(run, typed, asked, [flag for flag, value in unfit.items() if value])
    return _begin(
        typed, asked, name, tuple(tag or ()), note, smoke=smoke, dry_run=dry_run, detach=detach
    )


def _sign() -> inspect.Signature:
    """Return the command's signature with the flags of the table in place of `typed`."""
    own = inspect.signature(command, eval_str=True)
    kept = [param for param in own.parameters.values() if param.kind is not param.VAR_KEYWORD]
    return own.replace(parameters=[*iter_parameters(), *kept])


command.__signature__ = _sign()  # type: ignore[attr-defined]


def _begin(
    typed: dict[str, Any],
    asked: list[str],
    name: str,
    tags: tuple[str, ...],
    note: str,
    *,
    smoke: bool,
    dry_run: bool,
    detach: bool,
) -> int:
    """Start a new run."""
    from recipes.overrides import parse_overrides
    from registry.home import find_home
    from tsx.cli.expansion import expand_settings
    from tsx.cli.run import make_plans, start
    from tsx.cli.train_config import Told, nest, read_line
    from tsx.errors import ConfigError

    reading = read_line(typed, Told(find_home(), parse_overrides(asked).values.keys()))
    try:
        resolved, runs = expand_settings(NAME, nest(reading.values), asked, smoke=smoke)
    except ConfigError as error:
        error.next_command = error.next_command or _name_flags(error.message)
        raise
    plans = make_plans(resolved, runs, seeds=1, name=name, tags=tags, note=note)
    for remark in reading.remarks:
        output.talk(remark)
    return start(plans, dry_run=dry_run, detach=detach)


def _go_on(run: str, typed: dict[str, Any], asked: list[str], unfit: list[str]) -> int:
    """Go on with a run, with what was typed laid over its own config."""
    from recipes.overrides import parse_overrides
    from registry.home import find_home
    from tsx.cli.resume import go_on
    from tsx.cli.train_config import Told, read_line
    from tsx.errors import ConfigError

    if unfit:
        raise ConfigError(
            f"{unfit[0]} does not go with --resume-checkpoint: the run goes on as what it is",
            next_command=f"take {unfit[0]} off",
        )
    home = find_home()
    given = parse_overrides(asked)
    for key in given.repeated:
        output.warn(f"{key} is given more than once; the last one wins")
    reading = read_line(typed, Told(home, given.values.keys()), is_resume=True)
    run = _find_run(run, home)
    for remark in reading.remarks:
        output.talk(remark)
    return go_on(run, reading.values | given.values)


def _find_run(given: str, home: Path) -> str:
    """Return the run that a checkpoint folder belongs to; anything that is no path as it is.

    Raises:
        ConfigError: a path that is no checkpoint of a run of this home, or not its last one.
    """
    from tsx.errors import ConfigError

    path = Path(given).expanduser()
    if "/" not in given and not given.endswith((".pt", ".pth", ".safetensors")):
        return given
    runs = (home / "runs").resolve()
    place = path.resolve()
    if not place.is_relative_to(runs) or place == runs:
        raise ConfigError(
            f"--resume-checkpoint {given} is no checkpoint of a run in {home}; pickled ones (.pt) "
            "are never read",
            next_command="tsx runs  (a run's id or name will do)",
        )
    run, *below = place.relative_to(runs).parts
    if not place.is_dir() or below[:1] not in ([], ["checkpoints"]) or len(below) > 2:
        raise ConfigError(f"--resume-checkpoint {given} is no checkpoint", next_command="tsx runs")
    steps = sorted(folder.name for folder in place.parent.glob("step-*")) if below[1:] else []
    if steps and place.name != steps[-1]:
        raise ConfigError(
            f"--resume-checkpoint {given} is not the last checkpoint of run {run}, {steps[-1]}: a "
            "run goes on from its last one",
            next_command=f"tsx train --resume-checkpoint {run}",
        )
    return run


def _name_flags(message: str) -> str:
    """Return what to change, for a message that names config keys."""
    keys = dict.fromkeys(re.findall(r"\b(\w+)=", message))
    flags = dict.fromkeys(flag for key in keys for flag in list_flags_of(key))
    return f"change {' or '.join(flags)}; tsx train --help" if flags else "tsx train --help"
