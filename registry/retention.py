"""What may be deleted to make room, and deleting it.

Kept, always: journals, the registry, every file of a run that is alive, the best and the newest
checkpoints, and whatever is not named below. Nothing outside the home is ever touched, no symbolic
link is followed, and what a run announced as its file gets a Removed event before it goes.

    checkpoint  of an ended run, neither its best nor one of its newest
    trace       of a run that ended long ago
    dump        of a run that ended long ago: its step cannot be replayed any more
    log         of a run that ended long ago, where the registry has every byte of it
    leftover    drafts and partial files whose process is gone, or older than a day
    backup      the registry before a migration, the newest three aside
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, select

from registry.codec import from_json
from registry.connection import is_network_path, open_engine
from registry.disk_use import measure
from registry.edit import append_event
from registry.errors import StoreError
from registry.events import Removed
from registry.faults import explained
from registry.journal import JOURNAL_NAME
from registry.liveness import REMOTE_SILENCE_S, LockHeld, RunLock, has_process
from registry.schema import artifacts, outputs, runs
from registry.store import ingest

LEFTOVER_S = 86400.0  # a draft whose process cannot be asked is given up after so long
KEPT_BACKUPS = 3

_RECORDED = ("checkpoint", "trace", "dump")  # announced by runs, so their end is told too
_STEP = re.compile(r"step-(\d{8,})")
_SERIES = re.compile(r"\..+\.(\d{1,10})")  # cache/series/.<kind>-<digest>.<pid>
_PARTIAL = re.compile(r"\.partial-(\d{1,10})(-.*)?")  # of the demo corpus, of a backup
_REBUILD = re.compile(r"registry\.db\.rebuild-(\d{1,10})(-wal|-shm|-journal)?")
_BACKUP = re.compile(r"registry\.db\.schema-.+-\d{8}T\d{6}Z")


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of ended runs."""

    keep_checkpoints: int = 1  # newest ones, beside the best
    older_than_s: float = 30 * 86400.0  # since a run's end, for its logs, traces and dumps


