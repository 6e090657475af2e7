"""Fold a journal into the database, exactly once.

The database remembers how far it has read each journal (`runs.journal_offset`) and moves that mark
in the transaction that writes the rows. The writer thread of a live run, a reader that finds a dead
one and a rebuild all come through here, and may do so at once.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, exc, select, update

from registry.codec import LineError, from_json, to_json
from registry.curves import CurveWriter, clean
from registry.events import (
    Artifact,
    Edited,
    Event,
    Finding,
    Heartbeat,
    Histogram,
    Metrics,
    Output,
    Removed,
    RunEnded,
    RunPrepared,
    RunResumed,
    RunStarted,
    Status,
)
from registry.journal import JOURNAL_NAME, Line, decode_line, iter_lines
from registry.records import RecordWriter, get_texts
from registry.schema import resumes, runs
from registry.statements import insert

_BATCH_LINES = 2000  # of one transaction: other writers wait for its end
_BATCH_BYTES = 4 * 1024 * 1024

# What a bad row raises, as against a database that is locked, full or gone.
_ROW_ERRORS = (
    LineError,
    ValueError,
    TypeError,
    OverflowError,
    exc.DataError,
    exc.IntegrityError,
    exc.InterfaceError,
    exc.ProgrammingError,
)


def fold_batch(engine: Engine, folder: Path) -> bool:
    """Fold the next lines of one journal in one transaction; return whether there may be more.

    A line that is no event, or that the database refuses, is counted in `runs.bad_lines`.
    """
    try:
        with engine.begin() as connection:
            return _fold(connection, folder, careful=False)
    except _ROW_ERRORS:
        # One of up to 2000 lines is at fault: the same batch again, each event on its own.
        with engine.begin() as connection:
            return _fold(connection, folder, careful=True)


def _fold(connection: Connection, folder: Path, *, careful: bool) -> bool:
    """Fold one batch; see fold_batch."""
    row = _find_run(connection, folder.name)
    lines, more = _read_batch(folder / JOURNAL_NAME, row["journal_offset"] if row else 0)
    if not lines:
        return False
    events = [_try_decode(line) for line in lines]
    if row is None:
        known = [event.time for event in events if event is not None]
        _add_run(connection, folder, created=known[0] if known else time.time())
        row = _find_run(connection, folder.name)
        if row is None or row["journal_offset"] != 0:
            return True  # another process was first (PostgreSQL): see what it has left to do
    fold = RunFold(connection, row)
    for event in events:
        if careful:
            fold.take_carefully(event)
        else:
            fold.take(event)
    fold.finish(end=lines[-1].end)
    return more


def _read_batch(path: Path, offset: int) -> tuple[list[Line], bool]:
    """Return the next complete lines from an offset on, and whether there may be more."""
    lines: list[Line] = []
    for line in itertools.islice(iter_lines(path, offset), _BATCH_LINES):
        lines.append(line)
        if line.end - offset > _BATCH_BYTES:
            return lines, True
    return lines, len(lines) == _BATCH_LINES


def _try_decode(line: Line) -> Event | None:
    """Return the event of a line, None where there is none."""
    try:
        return decode_line(line)
    except LineError:
        return None


def _find_run(connection: Connection, run_id: str) -> RowMapping | None:
    """Return the run's row, locked until the transaction ends."""
    query = select(runs).where(runs.c.id == run_id).with_for_update()
    return connection.execute(query).mappings().first()


def _add_run(connection: Connection, folder: Path, *, created: float) -> None:
    """Insert a run of which only the folder is known; its first event tells the rest."""
    values: dict[str, Any] = dict.fromkeys(("project", "recipe", "reason", "note", "parent"), "")
    values |= dict.fromkeys(("device", "precision", "data_source", "host"), "")
    values |= dict.fromkeys(("step", "steps", "seed", "pid"), 0)
    values |= dict.fromkeys(("journal_offset", "journal_lines", "bad_lines", "rewinds"), 0)
    values |= {"id": folder.name, "name": folder.name, "status": Status.RUNNING.value}
    values |= {"created": created, "heartbeat": created, "smoke": False, "presumed": False}
    values |= {"config": "{}", "environment": "{}", "folder": str(folder.absolute())}
    connection.execute(insert(connection, runs).on_conflict_do_nothing(), values)


