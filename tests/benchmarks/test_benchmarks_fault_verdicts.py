"""What a finding is worth to the benchmarks of diagnosis."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from benchmarks import bench_fault_score
from benchmarks.fault_verdicts import judge, list_missed_limits, write_misses, write_table
from registry.events import Finding, Severity
from tests.faults.plant import list_plants

pytestmark = pytest.mark.trainer

(PLANT,) = [plant for plant in list_plants() if plant.name == "equal-eigenvalues"]
SILENT = dataclasses.replace(PLANT, severity="info", marker="", blind=True)


def find(**changes):
    said = {
        "time": 0.0,
        "kind": PLANT.kind,
        "severity": Severity.ERROR,
        "module": PLANT.module,
        "where": f"some/folder/nan_backward.py:{PLANT.line}",
        "evidence": {"mechanism": PLANT.mechanism},
    }
    return Finding(**(said | changes))


def test_all_that_is_right_counts():
    verdict = judge(PLANT, [find()])
    assert verdict.is_right
    assert (verdict.detected, verdict.module, verdict.line, verdict.cause) == (True,) * 4
    assert verdict.others == 0


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({"kind": "loss-spike"}, ()),
        ({"severity": Severity.INFO}, ()),
        ({"module": "head"}, ("detected", "line", "cause")),
        ({"where": f"other.py:{PLANT.line}"}, ("detected", "module", "cause")),
        ({"where": ""}, ("detected", "module", "cause")),
        ({"evidence": {}}, ("detected", "module", "line")),
        (
            {"evidence": {"mechanism": "division-by-zero"}},
            ("detected", "module", "line", "cause"),
        ),
    ],
)
def test_each_thing_counts_for_itself(changes, right):
    verdict = judge(PLANT, [find(**changes)])
    names = ("detected", "module", "line", "cause")
    assert tuple(name for name in names if getattr(verdict, name)) == right


def test_the_first_of_the_kind_counts_and_the_others_are_counted():
    verdict = judge(PLANT, [find(kind="plateau"), find(module="head"), find()])
    assert (verdict.detected, verdict.module, verdict.others) == (True, False, 2)
    assert "plateau" in write_misses([verdict])


def test_a_finding_that_is_told_again_with_its_count_is_one():
    assert judge(PLANT, [find(), find(count=2), find(count=4)]).others == 0


def test_a_key_of_a_config_is_no_module():
    plant = dataclasses.replace(PLANT, module="")
    assert judge(plant, [find(phase="config", module="train.steps")]).module
    assert not judge(plant, [find(phase="forward", module="train.steps")]).module


def test_a_remark_may_be_an_info_and_need_not_have_a_line():
    verdict = judge(SILENT, [find(severity=Severity.INFO, where="")])
    assert verdict.is_right
    assert verdict.line is None


def test_the_table_counts_blind_plants_apart_and_lines_where_there_are_any():
    verdicts = [judge(PLANT, [find()]), judge(SILENT, []), judge(SILENT, [find(module="x")])]
    lines = write_table(verdicts).splitlines()
    assert lines[2] == "| nan-origin | 3 | 2 | 1 | 1 of 1 | 2 | 2 | 1 | 0 |  | 1 |"
    assert lines[3].startswith("| **all** | 3 | 66.7 % | 33.3 % | 100.0 % | 66.7 % | 2 | 50.0 %")
    assert list_missed_limits(verdicts) == ["detected", "module", "cause"]


def test_a_play_that_breaks_is_a_miss_that_says_why(monkeypatch, capsys):
    def fail(plant):
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(bench_fault_score, "play_watched", fail)
    monkeypatch.setattr(sys, "argv", ["bench", "--only", PLANT.name])
    assert bench_fault_score.main() == 1
    out = capsys.readouterr().out
    assert "| nan-origin | 1 | 0 | 0 | 0 | 0 |" in out
    assert "found nothing; stopped by RuntimeError: no such thing" in out


def test_a_healthy_loop_that_is_accused_fails(monkeypatch, capsys):
    monkeypatch.setattr(bench_fault_score, "play_watched", lambda loop: [find()])
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "frozen-by-design", "--only", PLANT.name])
    assert bench_fault_score.main() == 1
    assert "accused: 1 of 1" in capsys.readouterr().out
