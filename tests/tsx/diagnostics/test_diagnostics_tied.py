"""Weights that are one at the start, and copies that may drift apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.faults.watched import WatchedLines
from tsx.diagnostics.weights.tied import find_pairs

pytestmark = pytest.mark.trainer


class Language(nn.Module):
    def __init__(self, tie="object"):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        if tie == "object":
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


def play(model, between=None, steps=4):
    """Take steps under a watched run and return what was found of ties."""
    run, optimizer = WatchedLines(), torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        run.compute(lambda ids: model(ids).square().mean(), torch.tensor([1, 2])).backward()
        optimizer.step()
        run.log({"loss": 1.0}, step)
        if between is not None:
            between(step, optimizer)
    run.close()
    return [f for f in run.findings if f.kind == "tied-weights"]


def test_a_tie_that_holds_is_left_alone():
    model = Language()
    assert [pair.how for pair in find_pairs(model)] == ["object"]
    assert play(model) == []


def test_a_tie_that_comes_undone_in_the_run_is_told():
    model = Language()

    def load(step, optimizer):
        if step == 2:
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict(state, assign=True)
            optimizer.add_param_group({"params": [model.embed.weight]})

    (finding,) = play(model, load)
    assert finding.evidence["mechanism"] == "load-assigns"
    assert {finding.evidence["first"], finding.evidence["second"]} == {
        "embed.weight",
        "head.weight",
    }
    assert finding.evidence["largest_difference"] > 0


def test_layers_that_were_cloned_and_twins_are_no_ties():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, copy.deepcopy(layer), nn.Linear(4, 4))
    assert find_pairs(model) == []


def test_zeros_are_no_ties():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        for layer in model:
            layer.weight.zero_()
    assert find_pairs(model) == []
