"""tsx sql: any question, and nothing but questions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import registry
from registry.description import describe
from registry.schema import metadata
from tsx.cli.sql import EXAMPLES
from tsx.text import ABSENT

FOREVER = "with recursive t(x) as (select 1 union all select x + 1 from t) select count(*) from t"
EVIL = "\x1b[31mred"


@pytest.fixture
def database(record, tmp_path):
    """Record two runs and return the registry's file."""
    record("aaaaaaaa", "sanity", {"train/loss": [3.0, math.nan, 2.0], "val/loss": [2.5]})
    record("bbbbbbbb", EVIL, {"train/loss": [1.0]}, time=1_700_000_100.0)
    return tmp_path / "tsx-home" / "registry.db"


def digest(database):
    """Return what the registry's file and its log hold."""
    parts = [database.with_name(database.name + suffix) for suffix in ("", "-wal")]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts if path.exists()]


def test_a_question_is_answered_as_json_csv_and_a_table(tsx, database):
    question = "select id, step, null as missing from runs order by id"
    answer = json.loads(tsx("sql", question, "--json").out)
    assert answer == {
        "columns": ["id", "step", "missing"],
        "rows": [
            {"id": "aaaaaaaa", "step": 3, "missing": None},
            {"id": "bbbbbbbb", "step": 1, "missing": None},
        ],
    }
    rows = list(csv.reader(io.StringIO(tsx("sql", question, "--csv").out)))
    assert rows == [["id", "step", "missing"], ["aaaaaaaa", "3", ""], ["bbbbbbbb", "1", ""]]
    lines = tsx("sql", question).out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["id", "step", "missing"],
        ["aaaaaaaa", "3", ABSENT],
    ]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_answer_something(tsx, database, example):
    words = shlex.split(example)
    assert words[:2] == ["tsx", "sql"]
    done = tsx(*words[1:])
    assert done.status == 0, done.err
    if "train/lr" not in example:
        assert "aaaaaaaa" in done.out or "sanity" in done.out


def test_the_views_have_names_in_place_of_numbers(tsx, database):
    question = "select run, key, step, value, flag from points where name = 'sanity' order by 2, 3"
    rows = json.loads(tsx("sql", question, "--json").out)["rows"]
    assert [row["key"] for row in rows] == ["train/loss"] * 3 + ["val/loss"]
    assert [row["value"] for row in rows] == [3.0, None, 2.0, 2.5]
    assert [row["flag"] for row in rows] == [0, 1, 0, 0]
    (curve,) = json.loads(
        tsx("sql", "select min, nonfinite_count from curves where key = 'val/loss'", "--json").out
    )["rows"]
    assert curve == {"min": 2.5, "nonfinite_count": 0}


def test_json_inside_a_column_can_be_taken_apart(tsx, database):
    question = (
        "select j.value from runs, json_each(runs.config, '$.train') as j "
        "where runs.id = 'aaaaaaaa' and j.key = 'seed'"
    )
    assert json.loads(tsx("sql", question, "--json").out)["rows"] == [{"value": 0}]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("delete from runs", "begins with 'delete'"),
        ("DELETE\nFROM runs", "begins with 'DELETE'"),
        ("/* select */ insert into runs default values", "begins with 'insert'"),
        (" -- select\nupdate runs set name = 'x'", "begins with 'update'"),
        ("with x as (select 1) delete from runs", "would delete runs"),
        ("with x as (select 1) insert into tags select * from x", "would insert tags"),
        ("explain delete from runs", "would delete runs"),
        ("attach 'other.db' as other", "begins with 'attach'"),
        ("pragma journal_mode = delete", "begins with 'pragma'"),
        ("pragma table_info(runs)", "begins with 'pragma'"),
        ("select * from pragma_table_info('runs')", "only reading"),
        ("select * from pragma_journal_mode", "only reading"),
        ("create temp table t (a)", "begins with 'create'"),
        ("vacuum into 'x.db'", "begins with 'vacuum'"),
        ("begin", "begins with 'begin'"),
        ("commit", "begins with 'commit'"),
        ("savepoint x", "begins with 'savepoint'"),
        ("reindex", "begins with 'reindex'"),
        ("select load_extension('x.so')", "call load_extension()"),
        ("select fts3_tokenizer('x')", "call fts3_tokenizer()"),
        ("select writefile('x', 'y')", "writefile"),
        ("select 1; delete from runs", "more than one statement"),
        ("select 1; select 2", "more than one statement"),
        ("select ?", "parameters"),
        ("select :name", "parameters"),
        ("selec 1", "begins with 'selec'"),
        ("select from where", "syntax error"),
        ("select nam from runs", "no such column: nam; nearest: name"),
        ("select runs.nam from runs", "no such column: runs.nam; nearest: name"),
        ("select * from pionts", "no such table: pionts; nearest: points"),
        (" ; ", "is empty"),
        ("/* nothing */", "is empty"),
        (f"select '{EVIL}' from nowhere", "␛[31mred"),
        ("select '" + "x" * 200_000 + "'", "characters long"),
        ("select zeroblob(500000000)", "too large"),
        ("select \x00", "not"),
    ],
)
def test_anything_but_one_read_is_refused_and_changes_nothing(tsx, database, query, told):
    tsx("runs")
    before = digest(database)
    done = tsx("sql", query)
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert "next: tsx sql" in done.err
    assert "\x1b" not in done.err
    assert len(done.err) < 2000
    assert digest(database) == before


