"""tsx registry: where it is, whether it is whole, and how to get it back."""

from __future__ import annotations

import json
import sqlite3

import pytest

from registry.schema import REVISION

EVERY_VERB = [
    ("runs",),
    ("runs", "--json"),
    ("show", "@last"),
    ("metrics", "@last"),
    ("compare", "@last", "@-2"),
    ("resume", "@last"),
    (),
]


@pytest.fixture
def database(record, tmp_path):
    """Record two runs and return the registry's file."""
    record("aaaaaaaa", "first", {"train/loss": [3.0, 2.0]})
    record("bbbbbbbb", "second", {"train/loss": [1.0]}, time=1_700_000_100.0)
    return tmp_path / "tsx-home" / "registry.db"


def break_file(database, content):
    """Put other bytes in a database's place; its log goes too, or it would mend the damage."""
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(content)


def test_path_says_where_everything_is(tsx, tmp_path):
    home = tmp_path / "tsx-home"
    where = json.loads(tsx("registry", "path", "--json").out)
    assert where == {
        "home": str(home),
        "runs": str(home / "runs"),
        "registry": str(home / "registry.db"),
    }
    lines = tsx("registry", "path").out.splitlines()
    assert [line.split() for line in lines] == [list(item) for item in where.items()]
    assert not home.exists()


def test_path_shows_no_password(tsx, monkeypatch):
    monkeypatch.setenv("TSX_REGISTRY", "postgresql://me:hunter2hunter2@db.example/tsx")
    done = tsx("registry", "path")
    assert done.status == 0
    assert "db.example" in done.out
    assert "hunter2" not in done.out


@pytest.mark.parametrize("verb", EVERY_VERB, ids=" ".join)
def test_every_verb_names_the_command_that_mends_a_corrupt_registry(tsx, database, verb):
    break_file(database, b"no database at all" * 500)
    done = tsx(*verb)
    assert (done.status, done.out) == (3, "")
    assert str(database) in done.err
    assert done.err.endswith("next: tsx registry rebuild\n")
    assert database.read_bytes() == b"no database at all" * 500


def test_rebuild_brings_the_runs_back_and_keeps_the_old_file(tsx, database):
    break_file(database, b"no database at all" * 500)
    done = tsx("registry", "rebuild")
    assert done.status == 0
    assert done.out.startswith("2 runs from ")
    assert "is kept as" in done.err
    (kept,) = database.parent.glob("registry.db.broken-*")
    assert kept.read_bytes() == b"no database at all" * 500
    runs = json.loads(tsx("runs", "--json").out)["runs"]
    assert [run["id"] for run in runs] == ["bbbbbbbb", "aaaaaaaa"]


def test_rebuild_as_json(tsx, database):
    report = json.loads(tsx("registry", "rebuild", "--json").out)
    assert set(report) == {"runs", "lines", "bad_lines", "unreadable", "kept"}
    assert (report["runs"], report["bad_lines"], report["unreadable"]) == (2, 0, [])
    assert report["kept"].startswith(str(database))


def test_rebuild_says_which_lines_were_no_events(tsx, database):
    with (database.parent / "runs" / "aaaaaaaa" / "events.jsonl").open("a") as journal:
        journal.write("not an event\n")
    assert "1 lines were no events" in tsx("registry", "rebuild").err


def test_a_file_that_tsx_registry_names_is_not_moved(tsx, database, monkeypatch):
    monkeypatch.setenv("TSX_REGISTRY", f"sqlite:///{database}")
    before = database.stat().st_ino
    done = tsx("registry", "rebuild")
    assert done.status == 3
    assert "never moved" in done.err
    assert database.stat().st_ino == before


def test_a_newer_registry_is_refused_with_both_versions(tsx, database):
    connection = sqlite3.connect(database)
    connection.execute("UPDATE alembic_version SET version_num = '0099'")
    connection.commit()
    connection.close()
    for verb in [*EVERY_VERB, ("registry", "migrate")]:
        done = tsx(*verb)
        assert (done.status, done.out) == (3, "")
        assert "0099" in done.err
        assert REVISION in done.err
        assert "Traceback" not in done.err


def test_migrate_of_a_registry_of_this_version_changes_nothing(tsx, database):
    before = database.stat().st_ino
    done = tsx("registry", "migrate")
    assert done.status == 0
    assert database.stat().st_ino == before
    assert not list(database.parent.glob("*.schema-*"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2hunter2@db.example/tsx",
        "mysql://me:hunter2hunter2@db.example/tsx",
        "me:hunter2hunter2@db.example",
        "postgresql://me:hunter2hunter2@db.example:port/tsx",
        "",
    ],
)
@pytest.mark.parametrize("verb", [*EVERY_VERB, ("registry", "rebuild"), ("run", "sanity")])
def test_no_verb_shows_the_password_of_a_registry_that_cannot_be_used(
    tsx, tmp_path, monkeypatch, url, verb
):
    monkeypatch.setenv("TSX_REGISTRY", url or f"sqlite:///{tmp_path / 'file' / 'x.db'}")
    (tmp_path / "file").touch()
    done = tsx("--debug", *verb)
    assert done.status == 3
    assert "next:" in done.err
    assert "hunter2" not in done.out + done.err.replace(url or "no url", "")
    assert "hunter2" not in done.err


