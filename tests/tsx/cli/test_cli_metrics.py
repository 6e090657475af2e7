"""tsx metrics."""

import csv
import io
import json
import math

import pytest


@pytest.fixture
def recorded(record):
    curves = {
        "train/loss": [3.0, 1 / 3, math.nan, math.inf, -math.inf],
        "val/loss": [2.0],
        'odd,"key"': [1.0],
    }
    record("aaaaaaaa", "one", curves)


def test_csv_has_the_agreed_header_and_exact_values(tsx, recorded):
    done = tsx("metrics", "one", "train/loss", "--csv")
    assert done.out.splitlines() == [
        "step,value,time",
        "1,3.0,1700000002.0",
        "2,0.3333333333333333,1700000003.0",
        "3,NaN,1700000004.0",
        "4,Infinity,1700000005.0",
        "5,-Infinity,1700000006.0",
    ]


def test_json_is_strict_and_whole(tsx, recorded):
    plain = json.loads(tsx("metrics", "one", "train/loss", "--json").out)
    assert plain["key"] == "train/loss"
    assert plain["points"][1] == [2, 1 / 3, 1_700_000_003.0]
    assert [value for _, value, _ in plain["points"]][2:] == ["NaN", "Infinity", "-Infinity"]


def test_a_pipe_gets_rows(tsx, recorded):
    done = tsx("metrics", "one", "val/loss")
    assert done.out.splitlines() == ["step value time", "1 2.0 1700000002.0"]


def test_a_terminal_gets_a_chart_and_a_summary(tsx, recorded, monkeypatch):
    monkeypatch.setattr("tsx.cli.output.is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "90")
    shown = tsx("metrics", "one", "train/loss").out
    assert "train/loss  ━ one" in shown
    assert "3 not finite" in shown
    assert any("\u2800" < char <= "\u28ff" for char in shown)
    assert all(len(line) <= 110 for line in shown.splitlines())


def test_a_long_curve_is_whole(tsx, record):
    record("bbbbbbbb", "long", {"train/loss": [float(n) for n in range(5003)]})
    rows = tsx("metrics", "long", "train/loss", "--csv").out.splitlines()
    assert len(rows) == 5004
    assert rows[-1].startswith("5003,5002.0,")


def test_without_a_key_the_keys_are_listed(tsx, recorded):
    done = tsx("metrics", "one")
    assert {line.split()[0] for line in done.out.splitlines()[1:]} >= {"train/loss", "val/loss"}
    plain = json.loads(tsx("metrics", "one", "--json").out)
    assert plain["metrics"]["train/loss"]["count"] == 5
    rows = list(csv.reader(io.StringIO(tsx("metrics", "one", "--csv").out)))
    assert rows[0] == ["key", "last", "min", "max", "count"]
    assert {row[0]: row[1:] for row in rows[1:]} == {
        "train/loss": ["-Infinity", "0.3333333333333333", "3.0", "5"],
        "val/loss": ["2.0", "2.0", "2.0", "1"],
        'odd,"key"': ["1.0", "1.0", "1.0", "1"],
    }


def test_a_run_without_metrics_has_no_keys(tsx, record):
    record("bbbbbbbb", "bare", {})
    assert json.loads(tsx("metrics", "bare", "--json").out) == {"metrics": {}}
    assert tsx("metrics", "bare").status == 0


def test_an_unknown_key_names_the_nearest(tsx, recorded):
    done = tsx("metrics", "one", "train/los")
    assert done.status == 1
    assert done.out == ""
    assert "'train/los'; nearest: train/loss" in done.err
    assert "tsx metrics aaaaaaaa" in done.err


def test_a_hostile_key_is_inert_in_its_error(tsx, recorded):
    done = tsx("metrics", "one", "\x1b[31m")
    assert done.status == 1
    assert "\x1b" not in done.err


def test_two_formats_exclude_each_other(tsx, recorded):
    done = tsx("metrics", "one", "train/loss", "--csv", "--json")
    assert done.status == 2
    assert "exclude each other" in done.err
