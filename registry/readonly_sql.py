"""Answer one question in SQL, and change nothing, whatever it says.

Three nets hold on SQLite: the file is opened read-only, `query_only` is on, and an authorizer lets
only SELECT, reads, functions and recursion through. On PostgreSQL the one statement runs in a READ
ONLY transaction that is rolled back; what else the role of the URL may do is the server's matter.
Time and memory are bounded. Rows come as they are asked for: a table need not fit into memory.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from registry import schema
from registry.link import Link

_FIRST_WORDS = ("select", "with", "values", "explain")
_MAX_SQL = 100_000  # characters
_MAX_VALUE_BYTES = 64 * 1024 * 1024  # of one text or blob; outputs.text is the largest of ours
_MAX_HEAP_BYTES = 1024 * 1024 * 1024  # what does not fit is sorted in temporary files
_STEPS_PER_LOOK = 20_000  # of SQLite's machine, about a millisecond
_ROWS_PER_FETCH = 1000

# Functions of SQLite builds that reach beyond the database.
_BARRED = {"load_extension", "fts3_tokenizer", "writefile", "readfile", "edit", "fsdir", "lsmode"}
_WORDS = {
    getattr(sqlite3, name): name.removeprefix("SQLITE_").lower().replace("_", " ")
    for name in dir(sqlite3)
    if re.fullmatch(
        "SQLITE_(CREATE|DROP|ALTER|ATTACH|DETACH|INSERT|UPDATE|DELETE|PRAGMA|TRANSACTION|SAVEPOINT"
        "|REINDEX|ANALYZE)[A-Z_]*",
        name,
    )
}
_COMMENT = re.compile(r"\s+|--[^\n]*(?:\n|$)|/\*.*?\*/", re.DOTALL)
_READ_ONLY_STATES = {"25006", "42501"}  # read_only_sql_transaction, insufficient_privilege
_TIMED_OUT = "57014"  # query_canceled


class QueryRefused(Exception):
    """The text is no question that may be asked; the message says why."""


class QueryTimeout(Exception):
    """The question takes longer than it may."""


class Rows:
    """The answer: names of the columns, each of them once, and rows to iterate over once."""

    def __init__(self, columns: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> None:
        self.columns = columns
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._rows


@contextlib.contextmanager
def ask(url: URL, sql: str, *, timeout_s: float) -> Iterator[Rows]:
    """Give the answer to one statement that reads.

    Args:
        url: the registry; one that does not exist yet is empty.
        sql: the statement.
        timeout_s: how long the database may take, the time between two rows not counted.

    Raises:
        QueryRefused: it does not only read, or cannot be understood.
        QueryTimeout: here, and while rows are taken.
        StoreError: the registry cannot be read.
        KeyboardInterrupt: somebody pressed Ctrl-C while the database was at work.
    """
    _check_text(sql)
    link = Link(url)
    fault: OSError | None = None
    try:
        with link.snapshot() as connection:
            answer = _ask_sqlite if connection.dialect.name == "sqlite" else _ask_postgresql
            try:
                yield from answer(connection, sql, timeout_s)
            except OSError as error:  # of whoever writes the rows: no fault of the registry
                fault = error
    finally:
        link.close()
    if fault is not None:
        raise fault


def _check_text(sql: str) -> None:
    """Refuse what is too long, empty, or begins like no question."""
    if len(sql) > _MAX_SQL:
        raise QueryRefused(f"is {len(sql):,} characters long; at most {_MAX_SQL:,}")
    begin = 0
    while match := _COMMENT.match(sql, begin):
        begin = match.end()
    word = re.match(r"\w*", sql[begin:].lstrip("(").lstrip())
    first = word[0] if word else ""
    if not sql[begin:].strip("; \n"):
        raise QueryRefused("is empty")
    if first.lower() not in _FIRST_WORDS:
        raise QueryRefused(f"begins with {first or sql[begin : begin + 10]!r} and not with SELECT")


class _Guard:
    """Watches one SQLite connection: what a statement wants to do, and how long it takes."""

    def __init__(self, timeout_s: float) -> None:
        self.denied = ""  # what the statement wanted
        self.is_late = False
        self.timeout_s = timeout_s
        self._left_s = timeout_s
        self._deadline = 0.0

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count the time of what happens inside."""
        started = time.monotonic()
        self._deadline = started + self._left_s
        try:
            yield
        finally:
            self._left_s -= time.monotonic() - started

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Let reading through and remember the first thing that is not."""
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() not in _BARRED:
                return sqlite3.SQLITE_OK
            self.denied = self.denied or f"call {second}()"
        else:
            is_hidden = first is None or first.startswith("sqlite_")
            what = "the schema" if is_hidden else str(first)
            self.denied = self.denied or f"{_WORDS.get(action, 'touch')} {what}"
        return sqlite3.SQLITE_DENY

    def look(self) -> int:
        """Stop the statement when its time is over; called by SQLite as it works."""
        self.is_late = time.monotonic() > self._deadline
        return int(self.is_late)


def _ask_sqlite(connection: Connection, sql: str, timeout_s: float) -> Iterator[Rows]:
    """Yield the answer of an SQLite registry, once."""
    raw: Any = connection.connection.driver_connection
    guard = _Guard(timeout_s)
    raw.execute("PRAGMA query_only = ON")
    raw.execute("PRAGMA trusted_schema = OFF")
    raw.execute(f"PRAGMA hard_heap_limit = {_MAX_HEAP_BYTES}")
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    raw.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    raw.text_factory = _to_text
    raw.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")  # made at their first use
    raw.set_authorizer(guard.authorize)
    raw.set_progress_handler(guard.look, _STEPS_PER_LOOK)
    cursor = raw.cursor()
    try:
        with _told(guard, raw), guard.working():
            cursor.execute(sql)
        if cursor.description is None:
            raise QueryRefused("gives no rows")
        yield Rows(_name_columns(cursor.description), _iter_sqlite(cursor, raw, guard))
    finally:
        cursor.close()
        raw.set_authorizer(None)  # the transaction is ended through this connection
        raw.set_progress_handler(None, 0)


def _iter_sqlite(cursor: Any, raw: Any, guard: _Guard) -> Iterator[tuple[Any, ...]]:
    """Yield the rows; only the database's time counts."""
    while True:
        with _told(guard, raw), guard.working():
            rows = cursor.fetchmany(_ROWS_PER_FETCH)
        if not rows:
            return
        yield from rows


