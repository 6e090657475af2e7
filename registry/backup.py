"""A copy of the registry in one file, taken while others write, and checked.

Owns that the copy appears whole or not at all, and never over another file. SQLite only: a server
has tools of its own.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from registry import schema
from registry.connection import open_engine, parse_url
from registry.errors import StoreError, StoreUnavailable
from registry.faults import explain, get_path, is_sqlite, show


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy that was made."""

    path: Path
    size_bytes: int
    num_runs: int


def back_up(url: str, target: Path | None = None) -> Backup:
    """Copy the registry to a new file, by default `<name>.backup-<utc>` beside it.

    Raises:
        StoreError: there is no registry, it is on a server, the target exists, the disk does not
            take the copy, or the copy is not whole. Nothing half-written is left.
    """
    parsed = parse_url(url)
    if not is_sqlite(parsed):
        raise StoreError(
            f"registry {show(parsed)} is on a server; tsx copies files only",
            next_command="pg_dump",
        )
    path = get_path(parsed)
    if not path.exists():
        raise StoreUnavailable(f"there is no registry {path} yet", next_command="tsx runs")
    if target is None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = path.with_name(f"{path.name}.backup-{stamp}")
    target = target.expanduser().absolute()
    if os.path.lexists(target):
        raise _exists(target)
    engine = open_engine(url, readonly=True)
    partial = target.with_name(f".partial-{os.getpid()}-{target.name}")
    try:
        num_runs = _copy(engine, partial, target)
        size_bytes = partial.stat().st_size
        os.link(partial, target)  # unlike a rename, it never replaces a file
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        raise _unwritten(target, error.strerror or str(error)) from error
    finally:
        engine.dispose()
        for suffix in ("", "-journal"):
            with contextlib.suppress(OSError):
                partial.with_name(partial.name + suffix).unlink(missing_ok=True)
    return Backup(target, size_bytes, num_runs)


def _copy(engine: Engine, partial: Path, target: Path) -> int:
    """Write the copy of one moment to a draft, check it, and return how many runs it has."""
    raw: Any = engine.raw_connection()
    try:
        # A callback now and then, so that Ctrl-C is heard while SQLite works.
        raw.driver_connection.set_progress_handler(lambda: 0, 100_000)
        raw.cursor().execute("VACUUM INTO ?", (str(partial),))
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
            raise KeyboardInterrupt from None
        known = explain(error, engine.url)
        if isinstance(known, StoreUnavailable):  # reading has just succeeded: it is the writing
            raise _unwritten(target, str(error)) from error
        raise known from error
    finally:
        raw.close()
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    return _verify(engine.url, partial)


def _verify(url: URL, partial: Path) -> int:
    """Return how many runs a copy has.

    Raises:
        StoreError: it is not whole.
    """
    copy = sqlite3.connect(f"{partial.as_uri()}?mode=ro", uri=True)
    try:
        found = [row[0] for row in copy.execute("PRAGMA integrity_check(3)")]
        (application,) = copy.execute("PRAGMA application_id").fetchone()
        (count,) = copy.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        found, application, count = [str(error)], 0, 0
    finally:
        copy.close()
    if found != ["ok"] or application != schema.APPLICATION_ID:
        raise StoreError(
            f"the copy of {show(url)} is not whole ({found[0]}); it was deleted",
            next_command="tsx registry check",
        )
    return int(count)


def _exists(target: Path) -> StoreError:
    """Return the error for a file that is in the way."""
    return StoreError(
        f"{target} exists; a backup never replaces a file",
        next_command="tsx registry backup ANOTHER-FILE",
    )


def _unwritten(target: Path, why: str) -> StoreUnavailable:
    """Return the error for a disk that does not take the copy."""
    return StoreUnavailable(
        f"the backup {target} cannot be written: {why}; nothing of it is left",
        next_command="tsx registry backup /a/folder/with/room/registry.db",
    )
