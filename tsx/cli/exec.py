"""`tsx exec -- PROGRAM ...`: run any program as it is, and record what it says."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsx.cli import output
from tsx.cli.run import NoteFlag, TagFlag

if TYPE_CHECKING:
    from tsx.launch.exit_reason import Ending

MAX_CONFIG_BYTES = 4 * 1024 * 1024  # all of it is one line of the journal


def command(
    program: Annotated[
        list[str] | None, typer.Argument(metavar="-- PROGRAM [ARGS]...", show_default=False)
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run; default: the program's.")] = "",
    project: Annotated[str, typer.Option(help="What the run belongs to.")] = "",
    tag: TagFlag = None,
    note: NoteFlag = "",
    config: Annotated[
        str, typer.Option(metavar="FILE", help="JSON or TOML file to keep as the run's config.")
    ] = "",
    steps: Annotated[int, typer.Option(min=0, help="Steps that are planned.")] = 0,
    no_parse: Annotated[
        bool, typer.Option("--no-parse", help="Do not look for metric lines on stdout.")
    ] = False,
) -> int:
    """Run any program and record it.

    It appends JSON lines to the file that $TSX_EVENTS names (docs/events.md), or prints lines such
    as `step=10 loss=0.5`. Its exit status is passed on, 128 + N for signal N.
    """
    from registry.connection import find_home, find_url
    from tsx.errors import ConfigError
    from tsx.launch.exec_program import ProgramPlan, find_program, name_program
    from tsx.launch.exec_run import ProgramRun
    from tsx.launch.plan import new_run_id
    from tsx.launch.provenance import collect

    words = tuple(program or ())
    if not words or not words[0]:
        raise ConfigError("no program to run", next_command="tsx exec -- python train.py")
    home = find_home()
    plan = ProgramPlan(
        run_id=new_run_id(),
        name=name or name_program(words),
        words=words,
        path=find_program(words[0]),
        project=project,
        tags=tuple(tag or ()),
        note=note,
        config=read_config(Path(config)) if config else {},
        steps=steps,
        command=("tsx", *sys.argv[1:]),
        parse=not no_parse,
    )
    run = ProgramRun(plan, home, find_url(home), _talk)
    title = f"run {plan.run_id} {plan.name!r}: {output.clean(shlex.join(words), limit=200)}"
    began = time.monotonic()
    ending = run.record(collect(), title)
    _show_end(plan.run_id, ending, time.monotonic() - began, run.lost)
    return ending.exit_code


def read_config(path: Path) -> dict[str, Any]:
    """Return the config of a JSON or TOML file.

    Raises:
        ConfigError: it cannot be read, is too large, or holds no table of values.
    """
    import json
    import tomllib

    from tsx.errors import ConfigError

    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"--config {path}: {error.strerror}", next_command="a JSON or TOML file"
        ) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"--config {path} is larger than {MAX_CONFIG_BYTES // 2**20} MiB",
            next_command="leave out what is no setting",
        )
    try:
        text = data.decode("utf-8-sig")
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"--config {path}: {reason}", next_command="a JSON or TOML file, by its ending"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"--config {path} holds no table of keys and values", next_command='{"lr": 0.001}'
        )
    return found


def _show_end(run_id: str, ending: Ending, took_s: float, lost: int) -> None:
    """Say how the run ended, on one line."""
    from registry.events import Status
    from tsx.cli.lines import duration

    reason = f": {ending.reason}" if ending.reason else ""
    missing = f"; {lost:,} events could not be written and are lost" if lost else ""
    good = ending.status is Status.COMPLETED and not lost
    _talk(
        f"run {run_id} {ending.status} in {duration(took_s)}{reason}{missing} (tsx show {run_id})",
        style="good" if good else "warning",
    )


def _talk(text: str, *, style: output.Style = "") -> None:
    """Write a line to stderr, if anybody reads it: the program goes on without."""
    try:
        output.talk(text, style=style)
    except OSError:
        output.abandon_broken()