@contextlib.contextmanager
def _told(guard: _Guard, raw: Any) -> Iterator[None]:
    """Say what is wrong with a question in place of SQLite's errors."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name == "SQLITE_INTERRUPT":
            if guard.is_late:
                raise QueryTimeout(f"took longer than {guard.timeout_s:g} s") from None
            raise KeyboardInterrupt from None  # raised inside the callback, which SQLite ends with
        raw.set_authorizer(None)
        if guard.denied:
            raise QueryRefused(f"would {guard.denied}; only reading is allowed") from None
        if name in ("SQLITE_TOOBIG", "SQLITE_NOMEM"):
            raise QueryRefused("makes a value, or a table, too large to hold") from None
        if name in ("SQLITE_ERROR", "SQLITE_AUTH", "") or isinstance(
            error, sqlite3.ProgrammingError
        ):
            raise QueryRefused(_explain(str(error), lambda: _list_names(raw))) from None
        raise  # the file's fault, not the question's
    except sqlite3.Warning as error:  # how Python 3.11 and older call several statements
        raise QueryRefused(str(error)) from None


def _to_text(value: bytes) -> str:
    """Return text as it is stored; bytes that are none become visible."""
    return value.decode("utf-8", "replace")


def _explain(text: str, list_names: Callable[[], list[str]]) -> str:
    """Return a database's complaint, with the nearest name where one is not known."""
    if "one statement at a time" in text:
        return "is more than one statement"
    if "bindings supplied" in text or "binding parameter" in text.lower():
        return "has parameters (?, :name); write the values out"
    text = text.splitlines()[0]
    known = re.search(r"no such (?:column|table|function): ([\w.\"]+)", text) or re.search(
        r"(?:column|relation) \"?([\w.]+)\"? does not exist", text
    )
    if known is None:
        return f"is not understood: {text}"
    wanted = known[1].rpartition(".")[2].strip('"')
    nearest = difflib.get_close_matches(wanted, sorted(set(list_names())), n=3, cutoff=0.5)
    return f"is not understood: {text}" + (f"; nearest: {', '.join(nearest)}" if nearest else "")


def _list_names(raw: Any) -> list[str]:
    """Return the tables, views and columns of an SQLite registry."""
    tables = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
    columns = (
        "SELECT c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c "
        "WHERE m.type IN ('table', 'view')"
    )
    with contextlib.suppress(sqlite3.Error):
        return [row[0] for query in (tables, columns) for row in raw.execute(query)]
    return []


def _ask_postgresql(connection: Connection, sql: str, timeout_s: float) -> Iterator[Rows]:
    """Yield the answer of a PostgreSQL registry, once; nothing of it is ever committed."""
    raw: Any = connection.connection.driver_connection
    try:
        with raw.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute(f"SET LOCAL statement_timeout = {max(1, round(timeout_s * 1000))}")
            # One row at a time, in the protocol that takes one statement and no more.
            rows = cursor.stream(sql)
            with _told_postgresql(timeout_s):
                first = next(rows, None)
            if cursor.description is None:
                raise QueryRefused("gives no rows")
            yield Rows(_name_columns(cursor.description), _iter_postgresql(first, rows, timeout_s))
            rows.close()
    finally:
        raw.rollback()


def _iter_postgresql(
    first: tuple[Any, ...] | None, rows: Iterator[tuple[Any, ...]], timeout_s: float
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows."""
    while first is not None:
        yield first
        with _told_postgresql(timeout_s):
            first = next(rows, None)


@contextlib.contextmanager
def _told_postgresql(timeout_s: float) -> Iterator[None]:
    """Say what is wrong with a question in place of the server's errors."""
    try:
        yield
    except Exception as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        state = getattr(cause, "sqlstate", None)
        if state == _TIMED_OUT:
            raise QueryTimeout(f"took longer than {timeout_s:g} s") from None
        if state in _READ_ONLY_STATES:
            reason = str(cause).splitlines()[0]
            raise QueryRefused(f"would do more than read: {reason}") from None
        if state is not None and state[:2] in ("42", "22", "0A", "21", "26", "25"):
            names = [c.name for table in schema.metadata.tables.values() for c in table.c]
            names += [*schema.metadata.tables, *schema.VIEWS]
            if "multiple commands" in str(cause):
                raise QueryRefused("is more than one statement") from None
            raise QueryRefused(_explain(str(cause), lambda: names)) from None
        raise


def _name_columns(description: Any) -> tuple[str, ...]:
    """Return the names of the columns; a name that comes again is numbered."""
    names: list[str] = []
    for name in (str(column[0]) for column in description):
        count, unique = 1, name
        while unique in names:
            count += 1
            unique = f"{name}_{count}"
        names.append(unique)
    return tuple(names)
