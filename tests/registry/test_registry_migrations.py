"""The schema and its history say the same."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import registry.migrations
from registry import migrate, schema
from registry.connection import make_engine, open_engine, parse_url
from registry.queries import Reader

NEXT = """
import sqlalchemy as sa
from alembic import op
revision = "0002"
down_revision = "0001"

def upgrade():
    op.add_column("runs", sa.Column("mood", sa.Text))
    {ending}
"""


def upgrade(url):
    """Make a registry by migrations alone."""
    engine = make_engine(parse_url(url), readonly=False, timeout_s=1.0)
    config = migrate.make_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return engine


def read_schema(path):
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
    connection.close()
    return found


@pytest.fixture
def older(url, write_run, monkeypatch, tmp_path):
    """A registry of schema 0001 under a tsx whose schema is 0002; returns the writer of 0002."""
    from registry.store import ingest

    engine = open_engine(url, readonly=False)
    ingest(engine, write_run())
    engine.dispose()

    def make(ending="pass"):
        folder = tmp_path / "migrations"
        shutil.copytree(
            registry.migrations.__path__[0], folder, ignore=shutil.ignore_patterns("__pycache__")
        )
        (folder / "versions" / "r0002_mood.py").write_text(NEXT.format(ending=ending))
        monkeypatch.setattr(registry.migrations, "__path__", [str(folder)])
        monkeypatch.setattr(schema, "REVISION", "0002")

    return make


def test_revision_is_alembics_head():
    script = ScriptDirectory.from_config(migrate.make_config())
    assert script.get_heads() == [schema.REVISION]


def test_revisions_are_numbered_and_named_by_their_files():
    script = ScriptDirectory.from_config(migrate.make_config())
    for revision in script.walk_revisions():
        assert Path(revision.path).name.startswith(f"r{revision.revision}_")
        assert revision.revision.isdigit()


def test_fresh_equals_migrated(tmp_path):
    fresh, migrated = tmp_path / "fresh.db", tmp_path / "migrated.db"
    open_engine(f"sqlite:///{fresh}", readonly=False).dispose()
    upgrade(f"sqlite:///{migrated}").dispose()
    assert read_schema(fresh) == read_schema(migrated)
    assert len(read_schema(fresh)) > 10


def test_alembic_finds_nothing_to_add(tmp_path):
    engine = upgrade(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def test_a_migrated_registry_opens(tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    upgrade(url).dispose()
    open_engine(url, readonly=False).dispose()
    with Reader.open(url) as reader:
        assert reader.list_runs() == []


def test_an_older_registry_is_migrated_and_copied(older, url, home):
    older()
    open_engine(url, readonly=False).dispose()
    columns = [sql for _, name, sql in read_schema(home / "registry.db") if name == "runs"]
    assert "mood" in columns[0]
    copies = list(home.glob("registry.db.schema-0001-*"))
    assert len(copies) == 1
    assert "mood" not in str(read_schema(copies[0]))
    with Reader.open(url) as reader:
        assert [run.id for run in reader.list_runs()] == ["aaaa0000"]
    open_engine(url, readonly=False).dispose()
    assert len(list(home.glob("registry.db.schema-*"))) == 1


def test_a_migration_that_fails_changes_nothing(older, url, home):
    before = read_schema(home / "registry.db")
    older(ending="raise RuntimeError('half way')")
    with pytest.raises(RuntimeError, match="half way"):
        open_engine(url, readonly=False)
    assert read_schema(home / "registry.db") == before


def test_every_column_has_its_unit_or_meaning_beside_it():
    lines = Path(schema.__file__).read_text().splitlines()
    columns = [line for line in lines if line.strip().startswith("Column(")]
    assert len(columns) > 70
    assert [line for line in columns if "#" not in line] == []
