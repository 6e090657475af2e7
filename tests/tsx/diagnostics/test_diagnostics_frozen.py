"""Parameters that do not move: the walk, the shadow step, and what is left alone."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from tests.faults.watched import WatchedLines, list_alarms

pytestmark = pytest.mark.trainer

WIDTH = 4


def train(model, optimizers, *, steps=5, loss=None, between=None):
    """Take steps under a watched run and return what was found of parameters, or failed."""
    run = WatchedLines()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    for optimizer in optimizers:
        run.watch(model, optimizer)
    for step in range(1, steps + 1):
        x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(step))
        value = run.compute(loss or (lambda x: model(x).square().mean()), x)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if between is not None:
            between(step)
        run.log({"loss": float(value.detach())}, step)
    run.close()
    ours = ("frozen", "skipped_steps", "update_ratio")
    return [f for f in run.findings if f.kind == "frozen-param" or f.module in ours]


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def test_a_healthy_model_moves():
    model = make_model()
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1)) == []


def test_the_shadow_of_a_step_proves_that_it_is_lost_and_leaves_no_trace():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    twin = copy.deepcopy(model)
    plain = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.0)

    def loss(net):
        return lambda x: (net(x.bfloat16()).float() - 1).square().mean()

    (finding,) = list_alarms(train(model, optimizer, loss=loss(model)))
    assert finding.evidence["mechanism"] == "update-underflow"
    assert finding.evidence["parameters"] == ["1.weight"]
    assert 0 < finding.evidence["largest_update"] < finding.evidence["half_ulp"] == 2**-8
    for step in range(1, 6):
        x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(step))
        loss(twin)(x).backward()
        plain.step()
        plain.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
        for key, value in optimizer.state[one].items():
            assert torch.equal(value, plain.state[other][key])


def test_a_rate_that_rises_is_waited_for():
    model = nn.LayerNorm(WIDTH).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)

    def warm_up(step):
        optimizer.param_groups[0]["lr"] = 1e-2 * step / 6

    loss = lambda x: (model(x.bfloat16()).float() - 1).square().mean()  # noqa: E731
    assert train(model, optimizer, steps=8, loss=loss, between=warm_up) == []


def test_an_optimizer_that_has_not_stepped_yet_holds_its_parameters():
    model = make_model()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    assert train(model, first, steps=5) == []  # the other one is alive: a turn of its own may come
    assert second.param_groups


def test_what_is_left_out_is_told_once_with_its_class():
    model = make_model()
    (finding,) = train(model, torch.optim.SGD([*model[0].parameters()], lr=0.1), steps=9)
    assert finding.evidence["mechanism"] == "not-in-optimizer"
    assert finding.evidence["parameters"] == ["2.weight", "2.bias"]
    assert finding.severity == "warning"
    assert finding.module == "2"
    assert finding.count == 1


def test_only_a_small_head_in_the_optimizer_is_on_purpose():
    torch.manual_seed(0)
    body = [nn.Linear(WIDTH, WIDTH) for _ in range(12)]
    model = nn.Sequential(*body, nn.Linear(WIDTH, 1))
    (finding,) = train(model, torch.optim.SGD(model[-1].parameters(), lr=0.01))
    assert finding.severity == "info"


def test_weights_frozen_from_the_start_are_a_remark():
    model = make_model()
    model[0].requires_grad_(False)
    (finding,) = train(model, torch.optim.SGD(model[2].parameters(), lr=0.1))
    assert (finding.severity, finding.evidence["mechanism"]) == ("info", "requires-grad-off")


def test_rare_rows_of_a_large_embedding_move():
    table = nn.Embedding(5000, 8)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    rows = torch.tensor([4321, 17])
    assert train(table, optimizer, loss=lambda x: table(rows).square().sum()) == []


def test_a_sparse_gradient_is_one():
    table = nn.Embedding(50, 8, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    rows = torch.tensor([43, 17])
    assert train(table, optimizer, loss=lambda x: table(rows).square().sum()) == []


def test_a_flat_loss_is_no_matter_of_parameters():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert train(model, optimizer, loss=lambda x: (model(x) - 1e6).relu().sum()) == []


def test_odd_parameters_are_left_alone():
    model = nn.Module()
    model.body = nn.Linear(WIDTH, 1)
    model.turn = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    model.none = nn.Parameter(torch.empty(0))
    model.bits = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    model.far = nn.Parameter(torch.empty(3, device="meta"))
    optimizer = torch.optim.SGD(model.body.parameters(), lr=0.1)
    assert train(model, optimizer, loss=lambda x: model.body(x).square().mean()) == []


def test_a_watched_model_is_copied_and_saved_as_it_is():
    model = make_model()
    model[0].weight.requires_grad_(False)
    copies = []

    def keep(step):
        copies.append(copy.deepcopy(model))
        torch.save(model, io.BytesIO())

    train(model, torch.optim.SGD(model[2].parameters(), lr=0.1), between=keep)
    assert not any(net._forward_pre_hooks or net._forward_hooks for net in copies)


def test_parameters_in_a_plain_list_are_named():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = [nn.Linear(WIDTH, WIDTH)]
            self.head = nn.Linear(WIDTH, 1)

        def forward(self, x):
            return self.head(self.parts[0](x))

    model = Listed()
    (finding,) = train(model, torch.optim.SGD(model.parameters(), lr=0.01))
    assert finding.evidence["mechanism"] == "not-registered"
    assert finding.evidence["attribute"] == "parts"


def test_a_list_that_some_optimizer_trains_is_left_alone():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = [nn.Linear(WIDTH, WIDTH)]
            self.head = nn.Linear(WIDTH, 1)

        def forward(self, x):
            return self.head(self.parts[0](x))

    model = Listed()
    params = [*model.parameters(), *model.parts[0].parameters()]
    assert train(model, torch.optim.SGD(params, lr=0.01)) == []


def test_a_scaler_that_finds_its_scale_is_left_alone():
    model, run = make_model(), WatchedLines()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    run.watch(model, optimizer)
    for step in range(1, 14):
        x = torch.full((2, WIDTH), 3.0)
        loss = run.compute(lambda x: (model(x).square().mean() * 100).half().float(), x)
        scaler.scale(loss).backward()
        for param in model.parameters():  # what overflows in fp16
            param.grad[param.grad.abs() > 65504] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        run.log({"loss": 1.0}, step)
    run.close()
    assert [f.evidence.get("mechanism") for f in run.findings if f.kind == "frozen-param"] == []
