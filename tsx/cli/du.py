"""`tsx du [RUN...]`: what takes the room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from registry.disk_use import HomeUse, RunUse

EXAMPLES = ("tsx du", "tsx du @last sanity --json")

_KINDS = ("journal", "logs", "checkpoints", "traces", "dumps", "other", "points")
_BAR_CELLS = 16


def command(
    run: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Default: all, and the whole home.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what takes the room: runs, caches, data and the registry.

    Every run by kind of file, the largest first. `points` is a run's share of the database, by its
    number of points. Symbolic links are not followed; a file with several names counts once.
    """
    from registry.connection import find_url, parse_url
    from registry.disk_use import measure_home
    from registry.home import find_home
    from tsx.cli import output
    from tsx.cli.reading import open_reader

    with open_reader() as reader:
        chosen = [reader.get_run(reference).id for reference in run or ()]
    home = find_home()
    use = measure_home(home, parse_url(find_url(home)))
    runs = [row for row in use.runs if not chosen or row.run in chosen]
    if as_json:
        plain: dict[str, Any] = {"runs": [_to_plain(row) for row in runs]}
        output.json(plain if chosen else plain | {"home": _summarize(use)})
        return
    _show_runs(runs)
    if not chosen:
        _show_home(use, str(home))


def _to_plain(row: RunUse) -> dict[str, Any]:
    """Return a run's bytes as plain data."""
    head: dict[str, Any] = {"id": row.run, "name": row.name}
    return head | {kind: getattr(row, kind) for kind in _KINDS} | {"total": row.total}


def _summarize(use: HomeUse) -> dict[str, int]:
    """Return the bytes of the home by its parts."""
    files = sum(row.total - row.points for row in use.runs)
    parts = {name: getattr(use, name) for name in ("registry", "cache", "data", "other")}
    return {"runs": files} | parts | {"total": use.total}


def _show_runs(runs: list[RunUse]) -> None:
    """Show a line per run, on a terminal with a bar."""
    from tsx.cli import output
    from tsx.cli.paint import is_for_person
    from tsx.text import ABSENT, format_bytes

    if not runs:
        output.talk("No runs yet.")
        return
    bars = is_for_person()
    most = max(row.total for row in runs) or 1
    names = ["id", "name", *_KINDS, "total"]
    columns = [output.Column(name, right=name not in ("id", "name")) for name in names]
    rows: list[list[object]] = []
    for row in runs:
        sizes = [getattr(row, kind) for kind in _KINDS]
        cells = [format_bytes(size) if size else ABSENT for size in sizes]
        line: list[object] = [row.run, row.name, *cells, format_bytes(row.total)]
        rows.append([*line, "█" * round(_BAR_CELLS * row.total / most)] if bars else line)
    output.table([*columns, output.Column("", style="accent")] if bars else columns, rows)


def _show_home(use: HomeUse, home: str) -> None:
    """Show the parts of the home and what they come to."""
    from tsx.cli import output
    from tsx.text import format_bytes

    output.data("")
    output.data(home, style="strong")
    for name, size in _summarize(use).items():
        output.data(f"{name:<10}{format_bytes(size):>12}")
