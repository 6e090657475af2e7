"""Modes of a model and buffers of its frozen parts."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults.watched import WatchedLines
from tsx.diagnostics.loop.modes import drops

pytestmark = pytest.mark.trainer


def play(model, between=None, steps=6):
    """Take steps under a watched run and return what was found of modes and buffers."""
    params = [p for p in model.parameters() if p.requires_grad]
    run, optimizer = WatchedLines(), torch.optim.SGD(params, lr=0.1)
    run.watch(model, optimizer)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        run.compute(lambda x: model(x).square().mean(), x).backward()
        optimizer.step()
        run.log({"loss": 1.0}, step)
        if between is not None:
            between(run, step)
    run.close()
    assert sys.getprofile() is None
    return [f for f in run.findings if f.kind in ("train-mode", "buffer-drift")]


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))


def score(model, run, step):
    with torch.no_grad():
        model(torch.ones(2, 4))
    run.log({"val/loss": 1.0}, step)


def test_a_score_in_eval_mode_is_right():
    model = make_model()

    def between(run, step):
        model.eval()
        score(model, run, step)
        model.train()

    assert play(model, between) == []


def test_a_score_in_train_mode_is_told_with_its_line():
    model = make_model()
    (finding,) = play(model, lambda run, step: score(model, run, step))
    assert finding.evidence["mechanism"] == "scored-in-train-mode"
    path, _, line = finding.where.rpartition(":")
    assert path.endswith("test_diagnostics_modes.py")
    assert int(line) == score.__code__.co_firstlineno + 2
    assert finding.evidence["modules"] == ["1"]


def test_samples_drawn_in_train_mode_without_a_score_are_left_alone():
    model = make_model()

    def between(run, step):
        with torch.no_grad():
            model(torch.ones(2, 4))

    assert play(model, between) == []


def test_a_model_without_dropout_may_be_scored_in_any_mode():
    model = nn.Linear(4, 1)
    assert play(model, lambda run, step: score(model, run, step)) == []


def test_one_step_in_eval_mode_is_no_habit():
    model = make_model()
    assert play(model, lambda run, step: model.train(step != 3)) == []


def test_a_profile_of_the_users_own_is_left_alone():
    model, seen = make_model(), []

    def profile(frame, event, arg):
        seen.append(event)

    def between(run, step):
        sys.setprofile(None)
        score(model, run, step)
        if step < 6:
            sys.setprofile(profile)

    play(model, between)
    assert seen


def test_a_dropout_that_asks_for_the_mode_is_right():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 1)

        def forward(self, x):
            return self.body(F.dropout(x, 0.5, self.training))

    assert play(Asking()) == []


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "is_on"),
    [
        ("dropout", (0,), {}, True),
        ("dropout", (0, 0.5, False), {}, False),
        ("dropout", (0,), {"p": 0.0, "training": True}, False),
        ("dropout2d", (0,), {"p": 0.1, "training": True}, True),
        ("scaled_dot_product_attention", (0, 0, 0), {"dropout_p": 0.1}, True),
        ("scaled_dot_product_attention", (0, 0, 0, None, 0.0), {}, False),
        ("linear", (0, 0.5), {}, False),
    ],
)
def test_calls_that_drop(name, args, kwargs, is_on):
    assert drops(name, args, kwargs) is is_on


def test_a_teacher_that_follows_is_not_frozen():
    student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)

        def forward(self, x):
            return self.student(x) + self.teacher(x)

    model = Pair()

    def follow(run, step):
        with torch.no_grad():
            pairs = zip(model.teacher.parameters(), student.parameters(), strict=True)
            for mine, other in pairs:
                mine.lerp_(other, 0.5)

    assert play(model, follow) == []


def test_a_frozen_norm_in_train_mode_is_told_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[1].requires_grad_(False)
    (finding,) = play(model)
    assert (finding.kind, finding.module) == ("buffer-drift", "1")
    assert finding.evidence["mechanism"] == "batch-norm-in-train"
    model[1].eval()
    assert play(model) == []
