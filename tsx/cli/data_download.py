"""`tsx data download`: fetch partitions of Time-300B, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsx.cli import output

if TYPE_CHECKING:
    from tsx.cli.transfer import TransferView
    from tsx.data.download_plan import Plan
    from tsx.data.hub import Hub, Listing, Unreachable
    from tsx.data.series import DataSet

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command(
    partition_set: Annotated[
        list[str] | None,
        typer.Option(metavar="debug|train|finance", help="A named choice; may be repeated."),
    ] = None,
    partitions: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Partitions, domains or globs; may be repeated."),
    ] = None,
    time300b_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Where to; default: $TSX_HOME/data/time300b.")
    ] = "",
    repo: Annotated[
        str, typer.Option(metavar="ID", help="Data set on the Hub; default: Maple728/Time-300B.")
    ] = "",
    revision: Annotated[
        str, typer.Option(metavar="REV", help="Branch, tag or commit; default: main.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show count and size, fetch and write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> int:
    """Download partitions of Time-300B, checked and resumable.

    A break (a lost connection, Ctrl-C, a full disk) loses nothing: the same command goes on. The
    token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT names another Hub.
    """
    from registry.home import find_home
    from tsx.cli.transfer import make_view
    from tsx.data.hub import DEFAULT_REPO, Hub, Unreachable, warn_old_token
    from tsx.data.partitions import list_notices, list_patterns, locate_time300b, parse_sets

    sets = parse_sets(partition_set or ())
    patterns = list_patterns(sets, partitions or ())
    home_folder = locate_time300b(find_home())
    folder = Path(os.path.expanduser(time300b_dir)).absolute() if time300b_dir else home_folder
    if warning := warn_old_token():
        output.warn(warning)
    for notice in list_notices(sets):
        output.talk(notice)
    view = make_view()
    hub = Hub(repo or DEFAULT_REPO, view.note)
    with hub.session():
        try:
            listing = hub.list_files(revision)
        except Unreachable as error:
            return _stay(error, folder, hub.repo, revision, patterns, as_json=as_json)
        return _go(hub, listing, folder, patterns, view, dry_run=dry_run, as_json=as_json)


def _go(
    hub: Hub,
    listing: Listing,
    folder: Path,
    patterns: tuple[str, ...],
    view: TransferView,
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Show what there is to do and, unless this is a rehearsal, do it."""
    from tsx.data.download import download
    from tsx.data.download_plan import check_space, make_plan

    plan = make_plan(folder, listing, patterns)
    if not as_json:
        _show_plan(plan)
    free = check_space(plan)
    output.talk(_summarise(plan, free))
    if dry_run:
        if as_json:
            output.json(_to_document(plan, free, None))
        output.talk("dry run: nothing was fetched or written")
        return 0
    with view:
        datasets = download(plan, hub, view.watch, view.note)
    if as_json:
        output.json(_to_document(plan, free, datasets))
    series = sum(dataset.num_series for dataset in datasets)
    points = sum(dataset.num_elements for dataset in datasets)
    output.talk(
        f"verified: {len(datasets)} data sets, {series:,} series, {points:,} points in {folder}",
        style="good",
    )
    output.talk(f"next: {_name_next(folder)}")
    return 0


def _stay(
    error: Unreachable,
    folder: Path,
    repo: str,
    revision: str,
    patterns: tuple[str, ...],
    *,
    as_json: bool,
) -> int:
    """Say that there is no way to the Hub, and what is on disk; fine where that is all of it."""
    from tsx.data.download import is_complete, list_on_disk
    from tsx.data.hub import DEFAULT_REVISION

    found = list_on_disk(folder)
    complete = is_complete(folder, repo, patterns, revision or DEFAULT_REVISION)
    if as_json:
        output.json(
            {
                "repo": repo,
                "directory": str(folder),
                "offline": error.message,
                "complete": complete,
                "on_disk": [{"partition": name, "fault": fault} for name, fault in found],
            }
        )
    else:
        for name, fault in found:
            output.data(f"on disk: {name}{f': not whole: {fault}' if fault else ''}")
    if not found:
        output.talk(f"on disk: nothing in {folder}")
    if not complete:
        raise error
    output.warn(error.message)
    output.talk("all of this request was downloaded and verified before, and is still there")
    return 0


def _show_plan(plan: Plan) -> None:
    """Print a line a partition."""
    from tsx.text import format_bytes

    rows = []
    for partition in plan.partitions:
        missing = plan.count_missing([file for file in partition.files if file in plan.missing])
        on_disk = partition.bytes - missing
        sizes = [format_bytes(size) for size in (partition.bytes, on_disk, missing)]
        rows.append((partition.name, len(partition.files), *sizes))
    heads = [output.Column(name, right=True) for name in ("files", "size", "on disk", "to fetch")]
    output.table(["partition", *heads], rows)


def _summarise(plan: Plan, free: int) -> str:
    """Return the plan in a sentence."""
    from tsx.text import format_bytes

    missing = plan.count_missing(plan.missing)
    unchecked = len(plan.unchecked)
    check = f" ({unchecked} files on disk are checked first)" if unchecked else ""
    return (
        f"{plan.listing.repo} at {plan.listing.commit[:12]} ({plan.listing.revision}): "
        f"{len(plan.files)} files, {format_bytes(plan.bytes)}; {len(plan.missing)} files, "
        f"{format_bytes(missing)} to fetch{check}; {format_bytes(free)} free in {plan.folder}"
    )


def _to_document(plan: Plan, free: int, datasets: list[DataSet] | None) -> dict[str, Any]:
    """Return what --json prints."""
    opened = {dataset.name: dataset for dataset in datasets or ()}
    missing = plan.missing
    entries = []
    for partition in plan.partitions:
        entry: dict[str, Any] = {
            "name": partition.name,
            "files": len(partition.files),
            "bytes": partition.bytes,
            "bytes_to_fetch": plan.count_missing([f for f in partition.files if f in missing]),
        }
        if (dataset := opened.get(partition.name)) is not None:
            entry |= {
                "series": dataset.num_series,
                "points": dataset.num_elements,
                "dtype": dataset.dtype.name,
                "fingerprint": dataset.fingerprint,
            }
        entries.append(entry)
    return {
        "repo": plan.listing.repo,
        "revision": plan.listing.revision,
        "commit": plan.listing.commit,
        "directory": str(plan.folder),
        "files": len(plan.files),
        "bytes": plan.bytes,
        "bytes_to_fetch": plan.count_missing(missing),
        "bytes_free": free,
        "dry_run": datasets is None,
        "partitions": entries,
    }


def _name_next(folder: Path) -> str:
    """Return a command that trains on what was downloaded."""
    from registry.home import find_home
    from tsx.data.partitions import locate_time300b

    if folder == locate_time300b(find_home()):
        return "tsx run sanity"
    return f"tsx run sanity --data {folder}"
