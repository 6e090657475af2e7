"""Make the registry agree with the journals after something went wrong.

`recover` ends runs whose process is gone and folds journals that the database has not caught up
with; reading commands call it first, so it costs little when there is nothing to do.
`rebuild` makes a new database out of all journals.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, RowMapping, select, update
from sqlalchemy.engine import URL

from registry.captured import read_output
from registry.connection import DEFAULT_TIMEOUT_S, open_engine, parse_url
from registry.errors import StoreError, StoreLocked, StoreNewer, StoreUnavailable
from registry.events import RunEnded, Status
from registry.faults import explained, get_path, is_sqlite, list_writers, locked, show
from registry.inbox_reader import iter_left
from registry.journal import JOURNAL_NAME, JournalWriter, iter_lines
from registry.link import Link
from registry.liveness import LockHeld, RunLock, is_alive, is_locked, seems_alive
from registry.schema import runs
from registry.statements import fetch_rows
from registry.store import ingest
from registry.tail import TAIL_NAME, has_waiting

_LOOK_S = 2.0  # a look may wait this long for a lock; what it cannot write, the next one will
_EXIT_KILLED = 137

_COLUMNS = (
    *(runs.c.id, runs.c.status, runs.c.journal_offset, runs.c.pid, runs.c.host),
    *(runs.c.heartbeat, runs.c.step, runs.c.folder),
)


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a rebuild has done."""

    runs: int
    lines: int  # journal lines folded in
    bad_lines: int  # of these, lines that were no events
    unreadable: tuple[str, ...]  # folders whose journal could not be read
    kept: Path | None  # where the old database is; None when there was none


def recover(
    home: Path, url: str, *, on_fault: Callable[[StoreError], None] | None = None
) -> tuple[str, ...]:
    """Fold what the database lacks and end the runs whose process is gone.

    A dead run gets what its process said and RunEnded(killed) in its journal, then in the database,
    while its lock is held: two readers, or a reader and a resume, never both do it. RunEnded bears
    the time of the last sign of life. A registry that is only locked or read-only is left as it is.

    Args:
        home: the folder of all runs.
        url: the registry.
        on_fault: told why there was something to do and it could not be done.

    Returns:
        The ids of the runs that were ended.

    Raises:
        StoreNewer, StoreOutdated, StoreCorrupt, StoreUnavailable: the registry cannot be read.
    """
    running, offsets = _read_runs(parse_url(url))
    folders = _list_folders(home)
    behind = _find_behind(running, offsets, folders)
    vanished = [run for run in running if run not in folders]
    for run in list(vanished):
        folder = Path(running[run]["folder"])
        if (folder / JOURNAL_NAME).is_file():  # a registry shared by several TSX_HOMEs
            vanished.remove(run)
            if not _is_alive(folder, running[run]):
                behind.append(folder)
    vanished = [run for run in vanished if not _is_remote_alive(running[run])]
    if not behind and not vanished:
        return ()
    try:
        engine = open_engine(url, readonly=False, timeout_s=_LOOK_S)
        try:
            ended = [folder.name for folder in behind if _recover_run(engine, folder)]
            return (*ended, *(run for run in vanished if _presume(engine, running[run])))
        finally:
            engine.dispose()
    except (StoreLocked, StoreUnavailable) as error:
        if on_fault is not None:
            on_fault(error)
        return ()


def rebuild(home: Path, url: str) -> RebuildReport:
    """Make a new database out of all journals below `home`; the old file stays beside it.

    Raises:
        StoreError: the old file is one that TSX_REGISTRY names (those are never moved) or was
            written by a newer version, or the new one cannot be written. Nothing is moved before
            the new one is whole.
    """
    parsed = parse_url(url)
    path = _get_movable_path(parsed)
    _refuse_newer(url)
    fresh = path.with_name(f"{path.name}.rebuild-{os.getpid()}")
    with explained(parsed):
        _remove(fresh)
        try:
            report = _build(home, fresh)
            _wait_for_writers(path, parsed)
            kept = _set_aside(path)
            fresh.rename(path)
        finally:
            _remove(fresh)
    return RebuildReport(**report, kept=kept)


