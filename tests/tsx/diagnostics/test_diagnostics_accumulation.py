"""Steps that look as if gradients had piled up, and did not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults.watched import WatchedLines

pytestmark = pytest.mark.trainer


def score(model):
    return lambda x: F.mse_loss(model(x), x[:, :1])


def run_steps(take, model, *optimizers, steps=12):
    """Watch a loop of `take(run, step)` and return what is said of its gradients."""
    run = WatchedLines()
    for optimizer in optimizers:
        run.watch(model, optimizer)
    for step in range(1, steps + 1):
        take(run, step)
        run.log({"loss": 1.0}, step=step)
    run.close()
    return [finding for finding in run.findings if finding.kind == "accumulation"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def test_gradients_that_are_zeroed_behind_the_version_counter_are_zeroed(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def take(run, step):
        loss = run.compute(score(model), torch.randn(8, 4))
        for param in model.parameters():
            if param.grad is not None:
                param.grad.data.zero_()
        loss.backward()
        optimizer.step()

    assert run_steps(take, model, optimizer) == []


def test_another_loss_may_add_to_gradients_that_are_thrown_away():
    parts = nn.ModuleDict({"maker": nn.Linear(4, 4), "judge": nn.Linear(4, 1)})
    makes, judges = (torch.optim.SGD(part.parameters(), lr=0.1) for part in parts.values())

    def take(run, step):
        judges.zero_grad()
        real = torch.randn(8, 4)
        run.compute(lambda x: parts["judge"](x).square().mean(), real).backward()
        judges.step()
        makes.zero_grad()
        run.compute(lambda x: parts["judge"](parts["maker"](x)).mean(), real).backward()
        makes.step()

    assert run_steps(take, parts, makes, judges) == []


def test_two_passes_over_one_batch_are_no_micro_batches(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def take(run, step):
        x = torch.randn(8, 4)
        run.compute(score(model), x).backward()
        optimizer.zero_grad()
        run.compute(score(model), x).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert run_steps(take, model, optimizer) == []


def test_a_small_last_micro_batch_is_no_fault_once(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def take(run, step):
        optimizer.zero_grad()
        for size in (8, 2) if step == 5 else (8, 8):
            (run.compute(score(model), torch.randn(size, 4)) / 2).backward()
        optimizer.step()

    assert run_steps(take, model, optimizer) == []


@pytest.mark.parametrize("weigh", [False, True])
def test_unequal_micro_batches_are_told_unless_they_are_weighed(model, weigh):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def take(run, step):
        optimizer.zero_grad()
        for size in (9, 1):
            loss = run.compute(score(model), torch.randn(size, 4))
            (loss * size / 10 if weigh else loss / 2).backward()
        optimizer.step()

    found = [finding.evidence["mechanism"] for finding in run_steps(take, model, optimizer)]
    assert found == ([] if weigh else ["mean-of-means"])


def test_a_loss_that_is_never_backpropagated_says_nothing(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def take(run, step):
        run.compute(score(model), torch.randn(8, 4))
        optimizer.step()

    assert run_steps(take, model, optimizer) == []
