"""Parameters that move too far in one step, and those that may."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.faults.watched import WatchedLines

pytestmark = pytest.mark.trainer


def find_wild(model, optimizer, steps=3):
    """Take steps under a watched run and return what was found of updates."""
    run = WatchedLines()
    run.watch(model, optimizer)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        run.compute(lambda x: (model(x) - 1).square().mean(), torch.ones(4, 4)).backward()
        optimizer.step()
        run.log({"loss": 1.0}, step)
    run.close()
    return [f for f in run.findings if f.kind == "update-ratio"]


def make_layer(scale):
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


@pytest.mark.parametrize(
    ("scale", "kind", "lr", "mechanism"),
    [
        (1e-3, torch.optim.Adam, 1e-2, "init-too-small"),
        (1.0, torch.optim.SGD, 30.0, "lr-too-large"),
    ],
)
def test_a_step_of_several_times_the_own_size_is_told_once(scale, kind, lr, mechanism):
    layer = make_layer(scale)
    (finding,) = find_wild(layer, kind(layer.parameters(), lr=lr))
    assert (finding.evidence["mechanism"], finding.step) == (mechanism, 1)
    assert finding.evidence["ratio"] >= 3
    assert finding.evidence["lr"] == lr


def test_a_hot_group_is_told_from_the_others():
    model = nn.Sequential(make_layer(1.0), make_layer(1.0))
    groups = [
        {"params": model[0].parameters(), "lr": 1e-3},
        {"params": model[1].parameters(), "lr": 30.0},
    ]
    (finding,) = find_wild(model, torch.optim.SGD(groups))
    assert (finding.evidence["mechanism"], finding.module) == ("group-rate", "1")
    assert finding.evidence["lr_of_others"] == [1e-3]


def test_ordinary_steps_and_what_starts_at_zero_or_as_one_number_are_left_alone():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make_layer(1.0)
            self.scale = nn.Parameter(torch.full((4,), 1e-6))  # starts as nothing, on purpose
            self.shift = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x + self.scale * self.layer(x) + self.shift

    model = Scaled()
    assert find_wild(model, torch.optim.Adam(model.parameters(), lr=1e-2)) == []