@dataclass(frozen=True, slots=True)
class Item:
    """Something that may go."""

    kind: str
    run: str  # empty for what belongs to no run
    path: Path
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a deletion has done."""

    deleted: tuple[Item, ...]
    failed: tuple[tuple[Item, str], ...]  # and why


def find_items(
    home: Path, url: str, retention: Retention, run_ids: frozenset[str] | None = None
) -> list[Item]:
    """Return what may go, the largest first.

    Args:
        home: the folder of all runs.
        url: the registry.
        retention: what is kept.
        run_ids: of these runs only, and nothing that belongs to none.

    Raises:
        StoreError: the registry cannot be read.
    """
    items: list[Item] = []
    engine = open_engine(url, readonly=True)
    try:
        with explained(engine.url), engine.begin() as connection:
            query = select(runs).where(runs.c.status != "running").order_by(runs.c.created)
            for row in connection.execute(query).mappings().all():
                if run_ids is None or row["id"] in run_ids:
                    items += _iter_run_items(connection, home, row, retention)
    finally:
        engine.dispose()
    if run_ids is None:
        items += _iter_leftovers(home)
        items += _iter_backups(home)
    return sorted(items, key=lambda item: (-item.size_bytes, str(item.path)))


def delete(home: Path, url: str, retention: Retention, items: list[Item]) -> Outcome:
    """Delete items that still may go; of each run under its lock.

    Raises:
        StoreError: the registry cannot be written.
    """
    by_run: dict[str, list[Item]] = {}
    for item in items:
        by_run.setdefault(item.run, []).append(item)
    told = [(item, _try(item, home)) for item in by_run.pop("", [])]
    if by_run:
        engine = open_engine(url, readonly=False)
        try:
            for run_id, some in by_run.items():
                told += _delete_of_run(engine, home, run_id, some, retention)
        finally:
            engine.dispose()
    deleted = tuple(item for item, why in told if not why)
    return Outcome(deleted, tuple((item, why) for item, why in told if why))


def _delete_of_run(
    engine: Engine, home: Path, run_id: str, items: list[Item], retention: Retention
) -> list[tuple[Item, str]]:
    """Delete what may go of one run, if nobody is at work on it now; return what resisted why."""
    folder = home / "runs" / run_id
    try:
        lock = RunLock.acquire(folder, wait_s=0.0)
    except LockHeld:
        return [(item, "the run is at work again") for item in items]
    except OSError as error:
        return [(item, error.strerror or str(error)) for item in items]
    try:
        ingest(engine, folder)
        with explained(engine.url), engine.begin() as connection:
            row = connection.execute(select(runs).where(runs.c.id == run_id)).mappings().one()
            now: set[Path] = set()
            if row["status"] != "running":
                now = {item.path for item in _iter_run_items(connection, home, row, retention)}
        told = [
            (item, _record_and_try(item, home) if item.path in now else "it is wanted again")
            for item in items
        ]
        ingest(engine, folder)
    finally:
        lock.release()
    return told


def _record_and_try(item: Item, home: Path) -> str:
    """Delete a file of a run, recorded before; return why it is still there, or nothing."""
    if item.kind in _RECORDED:
        folder = home / "runs" / item.run
        path = item.path.relative_to(folder).as_posix()
        try:
            append_event(folder, Removed(time=time.time(), path=path))
        except StoreError as error:  # a full disk: what is not recorded does not happen
            return error.message
    return _try(item, home)


def _try(item: Item, home: Path) -> str:
    """Delete one item; return why it is still there, or nothing.

    A folder gets another name first, so that none stands half-deleted.
    """
    path = item.path
    try:
        _check_inside(path, home)
        if path.is_dir():
            if not path.name.startswith("."):
                path = path.rename(path.with_name(f".draft-old-{path.name}"))
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass  # another was faster
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _check_inside(path: Path, home: Path) -> None:
    """Raise OSError for what is no longer inside the home, or is a link."""
    if path.is_symlink() or not _is_inside(path.parent, home):
        raise OSError(f"{path} leads out of {home}")


def _is_inside(folder: Path, home: Path) -> bool:
    """Tell whether a folder is below the home in truth, links followed."""
    try:
        return folder.resolve(strict=True).is_relative_to(home.resolve(strict=True))
    except OSError:
        return False


def _iter_run_items(
    connection: Connection, home: Path, row: RowMapping, retention: Retention
) -> Iterator[Item]:
    """Yield what may go of one ended run."""
    folder, now = home / "runs" / row["id"], time.time()
    ended: float = row["ended"] or row["heartbeat"]
    is_remote = row["host"] and row["host"] != socket.gethostname()
    if is_remote and now - row["heartbeat"] < REMOTE_SILENCE_S:
        return  # its lock may not reach this host
    if folder.is_symlink() or not _is_inside(folder, home):
        return
    if not (folder / JOURNAL_NAME).is_file():
        return  # nowhere to say that something is gone
    run = row["id"]
    query = select(artifacts).where(artifacts.c.run == row["key"]).order_by(artifacts.c.seq)
    files = list(connection.execute(query).mappings())
    for path, reason in _iter_checkpoints(folder, files, retention):
        yield Item("checkpoint", run, path, measure(path), reason)
    for path in (*(folder / name for name in ("checkpoints", "dumps", "profiler")), folder):
        if path.is_symlink():
            continue
        drafts = path.glob("*.partial" if path == folder else ".draft-*")
        for left in sorted(drafts):
            if not left.is_symlink():
                yield Item("leftover", run, left, measure(left), "a draft of a run that is over")
    if now - ended < retention.older_than_s:
        return
    age = f"the run ended {int((now - ended) / 86400)} days ago"
    for file in files:
        traced = folder / file["path"]
        is_traced = file["kind"] == "trace" and traced.parent == folder / "profiler"
        if is_traced and _is_file_of(traced, folder):  # a program may announce any file as one
            yield Item("trace", run, traced, measure(traced), age)
    for _, dump in sorted(_list_steps(folder / "dumps").items()):
        yield Item("dump", run, dump, measure(dump), age)
    query_logs = select(outputs).where(outputs.c.run == row["key"], outputs.c.dropped_bytes == 0)
    for told in connection.execute(query_logs).mappings():
        log = folder / f"{told['stream']}.log"
        if told["stream"] in ("stdout", "stderr") and told["text"] and _is_file_of(log, folder):
            yield Item("log", run, log, measure(log), f"{age}; its text is in the registry")


def _iter_checkpoints(
    folder: Path, files: list[RowMapping], retention: Retention
) -> Iterator[tuple[Path, str]]:
    """Yield the checkpoints of a run that may go, and why."""
    steps = _list_steps(folder / "checkpoints")
    ordered = sorted(steps, reverse=True)
    kept = set(ordered[: retention.keep_checkpoints])
    best = _find_best(files, set(steps))
    kept |= {best} if best is not None else set()
    for step in ordered:
        if step not in kept:
            told = "neither the best nor the newest" if best is not None else "not the newest"
            yield steps[step], told


def _list_steps(place: Path) -> dict[int, Path]:
    """Return the folders `step-00000004` in a folder by their step; links are none."""
    if place.is_symlink() or not place.is_dir():
        return {}
    steps: dict[int, Path] = {}
    for entry in place.iterdir():
        match = _STEP.fullmatch(entry.name)
        if match and entry.is_dir() and not entry.is_symlink():
            steps[int(match[1])] = entry
    return steps


def _find_best(files: list[RowMapping], steps: set[int]) -> int | None:
    """Return the step of the last checkpoint that was the best when it was written."""
    for file in reversed(files):
        if file["kind"] == "checkpoint" and file["step"] in steps:
            metadata: Mapping[str, Any] = from_json(file["metadata"])
            if metadata.get("best") is True:
                return int(file["step"])
    return None


def _is_file_of(path: Path, folder: Path) -> bool:
    """Tell whether a path is a file, no link, and really below the run's folder."""
    return not path.is_symlink() and path.is_file() and _is_inside(path.parent, folder)


