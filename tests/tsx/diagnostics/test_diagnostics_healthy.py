"""No alarm on any loop in which nothing is wrong, however odd it looks."""

from __future__ import annotations

import pytest
import torch

from tests.faults.plant import list_healthy, play
from tests.faults.watched import WatchedLines, WatchedRun, list_alarms, play_watched

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    "loop",
    [pytest.param(loop, marks=[pytest.mark.slow] if loop.slow else []) for loop in list_healthy()],
    ids=lambda loop: loop.name,
)
def test_a_healthy_loop_is_left_alone(loop):
    assert list_alarms(play_watched(loop)) == []


# Read or called once too often, these would train otherwise.
MOVING = {"spectral-norm", "batch-norm", "dropout", "time-first-states"}


@pytest.mark.parametrize(
    "loop", [loop for loop in list_healthy() if loop.name in MOVING], ids=lambda loop: loop.name
)
def test_what_is_watched_trains_bit_for_bit_the_same(loop):
    def train(run):
        held = play(loop, run=run)
        return [step.losses for step in held.seen], held.model.state_dict()

    watched = WatchedRun()
    losses, state = train(watched)
    watched.close()
    plain_losses, plain_state = train(None)
    assert losses == plain_losses
    assert all(torch.equal(state[name], plain_state[name]) for name in plain_state)


def test_traces_leave_no_hook_and_no_method_behind():
    hooks = torch.nn.modules.module
    several = next(loop for loop in list_healthy() if loop.name == "bounded-vae")
    item = torch.Tensor.item
    play_watched(several)
    assert not hooks._has_any_global_hook()
    assert torch.Tensor.item is item


ODD_TENSORS = {
    "jagged": lambda: nest(layout=torch.jagged),
    "nested": lambda: nest(),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "compressed": lambda: torch.eye(4).to_sparse_csr(),
    "meta": lambda: torch.empty(3, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8),
}


def nest(**layout):
    return torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(5, 4)], **layout)


@pytest.mark.filterwarnings("ignore:.*(prototype|beta|quantize).*:UserWarning")
@pytest.mark.parametrize("name", ODD_TENSORS)
def test_a_tensor_that_is_not_dense_stops_no_detector(name):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    run = WatchedLines()
    run.watch(model, optimizer)
    for step in range(1, 4):
        optimizer.zero_grad()
        loss = run.compute(
            lambda x, odd: model(x).square().mean(), torch.randn(8, 4), ODD_TENSORS[name]()
        )
        loss.backward()
        optimizer.step()
        run.log({"loss": loss.item()}, step)
    run.close()
    assert run.findings == []
