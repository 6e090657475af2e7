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
from sqlalchemy import delete, select

import registry.migrations
from registry import migrate, schema
from registry.connection import make_engine, open_engine, parse_url
from registry.curves import CurveWriter
from registry.errors import StoreOutdated
from registry.queries import Reader
from registry.rows import from_stored

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "schema"
NEXT_REVISION = f"{int(schema.REVISION) + 1:04d}"
NEXT = f"""
import sqlalchemy as sa
from alembic import op
revision = "{NEXT_REVISION}"
down_revision = "{schema.REVISION}"

def upgrade():
    op.add_column("runs", sa.Column("mood", sa.Text))
    ENDING
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


def read_structure(path):
    """Return tables, columns, keys, indices and views; a column that was added reads as any other.

    The text of a table differs: SQLite puts an added column behind the constraints.
    """
    connection = sqlite3.connect(path)

    def ask(pragma):
        return connection.execute(f"PRAGMA {pragma}").fetchall()

    found = {}
    for kind, name, sql in read_schema(path):
        if kind == "table":
            indices = sorted(row[1:] for row in ask(f"index_list({name})"))
            found[name] = (ask(f"table_xinfo({name})"), ask(f"foreign_key_list({name})"), indices)
            found[name] += ("WITHOUT ROWID" in sql,)
        elif kind == "index":
            found[name] = ask(f"index_xinfo({name})")
        else:
            found[name] = " ".join(sql.split())
    connection.close()
    return found


@pytest.fixture(params=sorted(ASSETS.glob("*.sql")), ids=lambda path: path.stem)
def stored(request, home):
    """A registry that an older version wrote; returns its revision."""
    home.mkdir()
    connection = sqlite3.connect(home / "registry.db")
    connection.executescript(request.param.read_text())
    connection.close()
    return request.param.stem


@pytest.fixture
def older(url, write_run, monkeypatch, tmp_path):
    """A registry of this schema under a tsx of the next one; returns what makes it the next."""
    from registry.store import ingest

    engine = open_engine(url, readonly=False)
    ingest(engine, write_run())
    engine.dispose()

    def make(ending="pass"):
        folder = tmp_path / "migrations"
        shutil.copytree(
            registry.migrations.__path__[0], folder, ignore=shutil.ignore_patterns("__pycache__")
        )
        (folder / "versions" / f"r{NEXT_REVISION}_mood.py").write_text(
            NEXT.replace("ENDING", ending)
        )
        monkeypatch.setattr(registry.migrations, "__path__", [str(folder)])
        monkeypatch.setattr(schema, "REVISION", NEXT_REVISION)

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
    assert read_structure(fresh) == read_structure(migrated)
    assert len(read_structure(fresh)) > 20


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
    now = schema.REVISION
    older()
    open_engine(url, readonly=False).dispose()
    columns = [sql for _, name, sql in read_schema(home / "registry.db") if name == "runs"]
    assert "mood" in columns[0]
    copies = list(home.glob(f"registry.db.schema-{now}-*"))
    assert len(copies) == 1
    assert "mood" not in str(read_schema(copies[0]))
    with Reader.open(url) as reader:
        assert [run.id for run in reader.list_runs()] == ["aaaa0000"]
    open_engine(url, readonly=False).dispose()
    assert len(list(home.glob("registry.db.schema-*"))) == 1


def test_readers_of_a_stored_registry_name_the_command(stored, url, home):
    before = (home / "registry.db").read_bytes()
    with pytest.raises(StoreOutdated, match=f"schema {stored}") as caught:
        Reader.open(url)
    assert caught.value.next_command == "tsx registry migrate"
    assert (home / "registry.db").read_bytes() == before


def test_a_stored_registry_migrates_to_what_is_built_afresh(stored, url, home, tmp_path):
    before = read_schema(home / "registry.db")
    open_engine(url, readonly=False).dispose()
    fresh = tmp_path / "fresh.db"
    open_engine(f"sqlite:///{fresh}", readonly=False).dispose()
    assert read_structure(home / "registry.db") == read_structure(fresh)
    (copy,) = home.glob(f"registry.db.schema-{stored}-*")
    assert read_schema(copy) == before
    with Reader.open(url) as reader:
        runs = reader.list_runs()
        assert len(runs) == 2
        assert {run.project for run in runs} == {""}
        curve = reader.get_series(runs[-1].id, "train/loss")
        assert len(curve) == 260
        assert max(curve.values[:200]) in reader.get_outline(runs[-1].id, "train/loss", 4).values


def test_what_is_computed_of_stored_curves_is_what_folding_gives(stored, url):
    engine = open_engine(url, readonly=False)
    tables = (schema.summaries, schema.rollups)
    with engine.begin() as connection:
        migrated = [sorted(connection.execute(select(table)), key=str) for table in tables]
        names = dict(connection.execute(select(schema.metric_keys)).all())
        points = connection.execute(
            select(schema.metrics).order_by(schema.metrics.c.run, schema.metrics.c.seq)
        ).all()
        for table in (*tables, schema.metrics):
            connection.execute(delete(table))
        for run in {point.run for point in points}:
            writer = CurveWriter(connection, run)
            for point in points:
                if point.run == run:
                    value = from_stored(point.value, point.flag)
                    writer.add(point.seq, point.step, {names[point.key]: value}, point.time_ms)
            writer.flush()
        folded = [sorted(connection.execute(select(table)), key=str) for table in tables]
    engine.dispose()
    assert migrated == folded
    assert len(folded[1]) > 30


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