def _iter_leftovers(home: Path) -> Iterator[Item]:
    """Yield what processes that are gone have left behind, outside of runs."""
    places = ((home / "cache" / "series", _SERIES), (home / "data" / "demo", _PARTIAL))
    for place, pattern in (*places, (home, _PARTIAL), (home, _REBUILD)):
        if place.is_symlink() or not _is_inside(place, home):
            continue
        with contextlib.suppress(OSError):
            for path in sorted(place.iterdir()):
                match = pattern.fullmatch(path.name)
                if match and not path.is_symlink():
                    reason = _explain_leftover(path, int(match[1]))
                    if reason:
                        yield Item("leftover", "", path, measure(path), reason)


def _explain_leftover(path: Path, pid: int) -> str:
    """Return why a partial file may go; nothing where somebody may still write it."""
    changed = path.lstat().st_mtime
    if time.time() - changed > LEFTOVER_S:
        return "unfinished, and not touched for a day"
    # On a network file system the process may be one of another machine.
    if not is_network_path(path) and not has_process(pid, known_at=changed):
        return f"unfinished, and process {pid} is gone"
    return ""


def _iter_backups(home: Path) -> Iterator[Item]:
    """Yield the copies that migrations have made, the newest aside."""
    with contextlib.suppress(OSError):
        found = [
            path
            for path in home.iterdir()
            if _BACKUP.fullmatch(path.name) and path.is_file() and not path.is_symlink()
        ]
        found.sort(key=lambda path: path.name[-16:], reverse=True)
        for path in found[KEPT_BACKUPS:]:
            reason = f"the registry before a migration; {KEPT_BACKUPS} newer ones are kept"
            yield Item("backup", "", path, measure(path), reason)


__all__ = ["Item", "Outcome", "Retention", "delete", "find_items"]
