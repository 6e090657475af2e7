"""`tsx gc`: make room by a stated rule."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from registry.retention import Item, Outcome, Retention

EXAMPLES = (
    "tsx gc --dry-run",
    "tsx gc --keep-checkpoints 2 --older-than 90d --yes",
    "tsx gc @last --json",
)

_COLUMNS = ("kind", "run", "size", "file", "why")


def command(
    run: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Only of these; default: all.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go; delete nothing.")
    ] = False,
    keep_checkpoints: Annotated[
        int, typer.Option(min=0, help="Newest checkpoints kept of a run, beside its best.")
    ] = 1,
    older_than: Annotated[
        str, typer.Option(help="Since the end of a run, for its logs, traces and dumps.")
    ] = "30d",
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Delete files that are not needed any more, by a stated rule.

    Kept, always: journals, the registry, all files of runs that are alive, the best checkpoint of
    every run and its newest (how many of these, --keep-checkpoints says).

    What goes: other checkpoints of ended runs; traces, steps kept for tsx replay (dumps), and logs
    whose whole text is in the registry, of runs that ended --older-than ago; drafts and partial
    files whose process is gone or that are a day old; copies of the registry from before a
    migration, but the newest three.

    Nothing outside TSX_HOME is touched. Each deleted checkpoint, trace and dump is recorded.
    """
    from registry.connection import find_url
    from registry.home import find_home
    from registry.retention import Retention, find_items
    from tsx.cli.durations import parse_span
    from tsx.cli.reading import open_reader

    kept = Retention(keep_checkpoints, parse_span(older_than, flag="--older-than", example="30d"))
    home = find_home()
    url = find_url(home)
    with open_reader() as reader:
        chosen = frozenset(reader.get_run(reference).id for reference in run or ())
    items = find_items(home, url, kept, chosen or None) if _has_registry(url) else []
    return _clear(home, url, kept, items, dry_run=dry_run, yes=yes, as_json=as_json)


def _clear(
    home: Path,
    url: str,
    kept: Retention,
    items: list[Item],
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Show what may go, delete it where that is wanted, and return the exit status."""
    from registry.retention import delete
    from tsx.cli import output

    if not as_json:
        _show_items(items, home)
    go = bool(items) and not dry_run and (yes or (not as_json and _ask(items)))
    outcome = delete(home, url, kept, items) if go else None
    if as_json:
        output.json(_to_plain(items, outcome))
    elif outcome is not None:
        _show_outcome(outcome)
    elif items and not dry_run and not output.is_terminal(sys.stdin):
        output.talk("nothing was deleted: --yes deletes where nobody can be asked")
    return 1 if outcome is not None and outcome.failed else 0


def _has_registry(url: str) -> bool:
    """Return whether there is a registry to look at."""
    from registry.connection import parse_url
    from registry.faults import get_path, is_sqlite

    parsed = parse_url(url)
    return not is_sqlite(parsed) or get_path(parsed).exists()


def _ask(items: list[Item]) -> bool:
    """Return whether the person at the terminal says yes."""
    from tsx.cli import output
    from tsx.text import format_bytes

    if not output.is_terminal(sys.stdin):
        return False
    size = format_bytes(sum(item.size_bytes for item in items))
    output.talk(f"delete these {len(items)}, {size}? [y/N]")
    answer = sys.stdin.readline().strip().lower()
    if answer in ("y", "yes"):
        return True
    output.talk("nothing was deleted")
    return False


def _show_items(items: list[Item], home: Path) -> None:
    """Show what would go, why, and what that comes to."""
    from tsx.cli import output
    from tsx.text import format_bytes

    if not items:
        output.talk("nothing to delete")
        return
    columns = [output.Column(name, right=name == "size") for name in _COLUMNS]
    rows = [
        (
            item.kind,
            item.run,
            format_bytes(item.size_bytes),
            item.path.relative_to(home).as_posix(),
            item.reason,
        )
        for item in items
    ]
    output.table(columns, rows)
    total = format_bytes(sum(item.size_bytes for item in items))
    output.data(f"{len(items)} to delete, {total}", style="strong")


def _show_outcome(outcome: Outcome) -> None:
    """Say what was freed and what resisted."""
    from tsx.cli import output
    from tsx.text import format_bytes

    for item, why in outcome.failed:
        output.warn(f"{item.path} is kept: {why}")
    size = format_bytes(sum(item.size_bytes for item in outcome.deleted))
    output.talk(f"{len(outcome.deleted)} deleted, {size} freed")
    output.talk("next: tsx du")


def _to_plain(items: list[Item], outcome: Outcome | None) -> dict[str, Any]:
    """Return what was found and done as plain data."""
    deleted = outcome.deleted if outcome is not None else ()
    failed = dict(outcome.failed) if outcome is not None else {}
    return {
        "dry_run": outcome is None,
        "items": [
            {
                "kind": item.kind,
                "run": item.run,
                "path": str(item.path),
                "size_bytes": item.size_bytes,
                "reason": item.reason,
                "deleted": item in deleted,
                "error": failed.get(item, ""),
            }
            for item in items
        ],
        "size_bytes": sum(item.size_bytes for item in items),
        "freed_bytes": sum(item.size_bytes for item in deleted),
    }