def _refuse_newer(url: str) -> None:
    """Raise StoreNewer for a registry that knows more than this version could rebuild."""
    try:
        open_engine(url, readonly=True, timeout_s=_LOOK_S).dispose()
    except StoreNewer:
        raise
    except StoreError:
        return  # broken in another way: that is what a rebuild is for


def _read_runs(url: URL) -> tuple[dict[str, RowMapping], dict[str, int]]:
    """Return what the database knows of running runs, and how far it has read every journal."""
    link = Link(url)
    try:
        with link.snapshot() as connection:
            query = select(*_COLUMNS).where(runs.c.status == Status.RUNNING.value)
            running = connection.execute(query).mappings().all()
            offsets = fetch_rows(connection, select(runs.c.id, runs.c.journal_offset))
    finally:
        link.close()
    return {row["id"]: row for row in running}, dict(offsets)


def _list_folders(home: Path) -> dict[str, str]:
    """Return the paths of the run folders below `home` by id."""
    try:
        with os.scandir(home / "runs") as entries:
            return {entry.name: entry.path for entry in entries if entry.is_dir()}
    except OSError:
        return {}


def _find_behind(
    running: Mapping[str, RowMapping], offsets: Mapping[str, int], folders: Mapping[str, str]
) -> list[Path]:
    """Return the folders of runs that are dead, or whose journal says more than the database."""
    behind = []
    for run, path in folders.items():
        if run in running:
            if not _is_alive(Path(path), running[run]):
                behind.append(Path(path))
        elif _has_news(path, offsets.get(run, 0)) and not is_locked(Path(path)):
            behind.append(Path(path))
    return behind


def _has_news(folder: str, offset: int) -> bool:
    """Tell whether a journal has whole lines from an offset on, or its tail has some for it."""
    journal = f"{folder}/{JOURNAL_NAME}"  # of thousands of runs: a Path of each would take longest
    try:
        has_more = os.stat(journal).st_size > offset
        if has_more and any(True for _ in iter_lines(Path(journal), offset)):
            return True
    except OSError:
        return False
    return os.path.exists(f"{folder}/{TAIL_NAME}") and has_waiting(Path(journal))


def _is_alive(folder: Path, row: RowMapping) -> bool:
    """Tell whether the process of a run is there; see registry.liveness."""
    return is_alive(
        folder,
        pid=row["pid"],
        host=row["host"],
        heartbeat=row["heartbeat"],
        now=time.time(),
    )


def _is_remote_alive(row: RowMapping) -> bool:
    """Tell whether a run without a folder here may be alive elsewhere."""
    return bool(row["host"]) and seems_alive(
        pid=row["pid"],
        host=row["host"],
        heartbeat=row["heartbeat"],
        now=time.time(),
        has_lock_file=row["host"] == socket.gethostname(),
    )


def _recover_run(engine: Engine, folder: Path) -> bool:
    """Fold one journal and end its run if the process is gone; return whether it was ended."""
    held = is_locked(folder)
    if held:
        return False
    try:
        lock = RunLock.acquire(folder, wait_s=0.0)
    except LockHeld:
        return False
    except OSError:  # a folder that cannot be written: the journal stays as it is
        lock = None
    try:
        ingest(engine, folder)
        row = _read_run(engine, folder.name)
        if row is None or row["status"] != "running":
            return False
        facts = {name: row[name] for name in ("pid", "host", "heartbeat")}
        if seems_alive(**facts, now=time.time(), has_lock_file=held is False):
            return False
        was_cut = _measure_journal(folder) < row["journal_offset"]  # nobody would read its end
        if lock is None or was_cut or not _end(folder, row):
            return _presume(engine, row)
        ingest(engine, folder)
        return True
    finally:
        if lock is not None:
            lock.release()


def _measure_journal(folder: Path) -> int:
    """Return the bytes of a run's journal, 0 where there is none."""
    try:
        return (folder / JOURNAL_NAME).stat().st_size
    except OSError:
        return 0


def _read_run(engine: Engine, run_id: str) -> RowMapping | None:
    """Return what the database knows of one run."""
    with explained(engine.url), engine.begin() as connection:
        query = select(*_COLUMNS).where(runs.c.id == run_id)
        return connection.execute(query).mappings().first()


