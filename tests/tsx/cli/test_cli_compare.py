"""tsx compare."""

import json

import pytest

LOSS = {
    "train/loss": [3.0, 2.0, 1.0],
    "val/loss": [2.5, 1.5, 1.25],
    "train/mfu": [10.0, 20.0, 20.0],
}
LOWER = {
    "train/loss": [3.0, 1.0, 0.5],
    "val/loss": [2.5, 1.0, 1.0],
    "train/mfu": [10.0, 15.0, 15.0],
}


@pytest.fixture
def pair(record):
    record("aaaaaaaa", "base", LOSS)
    record("bbbbbbbb", "fast", LOWER, config={"optim": {"lr": 0.003}})


def test_the_comparison_is_printed_as_agreed(tsx, pair):
    done = tsx("compare", "base", "fast")
    assert done.status == 0
    assert done.out.splitlines()[:13] == [
        "━ base  aaaaaaaa  ✓ completed   3/3  sanity · cpu · fp32 · demo · seed 0",
        "━ fast  bbbbbbbb  ✓ completed   3/3  sanity · cpu · fp32 · demo · seed 0",
        "",
        "config    base   fast",
        "optim.lr  0.001  0.003",
        "",
        "metric             base    fast            change",
        "train/loss  last      1  0.5000  -0.5000 (-50.0%)",
        "            best      1  0.5000  -0.5000 (-50.0%)",
        "val/loss    last  1.250       1  -0.2500 (-20.0%)",
        "            best  1.250       1  -0.2500 (-20.0%)",
        "train/mfu   last     20      15       -5 (-25.0%)",
        "            best     20      15       -5 (-25.0%)",
    ]
    assert "train/loss  ━ base" in done.out
    assert "val/loss  ━ fast" in done.out


def test_json_has_config_metrics_and_warnings(tsx, pair):
    plain = json.loads(tsx("compare", "base", "fast", "--json").out)
    assert list(plain) == ["runs", "warnings", "config", "metrics", "withheld"]
    assert [run["id"] for run in plain["runs"]] == ["aaaaaaaa", "bbbbbbbb"]
    assert plain["config"] == {"optim.lr": [0.001, 0.003]}
    assert plain["warnings"] == []
    assert plain["metrics"]["val/loss"]["best"] == [1.25, 1.0]
    assert plain["metrics"]["val/loss"]["delta_last"] == [None, -0.25]
    assert plain["metrics"]["train/mfu"]["direction"] == "higher"


def test_curves_share_one_chart_where_color_tells_them_apart(tsx, pair, monkeypatch):
    monkeypatch.setattr("tsx.cli.output.is_terminal", lambda stream: True)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    shown = tsx("compare", "base", "fast").out
    (head,) = [line for line in shown.splitlines() if "train/loss" in line and "━" in line]
    assert "━ base" in head
    assert "━ fast" in head
    assert "\x1b[36m" in head
    assert "\x1b[33m" in head


def test_other_data_is_the_first_line(tsx, pair, record):
    record("cccccccc", "other", LOSS, data_source="time300b")
    first = tsx("compare", "base", "other").out.splitlines()[0]
    assert first == "▲ not the same data: source demo | time300b"
    warnings = json.loads(tsx("compare", "base", "other", "--json").out)["warnings"]
    assert warnings == ["not the same data: source demo | time300b"]


def test_train_loss_is_never_compared_across_patch_lengths(tsx, pair, record):
    curves = LOSS | {"val/mse_h1": [3.0, 2.0]}
    record("cccccccc", "points", curves, config={"eval": {"origin_stride": 8}})
    record("dddddddd", "patches", curves, config={"model": {"patch_len": 8}})
    done = tsx("compare", "points", "patches")
    assert "not the same tokens" in done.out.splitlines()[0]
    assert "val/mse_h1  ━ points" in done.out
    assert not [line for line in done.out.splitlines() if line.startswith("train/loss")]
    plain = json.loads(tsx("compare", "points", "patches", "--json").out)
    assert "train/loss" not in plain["metrics"]
    assert plain["withheld"] == ["train/loss", "val/loss"]
    refused = tsx("compare", "points", "patches", "--key", "train/loss")
    assert refused.status == 1
    assert "tsx compare cccccccc dddddddd" in refused.err


def test_errors_at_other_origins_are_not_compared_and_the_way_out_is_said(tsx, record):
    curves = LOSS | {"val/mse_h1": [3.0, 2.0]}
    record("cccccccc", "every", curves)
    record("dddddddd", "eighth", curves, config={"eval": {"origin_stride": 8}})
    shown = tsx("compare", "every", "eighth").out
    assert "eval.origin_stride=8" in shown.splitlines()[0]
    assert "train/loss  ━ every" in shown
    assert "val/mse_h1" not in shown


def test_smoke_against_full_is_said(tsx, pair, record):
    record("cccccccc", "tiny", LOSS, smoke=True)
    assert "tiny ran with --smoke" in tsx("compare", "base", "tiny").out


def test_three_runs_are_compared_with_the_first(tsx, pair, record):
    record("cccccccc", "third", {"train/loss": [9.0]}, seed=7)
    plain = json.loads(tsx("compare", "base", "fast", "third", "--json").out)
    assert plain["metrics"]["train/loss"]["delta_last"] == [None, -0.5, 8.0]
    assert plain["metrics"]["val/loss"]["last"] == [1.25, 1.0, None]
    assert tsx("compare", "base", "fast", "third").status == 0


def test_a_key_narrows_table_and_charts(tsx, pair):
    shown = tsx("compare", "base", "fast", "--key", "train/mfu").out
    assert "train/mfu  ━ base" in shown
    assert "train/loss" not in shown
    done = tsx("compare", "base", "fast", "--key", "train/mfo")
    assert done.status == 1
    assert "nearest: train/mfu" in done.err


@pytest.mark.parametrize("words", [("base",), ("base", "base"), ("base", "aaaaaaaa", "@-2")])
def test_one_run_is_no_comparison(tsx, pair, words):
    done = tsx("compare", *words)
    assert done.status == 2
    assert "two different runs" in done.err


def test_a_run_named_twice_among_others_counts_once(tsx, pair):
    plain = json.loads(tsx("compare", "base", "fast", "base", "--json").out)
    assert [run["id"] for run in plain["runs"]] == ["aaaaaaaa", "bbbbbbbb"]


def test_unknown_runs_name_the_nearest(tsx, pair):
    done = tsx("compare", "base", "fasst")
    assert done.status == 1
    assert "fast" in done.err


def test_runs_without_metrics_are_compared_by_config(tsx, record):
    record("aaaaaaaa", "x", {})
    record("bbbbbbbb", "y", {})
    done = tsx("compare", "x", "y")
    assert done.status == 0
    assert "the same in every key" in done.out
    assert "No metrics in common" in done.out
