"""`tsx resume RUN`: go on with the same run from its last checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsx.cli import output

if TYPE_CHECKING:
    from registry.views import ArtifactRow


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id, prefix, name, @last or @-2.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Change one value, such as train.steps=400."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "",
) -> int:
    """Go on with a run from its last checkpoint.

    The same run continues bit for bit, whatever its status. More steps, other intervals or another
    device may be asked for; another architecture, data or seed is refused with the difference.
    """
    from recipes.overrides import parse_overrides

    asked = list(overrides or []) + ([f"train.device={device}"] if device else [])
    given = parse_overrides(asked)
    for key in given.repeated:
        output.warn(f"{key} is given more than once; the last one wins")
    return go_on(run, given.values)


def go_on(run: str, values: dict[str, Any]) -> int:
    """Resume a run with "section.key" values laid over its recorded config; return the status.

    Raises:
        UnknownRun: no such run.
        ConfigError: a value that does not hold, or one that another run would have.
    """
    from registry.connection import find_home, find_url
    from registry.queries import Reader
    from registry.recover import recover
    from tsx.cli.live import make_view
    from tsx.config import decode
    from tsx.errors import ConfigError
    from tsx.launch.supervise import Supervisor

    home = find_home()
    url = find_url(home)
    recover(home, url)
    with Reader.open(url) as reader:
        detail = reader.get_detail(reader.get_run(run).id)
    _tell_removed(detail.artifacts)
    try:
        config = decode(_lay_over(detail.config, values), place=f"run {detail.run.id}")
    except ConfigError as error:
        if not detail.run.recipe:
            raise ConfigError(
                f"run {detail.run.id} is a program's own: only that program can go on with it",
                next_command=f"in it, tsx.init(resume={detail.run.id!r}, step=STEP)",
            ) from error
        error.next_command = error.next_command or f"tsx show {detail.run.id}"
        raise
    ending = Supervisor(home, url, make_view()).resume(
        detail.run.id, detail.run.name, config, ("tsx", *sys.argv[1:])
    )
    return ending.exit_code


def _tell_removed(artifacts: Sequence[ArtifactRow]) -> None:
    """Warn where the newest checkpoint of the run was deleted to make room."""
    from tsx.text import format_when

    saved = [file for file in artifacts if file.kind == "checkpoint"]
    when = saved[-1].metadata.get("removed") if saved else None
    if isinstance(when, int | float):
        output.warn(
            f"the checkpoint of step {saved[-1].step} was deleted by tsx gc ({format_when(when)}); "
            "the run goes on from one that is left"
        )


def _lay_over(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the recorded config with "section.key" values set."""
    merged = dict(config)
    for path, value in values.items():
        section, _, key = path.partition(".")
        keys = merged.get(section)
        merged[section] = {**(keys if isinstance(keys, dict) else {}), key: value}
    return merged
