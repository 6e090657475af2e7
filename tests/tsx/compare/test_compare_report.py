"""Last and best values with their differences, and what they say."""

import json
import math

import pytest

from tsx.cli.output import to_strict
from tsx.compare.direction import Direction, find_direction
from tsx.compare.lines import list_report_lines
from tsx.compare.report import compare, find_delta, find_verdict, name_runs, select_keys, to_plain
from tsx.errors import TsxError

LOSS = {"train/loss": [3.0, 1.0, 2.0], "train/mfu": [10.0, 30.0, 20.0], "train/lr": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
    ("key", "direction"),
    [
        ("train/loss", Direction.LOWER),
        ("val/mse", Direction.LOWER),
        ("val/mse_h64", Direction.LOWER),
        ("ood/mae_h1", Direction.LOWER),
        ("train/aux", Direction.LOWER),
        ("val/pred", Direction.LOWER),
        ("train/toks_per_sec", Direction.HIGHER),
        ("train/valid_points_per_sec", Direction.HIGHER),
        ("train/mfu", Direction.HIGHER),
        ("train/tflops", Direction.HIGHER),
        ("train/lr", Direction.NEITHER),
        ("train/grad_norm", Direction.NEITHER),
        ("sys/loss", Direction.NEITHER),
        ("router/layer0/aux", Direction.NEITHER),
        ("loss", Direction.LOWER),  # as other programs call it
        ("eval/accuracy", Direction.HIGHER),
        ("time_ms", Direction.NEITHER),
    ],
)
def test_metrics_improve_in_their_own_direction(key, direction):
    assert find_direction(key) is direction


def test_best_follows_the_direction(make_detail):
    report = compare([make_detail(metrics=LOSS), make_detail("bbbbbbbb", "two", metrics=LOSS)])
    rows = {row.key: row for row in report.metrics}
    assert (rows["train/loss"].best, rows["train/loss"].best_step) == ((1.0, 1.0), (2, 2))
    assert (rows["train/mfu"].best, rows["train/mfu"].best_step) == ((30.0, 30.0), (2, 2))
    assert rows["train/lr"].best == (None, None)
    assert rows["train/loss"].last == (2.0, 2.0)


def test_a_metric_that_one_run_lacks_has_no_difference(make_detail):
    report = compare([make_detail(metrics=LOSS), make_detail(metrics={"val/loss": [1.0]})])
    rows = {row.key: row for row in report.metrics}
    assert rows["val/loss"].last == (None, 1.0)
    assert find_delta(rows["val/loss"].last, 1) is None


def test_a_curve_without_a_finite_value_has_no_best(make_detail):
    report = compare([make_detail(metrics={"val/loss": [math.nan]}), make_detail(metrics=LOSS)])
    row = next(row for row in report.metrics if row.key == "val/loss")
    assert math.isnan(row.last[0])
    assert row.best == (None, None)


@pytest.mark.parametrize(
    ("direction", "delta", "verdict"),
    [
        (Direction.LOWER, -1.0, "better"),
        (Direction.LOWER, 1.0, "worse"),
        (Direction.HIGHER, 1.0, "better"),
        (Direction.HIGHER, -1.0, "worse"),
        (Direction.NEITHER, 1.0, ""),
        (Direction.LOWER, 0.0, ""),
        (Direction.LOWER, math.nan, ""),
        (Direction.LOWER, None, ""),
        (Direction.LOWER, math.inf, "worse"),
    ],
)
def test_verdicts_know_the_direction(direction, delta, verdict):
    assert find_verdict(direction, delta) == verdict


def test_differences_survive_infinities():
    assert find_delta((math.inf, math.inf), 1) != find_delta((math.inf, math.inf), 1)  # NaN
    assert find_delta((1.0, math.inf), 1) == math.inf


def test_values_per_token_are_withheld_across_patch_lengths(make_detail):
    metrics = LOSS | {"val/mse_h8": [1.0]}
    patched = make_detail(metrics=metrics, set_keys={"model.patch_len": 8})
    pointwise = make_detail(metrics=metrics, set_keys={"eval.origin_stride": 8})
    report = compare([pointwise, patched])
    assert report.withheld == ("train/loss",)
    assert {row.key for row in report.metrics} == {"train/mfu", "train/lr", "val/mse_h8"}
    with pytest.raises(TsxError, match="train/loss means something else") as caught:
        select_keys(report, ("train/loss",))
    assert caught.value.next_command == "tsx compare aaaaaaaa aaaaaaaa"