def test_a_long_answer_is_cut_and_says_so(tsx, database):
    question = "with recursive t(x) as (select 1 union all select x + 1 from t where x < 3000) select x from t"  # noqa: E501
    done = tsx("sql", question, "--csv")
    assert len(done.out.splitlines()) == 1001
    assert "these are the first 1,000 rows; --limit 0 shows all" in done.err
    whole = tsx("sql", question, "--csv", "--limit", "0")
    assert len(whole.out.splitlines()) == 3001
    assert whole.err == ""
    exact = tsx("sql", question, "--json", "--limit", "3000")
    assert len(json.loads(exact.out)["rows"]) == 3000
    assert exact.err == ""


def test_no_rows_are_no_fault(tsx, database):
    done = tsx("sql", "select id, name from runs where id = 'x'")
    assert (done.status, done.out) == (0, "")
    assert "no rows; columns: id, name" in done.err
    done = tsx("sql", "select id from runs where id = 'x'", "--json")
    assert json.loads(done.out) == {"columns": ["id"], "rows": []}


def test_odd_values_are_inert_and_whole(tsx, database):
    question = f"select '{EVIL}' as a, x'00ff1b' as b, 9e999 as c, 1 as a, replace(hex(zeroblob(15000)), '00', 'xy') as d"  # noqa: E501
    (row,) = json.loads(tsx("sql", question, "--json").out)["rows"]
    assert row == {"a": EVIL, "b": "00ff1b", "c": "Infinity", "a_2": 1, "d": "xy" * 15000}
    comma = tsx("sql", question, "--csv")
    assert "\x1b" not in comma.out
    assert list(csv.reader(io.StringIO(comma.out)))[1][4] == "xy" * 15000
    table = tsx("sql", question)
    assert "\x1b" not in table.out
    assert "x'00ff1b' (3 bytes)" in table.out
    assert "Infinity" in table.out


def test_text_that_is_no_text_is_shown(tsx, database):
    (row,) = json.loads(tsx("sql", "select cast(x'61ff' as text) as t", "--json").out)["rows"]
    assert row == {"t": "a\ufffd"}


def test_a_question_that_never_ends_is_ended(tsx, database):
    done = tsx("sql", FOREVER, "--timeout", "0.2s")
    assert done.status == 1
    assert "took longer than 0.2 s" in done.err
    assert "--timeout 10m" in done.err


def test_ctrl_c_ends_it(database):
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(signal.SIGINT, "
            "signal.default_int_handler)\nfrom tsx.cli.main import run\nrun()",
            "sql",
            FOREVER,
        ],
        env={**os.environ, "PYTHONPATH": str(Path(registry.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        for _ in range(40):  # until it has started, and then it ends
            time.sleep(0.25)
            process.send_signal(signal.SIGINT)
            if process.poll() is not None:
                break
        assert process.wait(20) == 130
        assert "interrupted" in process.stderr.read()


@pytest.mark.parametrize("span", ["60", "fast", "-1s", "1e3s", "", "0s", "9w"])
def test_a_timeout_that_is_none_is_refused(tsx, database, span):
    done = tsx("sql", "select 1", "--timeout", span)
    assert (done.status, done.out) == (2, "")
    assert "--timeout" in done.err


def test_flags_that_exclude_each_other(tsx, database):
    assert tsx("sql", "select 1", "--json", "--csv").status == 2
    assert tsx("sql", "select 1", "--schema").status == 2


def test_a_registry_that_is_not_there_reads_as_an_empty_one(tsx, tmp_path):
    for table in ("runs", "points", "curves"):
        done = tsx("sql", f"select count(*) as n from {table}", "--json")
        assert json.loads(done.out)["rows"] == [{"n": 0}]
    assert not (tmp_path / "tsx-home" / "registry.db").exists()


def test_a_damaged_registry_names_the_command_that_mends_it(tsx, database):
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(b"no database at all" * 500)
    done = tsx("sql", "select 1")
    assert (done.status, done.out) == (3, "")
    assert done.err.endswith("next: tsx registry rebuild\n")


@pytest.mark.parametrize("words", [(), ("--schema",)])
def test_the_schema_names_every_table_column_and_unit(tsx, words):
    done = tsx("sql", *words)
    assert done.status == 0
    for name in ("view points", "view curves", *(f"table {name}" for name in metadata.tables)):
        assert name in done.out
    assert "UTC seconds since the epoch" in done.out
    assert all(example in done.out for example in EXAMPLES)


def test_the_schema_as_json(tsx):
    plain = json.loads(tsx("sql", "--schema", "--json").out)
    assert [table["name"] for table in plain["tables"]][:3] == ["points", "curves", "runs"]
    assert plain["examples"] == list(EXAMPLES)


def test_every_column_has_its_meaning():
    tables = describe()
    assert {table.name for table in tables} == {*metadata.tables, "points", "curves"}
    missing = [(t.name, c.name) for t in tables for c in t.columns if not c.meaning]
    assert missing == []
    assert all(len(table.columns) >= 2 for table in tables)


def test_the_described_views_have_exactly_these_columns(tsx, database):
    for table in describe():
        done = tsx("sql", f"select * from {table.name} limit 1", "--json")
        names = [column.name for column in table.columns]
        assert json.loads(done.out)["columns"] == names, table.name