def _end(folder: Path, row: RowMapping) -> bool:
    """Append what the process said and RunEnded(killed); False where the disk refuses.

    What a recorded program had left in its inbox comes first: it outlives the one who recorded it.
    """
    when, step = row["heartbeat"], row["step"]
    try:
        writer = JournalWriter(folder / JOURNAL_NAME)
        try:
            for event in iter_left(folder):
                writer.append(event)
                when, step = max(when, event.time), max(step, getattr(event, "step", 0))
            for output in read_output(folder):
                writer.append(output)
            writer.append(
                RunEnded(
                    time=when,
                    status=Status.KILLED,
                    reason=_explain(row["pid"], step),
                    exit_code=_EXIT_KILLED,
                    step=step,
                )
            )
        finally:
            writer.close()
    except StoreUnavailable:
        return False
    return writer.lost == 0


def _explain(pid: int, step: int) -> str:
    """Return one line that says how a run without an end has ended."""
    gone = "is gone (killed, or the machine stopped)"
    if pid <= 0:
        return f"its process {gone} before it trained, at step {step}"
    return f"process {pid} {gone} after step {step}"


def _presume(engine: Engine, row: RowMapping) -> bool:
    """Mark a run killed in the database alone; its next event, if one comes, undoes that."""
    remote = row["host"] and row["host"] != socket.gethostname()
    reason = f"no sign of life from {row['host']}" if remote else _explain(row["pid"], row["step"])
    changes = {"status": "killed", "presumed": True, "reason": reason, "ended": row["heartbeat"]}
    with explained(engine.url), engine.begin() as connection:
        result = connection.execute(
            update(runs)
            .where(runs.c.id == row["id"], runs.c.status == "running")
            .where(runs.c.journal_offset == row["journal_offset"])
            .values(changes)
        )
    return result.rowcount > 0


def _get_movable_path(url: URL) -> Path:
    """Return the database's path; refuse one that is not ours to move."""
    if not is_sqlite(url):
        raise StoreError(
            f"registry {show(url)} is on a server; tsx rebuilds files only",
            next_command="empty its tables yourself: the next tsx command fills them again",
        )
    path = get_path(url)
    if os.environ.get("TSX_REGISTRY") and path.exists():
        raise StoreError(
            f"registry {path} is named by TSX_REGISTRY and is never moved",
            next_command=f"mv {path} {path}.broken && tsx registry rebuild",
        )
    return path


def _build(home: Path, fresh: Path) -> dict[str, Any]:
    """Fold all journals into a new file; return the report's numbers."""
    url = URL.create("sqlite", database=str(fresh)).render_as_string(hide_password=False)
    unreadable = []
    engine = open_engine(url, readonly=False)
    try:
        for folder in map(Path, sorted(_list_folders(home).values())):
            try:
                if (folder / JOURNAL_NAME).is_file():
                    (folder / JOURNAL_NAME).open("rb").close()
            except OSError:
                unreadable.append(str(folder))
                continue
            ingest(engine, folder)
        with explained(engine.url), engine.begin() as connection:
            found = connection.execute(select(runs.c.journal_lines, runs.c.bad_lines)).all()
    finally:
        engine.dispose()
    return {
        "runs": len(found),
        "lines": sum(row[0] for row in found),
        "bad_lines": sum(row[1] for row in found),
        "unreadable": tuple(unreadable),
    }


def _wait_for_writers(path: Path, url: URL) -> None:
    """Wait until nobody writes a database that is to be moved.

    Raises:
        StoreLocked: somebody goes on for longer than a lock is waited for.
    """
    deadline = time.monotonic() + DEFAULT_TIMEOUT_S
    while list_writers(path):
        if time.monotonic() >= deadline:
            raise locked(url)
        time.sleep(0.01)


def _set_aside(path: Path) -> Path | None:
    """Rename the database and its companions to `<name>.broken-<utc>`."""
    if not path.exists():
        _remove(path)
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept = path.with_name(f"{path.name}.broken-{stamp}")
    count = 1
    while kept.exists():
        count += 1
        kept = path.with_name(f"{path.name}.broken-{stamp}-{count}")
    for suffix in ("-wal", "-shm", "-journal", ""):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(kept.with_name(kept.name + suffix))
    return kept


def _remove(path: Path) -> None:
    """Delete an SQLite file and its companions, where they are."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
