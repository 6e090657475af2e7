"""A reader's one connection: opened late, replaced when the registry's file is.

Owns what a registry that does not exist yet looks like (an empty one) and when a connection must be
opened anew: the file appeared, was rebuilt, or the last query failed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy
from sqlalchemy import Connection, Engine, case, func, select
from sqlalchemy.engine import URL

from registry.connection import check_schema, create_tables, make_engine, read_revision
from registry.errors import UnknownRun
from registry.faults import explained, get_path, is_sqlite
from registry.schema import runs

_READ_TIMEOUT_S = 5.0  # only a rollback journal or a file being made keeps a reader waiting


class Link:
    """Holds the connection of one reader. Errors come out as the registry's own."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._file = 0  # inode of the SQLite file that is open; 0 while there is none
        self.epoch = 0  # connections opened so far: data versions of two of them do not compare

    def close(self) -> None:
        """Let go of the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        engine, self._engine = self._engine, None
        self._file = 0
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
            if connection is not None:
                connection.close()
            if engine is not None:
                engine.dispose()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a connection in a transaction that sees one state of the registry."""
        try:
            with explained(self._url):
                connection = self._get_connection()
                with connection.begin():
                    yield connection
        except UnknownRun:
            raise
        except BaseException:
            self.close()
            raise

    def read_version(self) -> int:
        """Return a number that changes when anything was written."""
        with explained(self._url):
            connection = self._get_connection()
            if connection.dialect.name == "sqlite":
                # Past SQLAlchemy, whose transaction would cost more than the question.
                cursor = connection.connection.cursor()
                version = int(cursor.execute("PRAGMA data_version").fetchone()[0])
                cursor.close()
                return (self.epoch << 32) + version
        presumed = func.sum(case((runs.c.presumed, 1), else_=0))
        query = select(func.count(), func.sum(runs.c.journal_offset), presumed)
        with self.snapshot() as connection:
            found = connection.execute(query.select_from(runs)).one()
        return hash((self.epoch, *found))

    def _get_connection(self) -> Connection:
        """Return the connection, another one when the file has appeared or was replaced."""
        file = self._find_file()
        if self._connection is None or file != self._file:
            self.close()
            try:
                return self._open(file)
            except BaseException:
                self.close()
                raise
        return self._connection

    def _find_file(self) -> int:
        """Return the inode of the SQLite file, 0 while there is nothing in it; -1 for a server."""
        if not is_sqlite(self._url):
            return -1
        try:
            status = get_path(self._url).stat()
        except FileNotFoundError:
            return 0
        return status.st_ino if status.st_size else 0

    def _open(self, file: int) -> Connection:
        """Connect; an absent or unfinished registry is replaced by an empty one in memory."""
        self.epoch += 1
        if file:
            self._engine = make_engine(self._url, readonly=True, timeout_s=_READ_TIMEOUT_S)
            connection = self._connection = self._engine.connect()
            with connection.begin():
                unfinished = read_revision(connection) is None and not (
                    connection.dialect.get_table_names(connection)
                )
                if not unfinished:
                    check_schema(connection, self._url)
            if not unfinished:
                self._file = file
                return connection
            self.close()
        self._engine = sqlalchemy.create_engine("sqlite://")
        connection = self._connection = self._engine.connect()
        create_tables(connection)
        connection.commit()
        self._file = 0
        return connection
