"""How rivals of the search for NaN are heard, and how they are counted."""

from __future__ import annotations

import contextlib
import sys
import types
from typing import ClassVar

import pytest
import torch

from benchmarks import bench_diagnosis
from benchmarks.bench_diagnosis import Score, list_beaten, score, time_all, write_cost, write_scores
from benchmarks.diagnosis_rivals import (
    SCORED,
    AnomalyMode,
    Onlooker,
    PatchedUnderflowOverflow,
    Said,
    Tsx,
    UnderflowOverflow,
)
from benchmarks.plain_loops import Size
from tests.faults.plant import list_healthy, list_plants

pytestmark = pytest.mark.trainer

PLANTS = {plant.name: plant for plant in list_plants()}
HEALTHY = {loop.name: loop for loop in list_healthy()}
REPORT = """
Detected inf/nan during batch_number=2
Last 21 forward frames:
abs min  abs max  metadata
                  *** Starting batch number=2 ***
abs min  abs max  metadata
                  stem Conv2d
1.00e-02 3.00e-01 weight
                  middle.norm LayerNorm
0.00e+00      nan output
"""


class Fails(UnderflowOverflow):
    """Stops every loop at its second step."""

    name = "fails"
    error: Exception = ValueError("DebugUnderflowOverflow: inf/nan detected, aborting")

    def attach(self, model):
        calls = []

        def hook(module, args, out):
            calls.append(module)
            if len(calls) == 2:
                print(REPORT)
                raise self.error

        model.register_forward_hook(hook)


def test_anomaly_mode_is_read_generously():
    said = AnomalyMode().play(PLANTS["equal-eigenvalues"])
    plant = PLANTS["equal-eigenvalues"]
    assert (said.step, said.line) == (plant.steps, f"nan_backward.py:{plant.line}")
    assert said.module is None
    assert not torch.is_anomaly_enabled()


def test_anomaly_mode_is_silent_where_nothing_is_wrong():
    assert AnomalyMode().play(HEALTHY["batch-norm"]) == Said()


def test_ours_names_module_line_and_cause():
    plant = PLANTS["log-after-softmax"]
    said = Tsx().play(plant)
    assert (said.step, said.module, said.cause) == (plant.steps, plant.module, plant.mechanism)
    assert said.line == f"nan_forward.py:{plant.line}"


def test_a_report_of_frames_blames_the_last_one():
    said = Fails().play(PLANTS["dead-pixel"])
    assert (said.step, said.module, said.printed) == (2, "middle.norm", {"stem", "middle.norm"})


def test_another_error_is_a_crash(monkeypatch):
    monkeypatch.setattr(Fails, "error", NotImplementedError('"abs_cpu" not implemented'))
    said = Fails().play(PLANTS["dead-pixel"])
    assert (said.step, said.crash) == (0, 'NotImplementedError: "abs_cpu" not implemented')


def test_what_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert UnderflowOverflow.find_version() is None
    assert AnomalyMode.find_version()


def test_the_patched_variant_leaves_bool_tensors_out(monkeypatch):
    seen = []

    class Original:
        def __init__(self, model):
            self.analyse_variable(torch.ones(1) > 0, "mask")
            self.analyse_variable(torch.ones(1), "weight")

        def analyse_variable(self, var, ctx):
            seen.append(ctx)

        def expand_frame(self, line):
            seen.append(line.strip())

    module = types.ModuleType("transformers.debug_utils")
    module.DebugUnderflowOverflow = Original
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, "transformers.debug_utils", module)
    PatchedUnderflowOverflow().attach(torch.nn.Linear(1, 1))
    assert seen == ["bool mask", "weight"]


class Scripted(Onlooker):
    """Says what a test wants."""

    name = "scripted"
    says = ("module", "line")
    answers: ClassVar[dict[str, Said]] = {}

    def play(self, loop):
        return self.answers[loop.name]