class RunFold:
    """Applies events of one run to the database, in the transaction of its connection."""

    def __init__(self, connection: Connection, row: RowMapping) -> None:
        self._connection = connection
        self._row = dict(row)  # as it will be; what differs from `_stored` is written at the end
        self._stored = dict(row)
        self._run: int = row["key"]
        self._curves = CurveWriter(connection, self._run)
        self._records = RecordWriter(connection, self._run)

    @property
    def _seq(self) -> int:
        """Which line of the journal is being taken, from 1."""
        number: int = self._row["journal_lines"]
        return number

    def take(self, event: Event | None) -> None:
        """Apply one line of the journal; None is a line that is no event."""
        self._row["journal_lines"] += 1
        if event is None:
            self._row["bad_lines"] += 1
            return
        if type(event) is not Edited and type(event) is not Removed:  # those come from a user
            self._show_life(event.time)
        self._apply(event)

    def take_carefully(self, event: Event | None) -> None:
        """Apply one line and write it at once; count it as bad where the database refuses it."""
        before = dict(self._row)
        try:
            with self._connection.begin_nested():
                self.take(event)
                self._flush()
        except _ROW_ERRORS:
            self._curves = CurveWriter(self._connection, self._run)
            self._records = RecordWriter(self._connection, self._run)
            self._row = before
            self._row["journal_lines"] += 1
            self._row["bad_lines"] += 1

    def finish(self, *, end: int) -> None:
        """Write everything and move the mark to `end`, a byte offset in the journal."""
        self._row["journal_offset"] = end
        self._flush()

    def _flush(self) -> None:
        """Write what has been taken since the last time."""
        self._curves.flush()
        self._records.flush()
        changes = {name: value for name, value in self._row.items() if value != self._stored[name]}
        if changes:
            self._connection.execute(update(runs).where(runs.c.key == self._run).values(changes))
            self._stored = dict(self._row)

    def _show_life(self, when: float) -> None:
        """Note a sign of life; a run that was only presumed dead is running after all."""
        self._row["heartbeat"] = max(self._row["heartbeat"], when)
        if self._row["presumed"]:
            self._row |= {"status": "running", "reason": "", "ended": None, "presumed": False}

    def _apply(self, event: Event) -> None:
        """Apply one event."""
        match event:
            case Metrics():
                time_ms = self._since_created_ms(event.time)
                self._curves.add(self._seq, event.step, event.values, time_ms)
                self._reach(event.step)
            case Heartbeat():
                self._reach(event.step)
            case Histogram():
                self._add_histogram(event)
            case Finding():
                self._records.add_finding(self._seq, event)
            case Artifact():
                self._records.add_artifact(self._seq, event)
            case Removed():
                self._records.remove_artifact(event)
            case Edited():
                self._edit(event)
            case Output():
                self._records.set_output(event)
            case RunStarted():
                self._start(event)
            case RunPrepared():
                self._prepare(event)
            case RunResumed():
                self._resume(event)
            case RunEnded():
                self._end(event)

    def _add_histogram(self, event: Histogram) -> None:
        """Record how values were spread."""
        (key,) = self._curves.get_key_ids({clean(event.key)}).values()
        self._records.add_histogram(self._seq, event, key, self._since_created_ms(event.time))
        self._reach(event.step)

    def _reach(self, step: int) -> None:
        """Note that the run has come to a step."""
        self._row["step"] = max(self._row["step"], step)

    def _since_created_ms(self, when: float) -> int:
        """Return milliseconds from the run's creation to `when`, within 64 bits."""
        created: float = self._row["created"]
        return round(max(-1e15, min(1e15, when - created)) * 1000)

    def _start(self, event: RunStarted) -> None:
        """Take over what the launcher knows."""
        self._set_texts(event, ("project", "recipe", "note", "parent", "host"))
        self._row |= {"name": clean(event.name) or self._row["id"], "status": "running"}
        self._row |= {"seed": event.seed, "smoke": event.smoke, "steps": event.steps}
        self._row |= {"pid": event.pid, "config": clean(to_json(event.config))}
        names = ("fingerprint", "command", "cwd", "git_commit", "git_branch", "git_diff")
        self._extend_environment(event, (*names, "host", "versions", "pid"))
        self._records.set_tags(event.tags)

    def _prepare(self, event: RunPrepared) -> None:
        """Take over what the trainer knows."""
        self._set_texts(event, ("device", "precision", "data_source"))
        self._row["pid"] = event.pid
        self._extend_environment(
            event, tuple(name for name in event.__struct_fields__ if name != "time")
        )

    def _resume(self, event: RunResumed) -> None:
        """Cut the curves back to the checkpoint and let the run go on."""
        self._curves.rewind(event.from_step)
        self._records.rewind(event.from_step)
        self._row |= {"status": "running", "reason": "", "ended": None}
        self._row |= {"step": event.from_step, "steps": event.steps, "pid": event.pid}
        self._row["rewinds"] += 1
        if event.config:
            self._row["config"] = clean(to_json(event.config))
        if event.fingerprint:
            self._extend_environment(event, ("fingerprint",))
        row: dict[str, Any] = {"run": self._run, "seq": self._seq, "time": event.time}
        row |= {"from_step": event.from_step, "steps": event.steps}
        row["command"] = clean(to_json(event.command))
        self._connection.execute(resumes.insert(), row)

    def _end(self, event: RunEnded) -> None:
        """Close the run."""
        self._reach(event.step)
        self._row |= {"status": event.status.value, "reason": clean(event.reason)}
        self._row["ended"] = event.time
        self._extend_environment(event, ("exit_code",))

    def _edit(self, event: Edited) -> None:
        """Take over what the user says of the run now."""
        if event.name is not None:
            self._row["name"] = clean(event.name) or self._row["id"]
        if event.note is not None:
            self._row["note"] = clean(event.note)
        if event.tags is not None:
            self._records.set_tags(event.tags)

    def _set_texts(self, event: Event, names: tuple[str, ...]) -> None:
        """Copy text fields of an event to columns of the same names."""
        self._row |= get_texts(event, names)

    def _extend_environment(self, event: Event, names: tuple[str, ...]) -> None:
        """Add fields of an event to the run's environment; versions are joined."""
        environment = from_json(self._row["environment"])
        known_versions = environment.get("versions", {})
        environment |= {name: getattr(event, name) for name in names}
        if "versions" in names:
            environment["versions"] = known_versions | environment["versions"]
        self._row["environment"] = clean(to_json(environment))
