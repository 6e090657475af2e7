"""tsx metrics."""

import csv
import io
import json
import math
import re

import pytest

from registry.events import Histogram

EVIL = "\x1b[31m[bold]x[/bold]\u202e"
STAMP = 1_700_000_030.0


@pytest.fixture
def recorded(record):
    curves = {
        "train/loss": [3.0, 1 / 3, math.nan, math.inf, -math.inf],
        "val/loss": [2.0],
        'odd,"key"': [1.0],
    }
    record("aaaaaaaa", "one", curves)


@pytest.fixture
def spread(record):
    """Record a run with histograms, one of a key that is no curve."""
    edges = (-1.0, 0.0, 0.5, 2.0)
    events = [
        Histogram(time=STAMP + step, step=step, key=key, edges=edges, counts=(step, 0, 9))
        for step in range(1, 31)
        for key in ("weights", "train/loss")
    ]
    nothing = {"edges": (), "counts": (), "nonfinite_count": 7}
    events.append(Histogram(time=STAMP, step=1, key=f"odd {EVIL}", **nothing))
    record("aaaaaaaa", "one", {"train/loss": [3.0, 2.0]}, events=events)


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


def test_histograms_are_listed_with_the_keys(tsx, spread):
    shown = tsx("metrics", "one").out
    (line,) = [line for line in shown.splitlines() if line.startswith("weights")]
    assert "█ ▃" in line
    assert "-1 .. 2" in line
    assert "39 values" in line
    assert "7 not finite" in shown
    assert shown.replace("\n", "").isprintable()
    plain = json.loads(tsx("metrics", "one", "--json").out)
    assert plain["histograms"]["weights"]["edges"] == [-1.0, 0.0, 0.5, 2.0]
    assert plain["histograms"]["weights"]["counts"] == [30, 0, 9]


def test_the_histograms_of_a_key(tsx, spread, monkeypatch):
    plain = json.loads(tsx("metrics", "one", "weights", "--json").out)
    assert (plain["key"], plain["points"], len(plain["histograms"])) == ("weights", [], 30)
    assert plain["histograms"][0]["step"] == 1
    rows = tsx("metrics", "one", "weights", "--csv").out.splitlines()
    assert rows[:4] == ["step,low,high,count", "1,-1.0,0.0,1", "1,0.0,0.5,0", "1,0.5,2.0,9"]
    assert len(rows) == 91
    monkeypatch.setattr("tsx.cli.output.is_terminal", lambda stream: True)
    shown = tsx("metrics", "one", "weights").out
    assert "the last of 30" in shown
    assert "step 30" in shown
    assert "step 6 " not in shown
    both = tsx("metrics", "one", "train/loss").out
    assert any("\u2800" < char <= "\u28ff" for char in both)
    assert "step 30" in both


def test_a_long_curve_is_drawn_of_few_points_with_its_spike(tsx, record, monkeypatch):
    values = [1.0] * 8000
    values[3456] = 7777.0
    record("bbbbbbbb", "long", {"train/loss": values})
    monkeypatch.setattr("tsx.cli.output.is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "100")
    shown = [tsx("metrics", "long", "train/loss").out]
    monkeypatch.setattr("tsx.cli.charts.MAX_COLUMNS", 10**9)
    shown.append(tsx("metrics", "long", "train/loss").out)
    # A slope may begin a dot beside its place; rows and labels are the same.
    outline, whole = (re.sub("[\u2800-\u28ff]+", "*", text) for text in shown)
    assert re.sub(" *[*] *", "*", outline) == re.sub(" *[*] *", "*", whole)
    assert outline.count("*") > 10
