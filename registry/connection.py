"""Which database the registry is, and an engine on it that is safe to use.

Owns TSX_REGISTRY, how SQLite is opened (WAL, or a rollback journal on a network file
system), and the check that the file is ours and of a schema this version knows.
A writer creates what is missing and migrates what is old; a reader changes nothing, ever.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.engine import URL, make_url

from registry import schema
from registry.errors import StoreNewer, StoreOutdated, StoreUnavailable
from registry.faults import corrupt, explained, get_path, is_sqlite, show
from registry.home import find_home
from registry.redact import Redactor, hide_url_password

DEFAULT_TIMEOUT_S = 10.0  # how long a locked registry is waited for

_NETWORK_TYPES = frozenset(
    [
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afpfs", "9p", "afs", "ceph"),
        *("glusterfs", "lustre", "gpfs", "beegfs", "pvfs2", "orangefs", "ncpfs", "davfs"),
        *("webdav", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"),
    ]
)


class RegistryWarning(UserWarning):
    """Something about the registry works, but less well than it could."""


def find_url(home: Path) -> str:
    """Return the URL of the registry: TSX_REGISTRY, or an SQLite file below `home`."""
    return os.environ.get("TSX_REGISTRY", "") or get_default_url(home)


def get_default_url(home: Path) -> str:
    """Return the URL of the SQLite file below `home`."""
    path = home / "registry.db"
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def parse_url(url: str) -> URL:
    """Return the parsed URL.

    Raises:
        StoreUnavailable: not an SQLAlchemy URL, or one that no other process could read.
    """
    shown = hide_url_password(Redactor.from_environ(os.environ).text(url))
    example = "TSX_REGISTRY=sqlite:////absolute/path/registry.db"
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        raise StoreUnavailable(
            f"TSX_REGISTRY={shown} is not an SQLAlchemy URL", next_command=example
        ) from None
    if is_sqlite(parsed) and parsed.database in (None, "", ":memory:"):
        raise StoreUnavailable(
            f"TSX_REGISTRY={shown} is gone when the command ends; name a file", next_command=example
        )
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def open_engine(url: str, *, readonly: bool, timeout_s: float = DEFAULT_TIMEOUT_S) -> Engine:
    """Return an engine on a registry whose schema is the one this version knows.

    Args:
        url: an SQLAlchemy URL.
        readonly: change nothing; else create or migrate (with a backup beside it) first.
        timeout_s: how long a lock is waited for, here and in every later statement.

    Raises:
        StoreLocked, StoreNewer, StoreOutdated, StoreCorrupt, StoreUnavailable: see registry.errors.
    """
    parsed = parse_url(url)
    with explained(parsed):
        engine = make_engine(parsed, readonly=readonly, timeout_s=timeout_s)
        try:
            if readonly:
                with engine.connect() as connection:
                    check_schema(connection, parsed)
            else:
                _prepare(engine, parsed)
        except BaseException:
            engine.dispose()
            raise
    return engine


def has_schema(connection: Connection) -> bool:
    """Tell whether the registry's tables exist; False for an empty database."""
    return bool(connection.dialect.has_table(connection, "alembic_version"))


def check_schema(connection: Connection, url: URL) -> None:
    """Raise unless the database is a registry of this version's schema.

    Raises:
        StoreNewer, StoreOutdated, StoreCorrupt: see registry.errors.
    """
    _check_application(connection, url)
    stored = read_revision(connection)
    if stored is None:
        raise corrupt(url, "holds no registry")
    if stored == schema.REVISION:
        return
    if stored.isdigit() and int(stored) < int(schema.REVISION):
        raise StoreOutdated(
            f"registry {show(url)} has schema {stored}; this tsx reads schema {schema.REVISION}",
            next_command="tsx registry migrate",
        )
    raise newer(url, stored)


def read_revision(connection: Connection) -> str | None:
    """Return the revision that the database records, None when it has none."""
    if not has_schema(connection):
        return None
    found = connection.execute(sqlalchemy.select(schema.alembic_version.c.version_num)).scalar()
    return None if found is None else str(found)


def newer(url: URL, stored: str) -> StoreNewer:
    """Return the error for a registry that a newer tsx has written."""
    return StoreNewer(
        f"registry {show(url)} has schema {stored}, written by a newer tsx; "
        f"this tsx knows schema {schema.REVISION}",
        next_command="pip install --upgrade tsx",
    )


def is_network_path(path: Path, mounts: str | None = None) -> bool:
    """Tell whether a path is on a network file system, by the table of mounts."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            mounts = _read_partitions()
    found, found_len = "", -1
    resolved = path.absolute()
    for line in mounts.splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        folder = words[1].replace("\\040", " ")
        # The last mount on a folder is the one that shows.
        if resolved.is_relative_to(folder) and len(folder) >= found_len:
            found, found_len = words[2], len(folder)
    return found.lower() in _NETWORK_TYPES


def _read_partitions() -> str:
    """Return the mounts in /proc/mounts' form, where there is no /proc (macOS)."""
    import psutil

    lines = []
    for part in psutil.disk_partitions(all=True):
        folder = part.mountpoint.replace(" ", "\\040")
        lines.append(f"device {folder} {part.fstype}")
    return "\n".join(lines)


