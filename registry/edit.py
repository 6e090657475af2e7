"""Add what a user says of a run to its journal: a name, tags, a note, a file that was deleted.

An edit is one line at the end of the run's journal, so a rebuild keeps it, and it is folded in at
once, so that the next reader sees it. The run may be alive: its process appends to the same
journal, and every line of both is whole. Two edits of one run wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, select

from registry.connection import open_engine
from registry.errors import StoreUnavailable
from registry.events import Edited, Event
from registry.faults import explained
from registry.journal import JOURNAL_NAME, JournalWriter
from registry.references import unknown
from registry.schema import runs, tags
from registry.store import ingest


class Words(NamedTuple):
    """What can be edited, as the registry has it now."""

    name: str
    note: str
    tags: tuple[str, ...]


def edit_run(home: Path, url: str, run_id: str, change: Callable[[Words], Edited | None]) -> bool:
    """Append what `change` makes of a run's words to its journal; return whether there was any.

    Args:
        home: the folder of all runs.
        url: the registry.
        run_id: of the run.
        change: gets the words of now and returns the edit, None where nothing changes.

    Raises:
        UnknownRun: no run has this id.
        StoreError: the registry or the run's folder cannot be written; nothing was changed.
    """
    engine = open_engine(url, readonly=False)
    try:
        folder = _find_folder(engine, home, run_id)
        with _alone(folder):
            ingest(engine, folder)
            event = change(_read_words(engine, run_id))
            if event is None:
                return False
            append_event(folder, event)
            ingest(engine, folder)
    finally:
        engine.dispose()
    return True


def append_event(folder: Path, event: Event) -> None:
    """Append one event to the journal of a run's folder.

    Raises:
        StoreUnavailable: it cannot be written.
    """
    writer = JournalWriter(folder / JOURNAL_NAME)
    try:
        writer.append(event)
    finally:
        writer.close()


def _find_folder(engine: Engine, home: Path, run_id: str) -> Path:
    """Return the run's folder: below `home`, or where the registry says it is.

    Raises:
        UnknownRun: no run has this id.
        StoreUnavailable: the folder is not on this machine, or is gone.
    """
    query = select(runs.c.folder, runs.c.host).where(runs.c.id == run_id)
    with explained(engine.url), engine.begin() as connection:
        row = connection.execute(query).first()
        if row is None:
            raise unknown(connection, run_id)
    for folder in (home / "runs" / run_id, Path(row.folder)):
        if (folder / JOURNAL_NAME).is_file():
            return folder
    elsewhere = row.host and row.host != socket.gethostname()
    raise StoreUnavailable(
        f"the journal of run {run_id} is not here: {Path(row.folder) / JOURNAL_NAME}"
        + (f" on {row.host}" if elsewhere else ""),
        next_command=f"do it on {row.host}" if elsewhere else "bring its folder back",
    )


def _read_words(engine: Engine, run_id: str) -> Words:
    """Return the run's words as the registry has them."""
    with explained(engine.url), engine.begin() as connection:
        key, name, note = connection.execute(
            select(runs.c.key, runs.c.name, runs.c.note).where(runs.c.id == run_id)
        ).one()
        query = select(tags.c.tag).where(tags.c.run == key).order_by(tags.c.position)
        return Words(name, note, tuple(connection.execute(query).scalars()))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other edits of this run waiting; where the file system has no locks, nobody waits.

    The lock is on the journal: the run's own lock belongs to its process while it lives.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            fd = os.open(folder / JOURNAL_NAME, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