def test_alarms_count_at_the_step_of_the_fault_alone(monkeypatch):
    right, early, crashed = (PLANTS[n] for n in ("log-after-softmax", "dead-pixel", "zero-price"))
    line = f"nan_forward.py:{right.line}"
    answers = {
        right.name: Said(right.steps, "head.proj", frozenset({"head", "head.proj"}), line),
        early.name: Said(1, early.module),
        crashed.name: Said(crash="RuntimeError"),
        "batch-norm": Said(4),
        "dropout": Said(crash="RuntimeError"),
    }
    monkeypatch.setattr(Scripted, "answers", answers)
    loops = [HEALTHY["batch-norm"], HEALTHY["dropout"]]
    found = score(Scripted(), [right, early, crashed], loops)
    assert found == Score(
        "scripted",
        plants=3,
        lines=2,
        healthy=2,
        detected=1,
        module=0,
        printed=1,
        line=1,
        cause=None,
        early=1,
        crashed=1,
        accused=1,
        crashed_on_healthy=1,
    )
    row = write_scores([found]).splitlines()[-1]
    assert row == "| scripted | 1 of 3 | 0 | 1 | 1 of 2 | n/a | 1 | 1 | 1 of 2 | 1 |"


def test_a_bad_value_that_is_found_before_it_is_used_is_no_false_alarm(monkeypatch):
    plant = PLANTS["damaged-embedding"]
    monkeypatch.setattr(Scripted, "answers", {plant.name: Said(1, plant.module)})
    found = score(Scripted(), [plant], [])
    assert (found.detected, found.module, found.early) == (1, 1, 0)
    monkeypatch.setattr(Scripted, "answers", {plant.name: Said(1, "head")})
    found = score(Scripted(), [plant], [])
    assert (found.detected, found.module, found.early) == (0, 0, 1)


def test_a_rival_that_names_more_is_told():
    ours = Score("tsx", detected=3, module=2, line=1)
    assert list_beaten([ours, Score("other", detected=3, line=1)]) == []
    assert list_beaten([ours, Score("other", line=2)]) == ["other"]
    assert list_beaten([Score("tsx", accused=1), Score("other")]) == ["other"]
    assert list_beaten([Score("other", detected=9)]) == []


def test_all_loops_are_timed_in_turn(monkeypatch):
    monkeypatch.setattr(bench_diagnosis, "WARM_UP", 1)
    entered = []

    class Looking(AnomalyMode):
        name = "looking"

        def looking(self):
            entered.append(torch.get_num_threads())
            return contextlib.nullcontext()

    took = time_all(Size("small", 32, 1, 2, 8), [Tsx, Looking], steps=3)
    assert list(took) == ["nobody", "tsx", "looking"]
    assert len(entered) == 4
    assert "| small step | " in write_cost({"small": took})


def test_who_is_not_there_is_left_out_and_said_so(monkeypatch, capsys):
    monkeypatch.setattr(UnderflowOverflow, "find_version", classmethod(lambda cls: None))
    monkeypatch.setattr(bench_diagnosis, "SCORED", (Scripted, UnderflowOverflow))
    monkeypatch.setattr(bench_diagnosis, "TIMED", (Scripted, UnderflowOverflow))
    monkeypatch.setattr(bench_diagnosis, "list_plants", lambda: [PLANTS["dead-pixel"]])
    monkeypatch.setattr(bench_diagnosis, "list_healthy", lambda: [])
    monkeypatch.setattr(bench_diagnosis.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(Scripted, "answers", {"dead-pixel": Said(3, "")})
    monkeypatch.setattr(sys, "argv", ["bench", "--no-cost"])
    assert bench_diagnosis.main() == 0
    out = capsys.readouterr().out
    assert "| scripted | 1 of 1 | 1 | 0 | 0 of 0 | n/a | 0 | 0 | 0 of 0 | 0 |" in out
    assert "left out: DebugUnderflowOverflow; see `make diagnosis`" in out


def test_ours_comes_first():
    assert SCORED[0] is Tsx
