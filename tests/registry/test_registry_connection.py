"""Where the registry is, and what is said when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

from registry import connection as connection_module
from registry import schema
from registry.connection import (
    RegistryWarning,
    find_home,
    find_url,
    get_default_url,
    is_network_path,
    open_engine,
)
from registry.errors import (
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreNewer,
    StoreOutdated,
    StoreUnavailable,
)
from registry.queries import Reader
from registry.store import Recorder

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def made(url, home):
    """Return the path of a registry that exists."""
    open_engine(url, readonly=False).dispose()
    return home / "registry.db"


def execute(path, *statements):
    with sqlite3.connect(path, isolation_level=None) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_home_and_url(monkeypatch, tmp_path):
    monkeypatch.setenv("TSX_HOME", "~/runs here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_home() == tmp_path / "runs here"
    monkeypatch.setenv("TSX_HOME", "relative")
    assert find_home() == Path.cwd() / "relative"
    monkeypatch.delenv("TSX_HOME")
    monkeypatch.delenv("TSX_REGISTRY", raising=False)
    assert find_home().is_absolute()
    assert find_home().name == "tsx"
    assert not (tmp_path / "x").exists()
    assert find_url(tmp_path / "x") == get_default_url(tmp_path / "x")
    monkeypatch.setenv("TSX_REGISTRY", "postgresql://host/db")
    assert find_url(tmp_path) == "postgresql://host/db"


@pytest.mark.parametrize("name", ["plain", "with space", "100%", "a?b#c", "tëst", "a'b", "a+b@c:d"])
def test_any_folder_name(tmp_path, name):
    if "?" in name and sqlalchemy.__version__ < "2.1":
        pytest.skip("SQLAlchemy 2.0 takes what follows a question mark for options")
    home = tmp_path / name
    open_engine(get_default_url(home), readonly=False).dispose()
    assert [path.name for path in home.iterdir()] == ["registry.db"]
    with Reader.open(get_default_url(home)) as reader:
        assert reader.list_runs() == []


def test_our_mark_and_modes(made, url):
    engine = open_engine(url, readonly=False)
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("application_id", "journal_mode", "foreign_keys")
        }
    engine.dispose()
    assert pragmas == {
        "application_id": schema.APPLICATION_ID,
        "journal_mode": "wal",
        "foreign_keys": 1,
    }


def test_a_reader_cannot_write(made, url):
    engine = open_engine(url, readonly=True)
    with engine.connect() as connection, pytest.raises(Exception, match="readonly"):
        connection.exec_driver_sql("DELETE FROM runs")
    engine.dispose()


@pytest.mark.parametrize("readonly", [True, False])
def test_newer(made, url, readonly):
    execute(made, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreNewer) as caught:
        open_engine(url, readonly=readonly)
    assert "9999" in caught.value.message
    assert schema.REVISION in caught.value.message
    assert "upgrade" in caught.value.next_command


def test_outdated_for_a_reader(made, url):
    execute(made, "UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(StoreOutdated, match="0000") as caught:
        Reader.open(url)
    assert caught.value.next_command


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"this is no database" * 300,
        lambda data: data[:100] + b"\xff" * (len(data) - 100),
        lambda data: data[: len(data) // 2],
        lambda data: data[:50],
    ],
)
def test_corrupt(made, url, damage, readonly):
    made.write_bytes(damage(made.read_bytes()))
    before = made.read_bytes()
    with pytest.raises(StoreCorrupt, match="tsx registry rebuild") as caught:
        open_engine(url, readonly=readonly)
    assert str(made) in caught.value.message
    assert made.read_bytes() == before


@pytest.mark.parametrize("readonly", [True, False])
def test_a_database_of_another_program(home, url, readonly):
    home.mkdir()
    execute(home / "registry.db", "CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)")
    with pytest.raises(StoreCorrupt):
        open_engine(url, readonly=readonly)
    execute(home / "registry.db", "PRAGMA application_id = 77")
    with pytest.raises(StoreCorrupt, match="another program"):
        open_engine(url, readonly=readonly)


def test_an_empty_file_becomes_a_registry(home, url):
    home.mkdir()
    (home / "registry.db").touch()
    with Reader.open(url) as reader:
        assert reader.list_runs() == []
    open_engine(url, readonly=False).dispose()
    assert (home / "registry.db").stat().st_size > 0


def test_locked_names_the_holder_and_moves_nothing(made, url, home, start_python):
    holder = start_python(HOLD, made, stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    before = sorted(path.name for path in home.iterdir())
    with pytest.raises(StoreLocked) as caught:
        Recorder(home / "runs" / "aaaa0000", url, timeout_s=0.2)
    assert f"pid {holder.pid}" in caught.value.message
    assert Path(sys.executable).name[:6] in caught.value.message
    after = sorted(path.name for path in home.iterdir())
    assert [name for name in after if name not in before] in ([], ["runs"])
    holder.stdin.close()
    holder.wait()
    Recorder(home / "runs" / "aaaa0000", url).close()


@pytest.mark.parametrize(
    "bad", ["", "nonsense", "://", "sqlite://", "sqlite:///:memory:", "registry.db", "a b c"]
)
def test_malformed_urls(bad):
    with pytest.raises(StoreUnavailable) as caught:
        open_engine(bad, readonly=False)
    assert caught.value.next_command


@pytest.mark.parametrize(
    "bad",
    [
        "mysql+absent://me:hunter2secret@host/db",
        "oracle://me:hunter2secret@host/db",
        "nosuchengine://me:hunter2secret@host/db",
        "postgresql+nosuchdriver://me:hunter2secret@host/db",
        "me:hunter2secret@host",
        "postgresql://me:hunter2secret@127.0.0.1:1/db?connect_timeout=2",
        "postgresql://me:hunter2secret@host:port/db",
    ],
)
@pytest.mark.parametrize("readonly", [True, False])
def test_an_engine_that_is_not_there_never_shows_the_password(bad, readonly):
    with pytest.raises(StoreUnavailable) as caught:
        open_engine(bad, readonly=readonly)
    assert "hunter2secret" not in caught.value.message + caught.value.next_command
    with pytest.raises(StoreUnavailable):
        Reader.open(bad)


@pytest.mark.parametrize("other", ["mysql://host/db", "oracle://host/db", "file:///tmp/x"])
def test_an_engine_that_no_driver_would_make_a_registry(other):
    with pytest.raises(StoreUnavailable, match="registries are SQLite or PostgreSQL") as caught:
        open_engine(other, readonly=True)
    assert "pip" not in caught.value.next_command


@pytest.mark.parametrize("readonly", [True, False])
def test_a_folder_in_the_registrys_place(home, url, readonly):
    (home / "registry.db").mkdir(parents=True)
    with pytest.raises(StoreCorrupt, match="is a folder"):
        open_engine(url, readonly=readonly)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    url = get_default_url(tmp_path / "file" / "home")
    with pytest.raises(StoreUnavailable, match="file"):
        open_engine(url, readonly=False)
    with pytest.raises(StoreUnavailable, match="file"):
        Recorder(tmp_path / "file" / "home" / "runs" / "a", url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path, url, home, made):
    home.chmod(0o500)
    try:
        with pytest.raises(StoreUnavailable):
            Recorder(home / "runs" / "a", url)
        with Reader.open(url) as reader:
            assert reader.list_runs() == []
    finally:
        home.chmod(0o700)


def test_errors_of_the_disk_are_explained(url, home, made, monkeypatch):
    def refuse(*args, **kwargs):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(connection_module.sqlite3, "connect", refuse)
    with pytest.raises(StoreUnavailable, match="disk is full") as caught:
        open_engine(url, readonly=False)
    assert isinstance(caught.value, StoreError)
    assert caught.value.next_command


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /data nfs4 rw 0 0
/dev/sdb1 /data/local ext4 rw 0 0
//smb/share /mnt/my\\040share cifs rw 0 0
nonsense
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/home/me", False),
        ("/data/tsx", True),
        ("/database", False),
        ("/data/local/tsx", False),
        ("/mnt/my share/x", True),
    ],
)
def test_network_file_systems(path, network):
    assert is_network_path(Path(path), MOUNTS) is network


def test_a_network_file_system_gets_a_rollback_journal(url, home, monkeypatch):
    monkeypatch.setattr(connection_module, "is_network_path", lambda path: True)
    with pytest.warns(RegistryWarning, match="network"):
        open_engine(url, readonly=False).dispose()
    assert (home / "registry.db").exists()
    open_engine(url, readonly=False).dispose()  # once is enough: warnings are errors here
    with sqlite3.connect(home / "registry.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
