"""`tsx registry`: where the registry is, whether it is whole, and how to get it back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsx.cli import output

EXAMPLES = (
    "tsx registry check",
    "tsx registry backup /mnt/safe/registry.db",
    "tsx registry rebuild",
)

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


@app.command("check")
def check_registry(
    fast: Annotated[
        bool, typer.Option("--fast", help="Leave out the points: structure and offsets only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Compare the registry with the journals of all runs; exit 3 where they do not agree.

    Every point of every journal is looked up in the database, summaries and rollups are computed
    anew. Runs may be training. Nothing is changed.
    """
    from registry.check import check
    from registry.connection import find_home, find_url
    from tsx.cli.check_report import CheckProgress, show_report, to_plain
    from tsx.cli.reading import open_reader

    open_reader().close()  # what the journals say more than the database is folded in first
    with CheckProgress() as progress:
        report = check(find_home(), find_url(find_home()), fast=fast, progress=progress.show)
    if as_json:
        output.json(to_plain(report))
    else:
        show_report(report, fast=fast)
    return 3 if report.faults else 0


@app.command("backup")
def back_up_registry(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Default: beside it, with the UTC time.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy the registry to a new file, also while runs are recorded, and check the copy.

    The journals are not copied: they have everything, and make a registry again on their own.
    """
    from registry.backup import back_up
    from registry.connection import find_home, find_url
    from tsx.text import format_bytes

    backup = back_up(find_url(find_home()), file)
    if as_json:
        plain = {"path": str(backup.path), "size_bytes": backup.size_bytes, "runs": backup.num_runs}
        output.json(plain)
        return
    output.data(str(backup.path))
    output.talk(f"{backup.num_runs:,} runs, {format_bytes(backup.size_bytes)}, checked")
    output.talk(f"next: TSX_REGISTRY=sqlite:///{backup.path} tsx runs")


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
