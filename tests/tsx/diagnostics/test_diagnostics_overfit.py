"""One batch by heart: the verdict, its true cause, and a model left as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from registry.events import Severity
from tests.faults.plant import list_plants
from tests.faults.watched import WatchedLines, play_watched
from tsx.config import decode
from tsx.diagnostics.loss.memorise import (
    count_directions,
    find_contradictions,
    is_bottleneck,
    judge,
    list_rungs,
    split_batch,
)

pytestmark = pytest.mark.trainer

PLANTS = [plant for plant in list_plants() if plant.kind == "overfit"]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_the_cause_of_a_batch_that_is_not_learned(plant):
    (found,) = [finding for finding in play_watched(plant) if finding.kind == "overfit"]
    assert found.severity is Severity.WARNING
    assert found.evidence["mechanism"] == plant.mechanism
    assert found.module == plant.module
    assert found.where.endswith(f":{plant.line}" if plant.line else "")
    assert found.evidence["ladder"]


def memorise(*, lr, steps, declared=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    run = WatchedLines()
    run.watch(model, optimizer, fixed_batch=declared)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = run.compute(lambda x, y: (model(x) - y).square().mean(), x, y)
        loss.backward()
        optimizer.step()
        run.log({"loss": float(loss.detach())}, step)
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    run.close()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    return [finding for finding in run.findings if finding.kind == "overfit"]


def test_a_batch_that_is_learned_is_a_remark_with_the_step():
    (found,) = memorise(lr=3e-2, steps=150)
    assert (found.severity, found.evidence["mechanism"]) == (Severity.INFO, "memorised")
    assert 1 < found.step < 150
    assert found.evidence["last_loss"] < 0.05 * found.evidence["first_loss"]


def test_a_small_rate_is_proved_by_a_larger_one_and_the_model_stays_as_it_was():
    (found,) = memorise(lr=1e-5, steps=60)
    assert found.evidence["mechanism"] == "lr-too-small"
    first, last = found.evidence["tried_losses"]
    assert last < 0.8 * first
    assert found.evidence["tried_lr"] > 1e-5


def test_nothing_is_said_of_other_loops_and_of_short_ones():
    assert memorise(lr=1e-5, steps=60, declared=False) == []
    assert memorise(lr=1e-5, steps=10) == []


@pytest.mark.parametrize("losses", [[], [math.nan, 1.0], [-1.0, -2.0], [1.0, -1.0]])
def test_no_verdict_on_what_is_no_loss_that_ends_at_zero(losses):
    assert judge(losses) is None


def test_a_loss_on_its_way_down_is_not_stuck():
    falling = judge([0.99**step for step in range(100)])
    standing = judge([1.0 + 0.01 * (step % 3) for step in range(100)])
    assert falling is not None
    assert standing is not None
    assert (falling.is_learned, falling.is_stuck) == (False, False)
    assert standing.is_stuck
    short = judge([1.0] * 5)
    assert short is not None
    assert short.is_short


def test_only_equal_inputs_contradict_each_other():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0]])
    assert find_contradictions([x], [torch.tensor([0, 1, 1, 1])]) == [[0, 2]]
    assert find_contradictions([x], [torch.tensor([0, 1, 0, 1])]) == []
    mask = torch.tensor([True, True, False, True])
    assert find_contradictions([x, mask], [torch.tensor([0, 1, 1, 1])]) == []
    assert find_contradictions([], [x]) == []


def test_named_targets_are_told_from_inputs():
    x, y = torch.zeros(2), torch.ones(2)
    assert split_batch({"a": x, "target b": y})[1][0] is y
    assert split_batch({"a": x, "b": y})[0][0] is x


def test_directions_of_values():
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert count_directions(rows) == 6
    assert count_directions(rows.mean(-1, keepdim=True).expand_as(rows)) == 1
    assert count_directions(torch.zeros(3, 6)) == 0
    assert count_directions(torch.full((3, 6), math.nan)) == 0
    assert is_bottleneck(6, 1, 6)
    assert not is_bottleneck(6, 1, 1)  # a head


def test_the_ladder_is_of_commands_that_change_something():
    config = decode({"model": {"num_layers": 2}, "data": {"context_length": 512}})
    rungs = list_rungs(config, lr=1e-4)
    assert [rung.split("--set ")[1].split("=")[0] for rung in rungs] == [
        "model.num_layers",
        "data.context_length",
        "optim.lr",
    ]
    single = decode({"model": {"num_layers": 1, "horizons": [1]}, "data": {"context_length": 2}})
    assert list_rungs(single, lr=1e-4) == ["tsx run overfit --set optim.lr=1e-03"]
    assert list_rungs(None, lr=1e-4)[0] == "one layer"