def test_an_unknown_subcommand_is_a_usage_error(tsx):
    assert tsx("registry", "burn").status == 2


def spoil(database, statement):
    """Change the registry behind the back of everything."""
    connection = sqlite3.connect(database)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_check_says_that_all_is_well(tsx, database):
    done = tsx("registry", "check")
    assert (done.status, done.err) == (0, "")
    assert done.out == "2 runs and 3 points agree with their journals\n"
    assert tsx("registry", "check", "--fast").out == "2 runs agree with their journals\n"
    report = json.loads(tsx("registry", "check", "--json").out)
    assert report == {"faults": [], "runs": 2, "points": 3, "elsewhere": []}


def test_check_names_every_fault_and_the_next_command(tsx, database):
    spoil(database, "DELETE FROM metrics WHERE step = 2")
    done = tsx("registry", "check")
    assert done.status == 3
    assert "points: run aaaaaaaa: 1 points are missing, first train/loss at step 2" in done.out
    assert "curve: run aaaaaaaa: train/loss: its summary has " in done.out
    assert done.err.endswith("2 faults in 2 runs\nnext: tsx registry rebuild\n")
    report = json.loads(tsx("registry", "check", "--json").out)
    assert {fault["kind"] for fault in report["faults"]} == {"points", "curve"}
    assert tsx("registry", "rebuild").status == 0
    assert tsx("registry", "check").status == 0


def test_check_warns_of_a_rebuild_that_would_lose_a_run(tsx, database):
    spoil(database, "DELETE FROM metrics WHERE step = 2")
    (database.parent / "runs" / "bbbbbbbb").rename(database.parent / "away")
    done = tsx("registry", "check")
    assert done.status == 3
    # The runs of this test are of host "box": what is away may be there.
    assert "1 runs of other hosts were not compared: bbbbbbbb" in done.err
    spoil(database, "UPDATE runs SET host = ''")
    done = tsx("registry", "check")
    assert "a rebuild would lose what 1 journals do not have" in done.err
    assert "next: tsx registry backup; tsx registry rebuild" in done.err


def test_check_shows_hostile_text_inert(tsx, database):
    spoil(database, "UPDATE metric_keys SET key = char(27) || '[31mx'")
    spoil(database, "UPDATE summaries SET count = 77")
    done = tsx("registry", "check")
    assert done.status == 3
    assert "␛[31mx" in done.out
    assert "\x1b" not in done.out + done.err


def test_backup_says_where_it_is_and_how_it_is_used(tsx, database, monkeypatch, tmp_path):
    target = tmp_path / "copy.db"
    done = tsx("registry", "backup", str(target))
    assert (done.status, done.out) == (0, f"{target}\n")
    assert "2 runs, " in done.err
    assert f"next: TSX_REGISTRY=sqlite:///{target} tsx runs" in done.err
    monkeypatch.setenv("TSX_REGISTRY", f"sqlite:///{target}")
    assert len(json.loads(tsx("runs", "--json").out)["runs"]) == 2


def test_backup_as_json_and_never_over_a_file(tsx, database, tmp_path):
    plain = json.loads(tsx("registry", "backup", "--json").out)
    assert (plain["runs"], plain["path"].startswith(f"{database}.backup-")) == (2, True)
    done = tsx("registry", "backup", plain["path"])
    assert (done.status, done.out) == (3, "")
    assert "exists" in done.err


@pytest.mark.parametrize("verb", ["check", "backup"])
def test_a_registry_that_is_no_database_is_named(tsx, database, verb):
    break_file(database, b"no database at all" * 500)
    done = tsx("registry", verb)
    assert (done.status, done.out) == (3, "")
    assert done.err.endswith("next: tsx registry rebuild\n")


def test_check_shows_the_first_faults_of_very_many(tsx, record, tmp_path):
    record("cccccccc", "wide", {f"k{number}": [1.0] for number in range(150)})
    spoil(tmp_path / "tsx-home" / "registry.db", "UPDATE summaries SET count = 77")
    done = tsx("registry", "check")
    assert done.status == 3
    assert len(done.out.splitlines()) == 100
    assert "50 more; --json has them all" in done.err
    assert len(json.loads(tsx("registry", "check", "--json").out)["faults"]) == 150