def make_engine(url: URL, *, readonly: bool, timeout_s: float) -> Engine:
    """Return an engine that has not connected yet."""
    if is_sqlite(url):
        return _make_sqlite_engine(get_path(url), readonly=readonly, timeout_s=timeout_s)
    if url.get_backend_name() != "postgresql":
        raise StoreUnavailable(
            f"TSX_REGISTRY={show(url)}: registries are SQLite or PostgreSQL",
            next_command="TSX_REGISTRY=postgresql://user@host/database",
        )
    try:
        engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
    except (exc.NoSuchModuleError, ImportError) as error:
        missing = getattr(error, "name", None) or url.drivername
        raise StoreUnavailable(
            f"TSX_REGISTRY={show(url)} needs {missing}, which is not installed",
            next_command="pip install 'tsx[postgresql]'",
        ) from None

    @event.listens_for(engine, "connect")
    def _limit_waiting(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {int(timeout_s * 1000)}")
        connection.commit()

    return engine


def _make_sqlite_engine(path: Path, *, readonly: bool, timeout_s: float) -> Engine:
    """Return an engine on an SQLite file; transactions are begun by us, not by the driver."""

    def connect() -> sqlite3.Connection:
        if readonly:
            return _connect_readonly(path, timeout_s)
        path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(f"{path.as_uri()}?mode=rwc", timeout_s)

    engine = sqlalchemy.create_engine(
        URL.create("sqlite", database=str(path)), creator=connect, poolclass=sqlalchemy.QueuePool
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer asks for the lock at once: a transaction that reads first and writes later
        # fails without waiting when another one wrote in between.
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return engine


def _connect(uri: str, timeout_s: float) -> sqlite3.Connection:
    """Return a connection in autocommit mode that any one thread at a time may use."""
    return sqlite3.connect(
        uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False
    )


def _connect_readonly(path: Path, timeout_s: float) -> sqlite3.Connection:
    """Return a connection that cannot write; in a folder that cannot be written either."""
    connection = _connect(f"{path.as_uri()}?mode=ro", timeout_s)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        # WAL needs an index file beside the database. Without one, and without a way to make it,
        # nobody is writing here and the file can be read as it stands.
        name = getattr(error, "sqlite_errorname", "")
        refused = name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR_SHM"))
        if not refused or _has_wal(path) or not path.is_file():
            raise
        connection.close()
        return _connect(f"{path.as_uri()}?mode=ro&immutable=1", timeout_s)
    return connection


def _has_wal(path: Path) -> bool:
    """Tell whether there is a write-ahead log with something in it."""
    with contextlib.suppress(OSError):
        return path.with_name(path.name + "-wal").stat().st_size > 0
    return False


def _prepare(engine: Engine, url: URL) -> None:
    """Create an empty database's tables, migrate an older one, refuse what is not ours."""
    if is_sqlite(url):
        _set_journal_mode(engine, get_path(url))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({schema.APPLICATION_ID})")
        _check_application(connection, url)
        stored = read_revision(connection)
        if stored is None:
            _create(connection, url)
            return
    if stored == schema.REVISION:
        return
    if not stored.isdigit() or int(stored) > int(schema.REVISION):
        raise newer(url, stored)
    from registry.migrate import migrate  # Alembic is slow to import and needed once a release

    migrate(engine, url, stored)


def _create(connection: Connection, url: URL) -> None:
    """Create every table in the transaction of `connection`."""
    if connection.dialect.get_table_names(connection):
        raise corrupt(url, "is a database of another program")
    create_tables(connection)
    schema.alembic_metadata.create_all(connection)
    connection.execute(schema.alembic_version.insert(), {"version_num": schema.REVISION})
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA application_id = {schema.APPLICATION_ID}")


def create_tables(connection: Connection) -> None:
    """Create the tables of runs and the views over them."""
    schema.metadata.create_all(connection)
    for name, query in schema.VIEWS.items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")


def _check_application(connection: Connection, url: URL) -> None:
    """Raise StoreCorrupt for an SQLite file that another program has made."""
    if connection.dialect.name != "sqlite":
        return
    found = connection.exec_driver_sql("PRAGMA application_id").scalar()
    if found not in (0, schema.APPLICATION_ID):
        raise corrupt(url, f"is a database of another program (application id {found})")


def _set_journal_mode(engine: Engine, path: Path) -> None:
    """Choose WAL, or a rollback journal where shared memory does not work, with one warning."""
    network = is_network_path(path)
    wanted = "delete" if network else "wal"
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        new = cursor.execute("PRAGMA page_count").fetchone()[0] == 0
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] == wanted and not new:
            return
        # An application id says the file is ours before its mode is changed.
        if cursor.execute("PRAGMA application_id").fetchone()[0] not in (0, schema.APPLICATION_ID):
            return
        got = cursor.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0]
        cursor.close()
    finally:
        raw.close()
    if network or got != wanted:
        warnings.warn(
            f"registry {path} is on a network file system: it uses a rollback journal, "
            "and readers may wait for writers; set TSX_HOME to a local folder for speed",
            RegistryWarning,
            stacklevel=4,
        )


__all__ = [
    "DEFAULT_TIMEOUT_S",
    "RegistryWarning",
    "check_schema",
    "create_tables",
    "find_home",
    "find_url",
    "get_default_url",
    "has_schema",
    "is_network_path",
    "make_engine",
    "newer",
    "open_engine",
    "parse_url",
    "read_revision",
]
