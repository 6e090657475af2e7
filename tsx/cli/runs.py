"""`tsx runs`: every run, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from registry.views import RunRow
    from tsx.ink import Line

_MOST = 2**62  # what the database counts to


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the newest N; default all.")
    ] = None,
    offset: Annotated[
        int, typer.Option("--offset", min=0, help="Leave out the newest N: the next page.")
    ] = 0,
    status: Annotated[
        str | None, typer.Option("--status", help="Only runs of this status: running, killed ...")
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only runs with this tag.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Only runs of a recipe.")] = None,
    project: Annotated[
        str | None, typer.Option("--project", help="Only runs of a project.")
    ] = None,
) -> None:
    """List runs, newest first."""
    from tsx.cli import output
    from tsx.cli.reading import open_reader, to_plain_run
    from tsx.run_table import KEYS

    _check_status(status)
    narrowed = {"status": status, "tag": tag, "recipe": recipe, "project": project}
    keys = None if as_json else KEYS
    with open_reader() as reader:
        runs = reader.list_runs(limit=limit, offset=min(offset, _MOST), keys=keys, **narrowed)
    if as_json:
        output.json({"runs": [to_plain_run(run) for run in runs]})
    elif runs:
        _show_table(runs)
    else:
        is_narrowed = offset > 0 or any(value is not None for value in narrowed.values())
        output.talk("No such runs." if is_narrowed else "No runs yet.")
        output.talk("next: tsx runs" if is_narrowed else "next: tsx run sanity")


def _check_status(status: str | None) -> None:
    """Raise ConfigError for a status that no run can have."""
    from tsx.errors import ConfigError
    from tsx.ink import STATUSES

    if status is not None and status not in STATUSES:
        raise ConfigError(
            f"--status {status!r}: no such status; valid: {', '.join(STATUSES)}",
            next_command="tsx runs",
        )


def _show_table(runs: list[RunRow]) -> None:
    """Show one line per run."""
    import time

    from tsx.cli.paint import find_width, is_for_person, show_lines
    from tsx.run_table import make_lines

    lines: list[Line] = make_lines(runs, time.time(), find_width() if is_for_person() else None)
    show_lines(lines)
