"""What went wrong with the database, said so that a user can act on it.

Turns the errors of SQLAlchemy and its drivers into the registry's own, with the file or the
redacted URL, the process that holds a lock where it can be found, and the next command.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import exc
from sqlalchemy.engine import URL

from registry.errors import StoreCorrupt, StoreError, StoreLocked, StoreUnavailable
from registry.redact import Redactor

REBUILD = "tsx registry rebuild"

_LOCKED = {"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"}
_CORRUPT = {"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT"}
_POSTGRESQL_LOCKED = {"55P03", "57014", "40P01"}  # lock timeout, cancelled, deadlock


@contextlib.contextmanager
def explained(url: URL) -> Iterator[None]:
    """Raise the registry's own errors in place of the database's."""
    try:
        yield
    except (exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise explain(error, url) from error


def explain(error: Exception, url: URL) -> StoreError:
    """Return the registry's error for one of the database's."""
    cause = getattr(error, "orig", None) or error
    text = Redactor.from_environ(os.environ).text(str(cause)).strip()
    text = text.splitlines()[0] if text else type(cause).__name__
    place = show(url)
    if isinstance(cause, sqlite3.Error):
        return _explain_sqlite(cause, text, url)
    if getattr(cause, "sqlstate", None) in _POSTGRESQL_LOCKED:
        return StoreLocked(f"registry {place} is locked: {text}", next_command="try again")
    return StoreUnavailable(
        f"registry {place} cannot be used: {text}",
        next_command="check TSX_REGISTRY and that the server is up",
    )


def show(url: URL) -> str:
    """Return the file's path, or the URL without its password."""
    if is_sqlite(url) and url.database:
        return url.database
    return Redactor.from_environ(os.environ).text(url.render_as_string(hide_password=True))


def is_sqlite(url: URL) -> bool:
    """Tell whether the URL names an SQLite file."""
    return url.get_backend_name() == "sqlite"


def get_path(url: URL) -> Path:
    """Return the SQLite file that the URL names, absolute."""
    assert url.database is not None
    return Path(url.database).absolute()


def corrupt(url: URL, why: str) -> StoreCorrupt:
    """Return the error for a file that is damaged or no registry."""
    if is_named(url):
        advice = "move it away yourself, or point TSX_REGISTRY elsewhere; then: " + REBUILD
    else:
        advice = REBUILD
    return StoreCorrupt(
        f"registry {show(url)} {why}; the runs' journals have everything: {REBUILD}",
        next_command=advice,
    )


def locked(url: URL) -> StoreLocked:
    """Return the error for a file that another process holds, with its name and pid."""
    holder = find_holder(get_path(url)) or "another process"
    return StoreLocked(
        f"registry {show(url)} is locked by {holder}; nothing was moved or changed",
        next_command="wait for it to end, or stop it, and try again",
    )


def is_named(url: URL) -> bool:
    """Tell whether TSX_REGISTRY names this very database."""
    return bool(os.environ.get("TSX_REGISTRY"))


def find_holder(path: Path) -> str:
    """Return who holds a lock on an SQLite file, "python (pid 123)", or nothing if unknown."""
    pids = list_writers(path) or _find_open_pids(path)
    return ", ".join(f"{_find_program(pid)} (pid {pid})" for pid in pids[:3])


def list_writers(path: Path) -> list[int]:
    """Return the processes that write an SQLite file now, as far as can be told (Linux)."""
    inodes = set()
    for name in (path, path.with_name(path.name + "-shm")):
        with contextlib.suppress(OSError):
            inodes.add(name.stat().st_ino)
    pids = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            # "1: POSIX  ADVISORY  WRITE 1234 08:01:5678 0 EOF"; "->" marks a process that waits
            words = line.split()
            if words[1] == "->" or words[1] != "POSIX" or words[3] != "WRITE":
                continue
            pid, inode = int(words[4]), int(words[5].rsplit(":", 1)[1])
            if inode in inodes and pid > 0 and pid != os.getpid():
                pids.append(pid)
    return sorted(set(pids))


def _explain_sqlite(error: sqlite3.Error, text: str, url: URL) -> StoreError:
    """Return the registry's error for one of SQLite's."""
    name = getattr(error, "sqlite_errorname", "") or ""
    base = "_".join(name.split("_")[:2])
    place = show(url)
    if base in _LOCKED or "database is locked" in text:
        return locked(url)
    if get_path(url).is_dir():
        return corrupt(url, "is a folder, not a database")
    if base in _CORRUPT or "malformed" in text or "not a database" in text:
        return corrupt(url, f"is damaged or not a database ({text})")
    if base == "SQLITE_ERROR" and text.startswith(("no such table", "no such column")):
        return corrupt(url, f"lacks part of its tables ({text})")
    return StoreUnavailable(
        f"registry {place} cannot be used: {text}",
        next_command="check that its folder can be written and has room, or set TSX_HOME",
    )


def _find_open_pids(path: Path) -> list[int]:
    """Return the processes that have the database open, as far as this user may see."""
    import psutil

    pids = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and any(
                file.path == str(path) for file in process.open_files()
            ):
                pids.append(process.pid)
    return pids


def _find_program(pid: int) -> str:
    """Return the name of a program, or "a process"."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return str(psutil.Process(pid).name())
    return "a process"