def test_errors_at_other_origins_are_withheld(make_detail):
    metrics = LOSS | {"val/mse_h8": [1.0], "val/aux": [1.0]}
    spaced = make_detail(metrics=metrics, set_keys={"eval.origin_stride": 8})
    report = compare([make_detail(metrics=metrics), spaced])
    assert report.withheld == ("val/mse_h8",)
    with pytest.raises(TsxError, match="val/mse_h8 means something else"):
        select_keys(report, ("val/mse_h8",))


def test_keys_narrow_the_report_and_unknown_ones_name_the_nearest(make_detail):
    report = compare([make_detail(metrics=LOSS), make_detail(metrics=LOSS)])
    assert [row.key for row in select_keys(report, ("train/lr",)).metrics] == ["train/lr"]
    assert select_keys(report, ()) is report
    with pytest.raises(TsxError, match="'train/los'; nearest: train/loss"):
        select_keys(report, ("train/los",))


def test_plain_data_is_strict_json_with_differences(make_detail):
    bad = LOSS | {"train/loss": [3.0, math.nan]}
    other = make_detail(metrics=bad, set_keys={"optim.lr": 1.0})
    report = compare([make_detail(metrics=LOSS), other])
    plain = json.loads(json.dumps(to_strict(to_plain(report)), allow_nan=False))
    assert plain["config"] == {"optim.lr": [0.001, 1.0]}
    assert plain["metrics"]["train/loss"] == {
        "direction": "lower",
        "last": [2.0, "NaN"],
        "last_step": [3, 2],
        "best": [1.0, 3.0],
        "best_step": [2, 1],
        "delta_last": [None, "NaN"],
        "delta_best": [None, 2.0],
    }
    assert [run["id"] for run in plain["runs"]] == ["aaaaaaaa", "aaaaaaaa"]


def test_runs_of_one_name_are_told_apart_by_id(make_detail):
    rows = [make_detail("a1", "same").run, make_detail("b2", "same").run, make_detail("c3", "").run]
    assert name_runs(rows) == ["same a1", "same b2", "c3"]


def test_the_report_reads_as_agreed(make_detail):
    metrics = LOSS | {"train/loss": [2.0, 0.5], "train/mfu": [33.0]}
    report = compare(
        [
            make_detail(metrics=LOSS),
            make_detail("bbbbbbbb", "two", metrics=metrics, set_keys={"optim.lr": 0.003}, seed=1),
        ]
    )
    shown = ["".join(piece.text for piece in line.left) for line in list_report_lines(report)]
    assert shown == [
        "━ one  aaaaaaaa  ✓ completed   3/3  sanity · cpu · fp32 · demo · seed 0",
        "━ two  bbbbbbbb  ✓ completed   3/3  sanity · cpu · fp32 · demo · seed 1",
        "",
        "config    one    two",
        "optim.lr  0.001  0.003",
        "",
        "metric            one     two            change",
        "train/loss  last    2  0.5000   -1.500 (-75.0%)",
        "            best    1  0.5000  -0.5000 (-50.0%)",
        "train/mfu   last   20      33      +13 (+65.0%)",
        "            best   30      33       +3 (+10.0%)",
    ]


def test_better_and_worse_have_their_kinds(make_detail):
    better = {"train/loss": [1.5], "train/mfu": [5.0]}
    report = compare([make_detail(metrics=LOSS), make_detail(metrics=better)])
    kinds = {
        (line.left[0].text.strip(), line.left[1].text.strip()): line.left[-1].kind
        for line in list_report_lines(report)
        if len(line.left) > 2
    }
    assert kinds["train/loss", "last"] == "better"
    assert kinds["train/mfu", "last"] == "worse"


def test_hostile_names_and_values_are_inert(make_detail):
    evil = "\x1b[31m[bold]x\n"
    report = compare(
        [
            make_detail("a1", evil, metrics={evil: [1.0]}, set_keys={"data.path": evil}),
            make_detail("b2", "b", metrics={evil: [2.0]}, data_source=evil),
        ]
    )
    lines = list_report_lines(report, all_metrics=True)
    shown = "".join(piece.text for line in lines for piece in line.left)
    assert "␛[31m[bold]x\\n" in shown
    assert shown.isprintable()
