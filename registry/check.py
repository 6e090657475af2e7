"""Does the database hold what the journals say, and nothing else?

Looks, and changes nothing. The file's own structure comes first; then each run is read in one
transaction, so that a run that is being recorded is judged at one moment. Curves are compared in
stretches: memory stays bounded, however long they are. What is not compared with the journal: texts
(config, findings, output); a rebuild makes them anew.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, RowMapping, create_engine, select

from registry import schema
from registry.check_curves import CurveCheck
from registry.connection import open_engine, parse_url
from registry.faults import REBUILD, explained, get_path, is_sqlite
from registry.journal import JOURNAL_NAME
from registry.liveness import is_locked
from registry.schema import runs

_MOST = 20  # lines of one kind that SQLite is asked for
_BACKUP = "tsx registry backup"  # the database alone has it: a rebuild would lose it

Progress = Callable[[str, int, int], None]  # run, bytes of journals done, bytes of all journals


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it should be. `run` is empty where it is the whole registry's."""

    kind: str  # "structure", "schema", "journal", "lines", "points", "curve", "row" or "folder"
    run: str
    message: str
    next_command: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check has found."""

    faults: tuple[Fault, ...]
    num_runs: int  # rows that were compared with a journal
    num_points: int  # points that were compared; 0 for a fast check
    elsewhere: tuple[str, ...]  # runs whose journal is on another host, and was not seen


def check(
    home: Path, url: str, *, fast: bool = False, progress: Progress | None = None
) -> CheckReport:
    """Compare a registry with the journals below `home`.

    Args:
        home: the folder of all runs.
        url: the registry.
        fast: leave out the points, and what follows from them.
        progress: told how far it is.

    Raises:
        StoreError: the registry cannot be read at all.
    """
    parsed = parse_url(url)
    if is_sqlite(parsed) and not get_path(parsed).exists():
        return CheckReport((), 0, 0, ())
    engine = open_engine(url, readonly=True)
    if not is_sqlite(parsed):
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    try:
        with explained(parsed):
            faults = list(_iter_structure_faults(engine))
            if any(fault.kind == "structure" for fault in faults):
                return CheckReport(tuple(faults), 0, 0, ())  # what is read from it means nothing
            return _check_runs(engine, home, faults, fast, progress)
    finally:
        engine.dispose()


def _iter_structure_faults(engine: Engine) -> Iterator[Fault]:
    """Yield what ails the file itself: pages, references, tables, indices, views."""
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:

        def ask(statement: str) -> list[tuple[object, ...]]:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

        damage = [line for (line,) in ask(f"PRAGMA integrity_check({_MOST})") if line != "ok"]
        for line in damage:
            yield Fault("structure", "", f"the file is damaged: {line}", REBUILD)
        if damage:
            return
        for table, rowid, parent, _ in ask("PRAGMA foreign_key_check")[:_MOST]:
            message = f"row {rowid} of {table} refers to a row of {parent} that is not there"
            yield Fault("schema", "", message, REBUILD)
        ((application,),) = ask("PRAGMA application_id")
        if application != schema.APPLICATION_ID:
            message = f"the file has application id {application}, not {schema.APPLICATION_ID}"
            yield Fault("schema", "", message, REBUILD)
        found = _list_parts(connection)
    fresh = create_engine("sqlite://")
    with fresh.begin() as connection:
        schema.metadata.create_all(connection)
        schema.alembic_metadata.create_all(connection)
        for name, query in schema.VIEWS.items():
            connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")
        for part in sorted(_list_parts(connection) - found):
            yield Fault("schema", "", f"the {part} is missing", REBUILD)
    fresh.dispose()


def _list_parts(connection: Connection) -> set[str]:
    """Return tables, columns, indices and views of an SQLite database, by name."""
    kinds = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    parts = {f"{kind} {name}" for kind, name in connection.exec_driver_sql(kinds)}
    columns = (
        "SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c "
        "WHERE m.type = 'table'"
    )
    pairs = connection.exec_driver_sql(columns)
    return parts | {f"column {table}.{column}" for table, column in pairs}


def _check_runs(
    engine: Engine, home: Path, faults: list[Fault], fast: bool, progress: Progress | None
) -> CheckReport:
    """Compare every run with its journal; see check."""
    with engine.begin() as connection:
        query = select(runs.c.id, runs.c.journal_offset).order_by(runs.c.created)
        offsets = {row.id: row.journal_offset for row in connection.execute(query)}
    total, done, num_points = sum(offsets.values()), 0, 0
    elsewhere: list[str] = []

    for run_id, offset in offsets.items():

        def report(end: int, run_id: str = run_id, done: int = done) -> None:
            if progress is not None:
                progress(run_id, done + end, total)

        with engine.begin() as connection:  # one moment: its row and its points belong together
            row = connection.execute(select(runs).where(runs.c.id == run_id)).mappings().first()
            if row is None:
                continue  # deleted meanwhile
            folder = _find_folder(home, row)
            if folder is None:
                if row["host"] and row["host"] != socket.gethostname():
                    elsewhere.append(run_id)
                else:
                    faults.append(_gone(row))
                continue
            curves = CurveCheck(connection, row, folder / JOURNAL_NAME, report)
            found = curves.list_journal_faults() if fast else curves.list_faults()
            for kind, message in found:
                is_cut = kind == "cut"  # the database has more than the journal
                faults.append(Fault(kind, run_id, message, _BACKUP if is_cut else REBUILD))
            num_points += curves.num_points
        done += offset
    faults += _list_stray_folders(home, set(offsets))
    return CheckReport(tuple(faults), len(offsets) - len(elsewhere), num_points, tuple(elsewhere))


def _find_folder(home: Path, row: RowMapping) -> Path | None:
    """Return the folder that has a run's journal; None where there is none here."""
    for folder in (home / "runs" / row["id"], Path(row["folder"])):
        if (folder / JOURNAL_NAME).is_file():
            return folder
    return None


def _gone(row: RowMapping) -> Fault:
    """Return the fault of a row whose journal is not there any more."""
    path = Path(row["folder"]) / JOURNAL_NAME
    message = f"its journal is gone ({path}): the database alone has it, a rebuild would lose it"
    return Fault("folder", row["id"], message, _BACKUP)


def _list_stray_folders(home: Path, known: set[str]) -> list[Fault]:
    """Return the faults of folders that no row of the registry knows."""
    try:
        with os.scandir(home / "runs") as entries:
            folders = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    faults = []
    for folder in sorted(folders):
        if folder.name in known or is_locked(folder):  # a run that begins right now
            continue
        if (folder / JOURNAL_NAME).is_file():
            message = f"{folder} has a journal and no row in the database"
            faults.append(Fault("row", folder.name, message, REBUILD))
        else:
            message = f"{folder} has no journal: it is no run"
            faults.append(Fault("folder", folder.name, message, f"ls -la {folder}"))
    return faults
