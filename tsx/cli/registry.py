"""`tsx registry`: where the registry is, and how to get it back."""

from __future__ import annotations

from typing import Annotated

import typer

from tsx.cli import output

app = typer.Typer()


@app.callback()
def group() -> None:
    """Look after the registry of runs."""


@app.command("path")
def show_path(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print where the registry and the journals of the runs are."""
    from registry.connection import find_home, find_url, parse_url
    from registry.faults import show

    home = find_home()
    where = {
        "home": str(home),
        "runs": str(home / "runs"),
        "registry": show(parse_url(find_url(home))),
    }
    if as_json:
        output.json(where)
        return
    for name, place in where.items():
        output.data(f"{name:<10}{place}")


@app.command("migrate")
def migrate_registry() -> None:
    """Bring an older registry to this version's schema; a copy of it is kept beside."""
    from registry.connection import find_home, find_url, open_engine

    open_engine(find_url(find_home()), readonly=False).dispose()
    output.talk("the registry has this version's schema")
    output.talk("next: tsx runs")


@app.command("rebuild")
def rebuild_registry(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a new registry out of the journals of all runs.

    The old file stays beside the new one; one that TSX_REGISTRY names is never moved.
    """
    from registry.connection import find_home, find_url
    from registry.recover import rebuild

    home = find_home()
    report = rebuild(home, find_url(home))
    if as_json:
        output.json(
            {
                "runs": report.runs,
                "lines": report.lines,
                "bad_lines": report.bad_lines,
                "unreadable": report.unreadable,
                "kept": str(report.kept) if report.kept else None,
            }
        )
        return
    output.data(f"{report.runs} runs from {report.lines:,} journal lines")
    if report.bad_lines:
        output.warn(f"{report.bad_lines:,} lines were no events and are left out")
    for folder in report.unreadable:
        output.warn(f"{folder} cannot be read and is left out")
    if report.kept:
        output.talk(f"the old registry is kept as {report.kept}")
    output.talk("next: tsx runs")
