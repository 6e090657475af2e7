"""How weights start, and what the first loss says of it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults.watched import WatchedLines
from tsx.diagnostics.loss import first_loss
from tsx.diagnostics.weights import freshness, init_scale

pytestmark = pytest.mark.trainer


def watch_once(model, loss, *given, step=1):
    """Take one step and return what was said of starts."""
    run, optimizer = WatchedLines(), torch.optim.SGD(model.parameters(), lr=1e-3)
    run.watch(model, optimizer)
    run.lines.telemetry.step = step - 1
    run.compute(loss, *given).backward()
    optimizer.step()
    run.close()
    kinds = (init_scale.KIND.name, first_loss.KIND.name, "detector-failed")
    found = [finding for finding in run.findings if finding.kind in kinds]
    return [(f.evidence.get("mechanism"), f.module) for f in found]


def judge(model, *, width=16, step=1):
    """Return what is said of a model's start, for normal rows."""
    return watch_once(model, lambda x: model(x).square().mean(), torch.randn(64, width), step=step)


class Stack(nn.Module):
    def __init__(self, std: float) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 16)
        self.up = nn.Parameter(std * torch.randn(4, 16, 32))
        self.down = nn.Parameter(std * torch.randn(4, 32, 16))

    def forward(self, x):
        x = self.enter(x)
        return x + torch.einsum("efd,nef->nd", self.down, torch.einsum("nd,edf->nef", x, self.up))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_a_stack_of_experts_is_judged_by_its_gain():
    assert judge(Stack(1.0)) == [("no-fan-in", "")]
    assert judge(Stack(1e-3)) == [("dead", "")]
    for std in (0.02, 0.1, 0.25):
        assert judge(Stack(std)) == []


def test_a_run_that_starts_from_weights_is_not_judged():
    trained = Stack(1.0)
    with torch.no_grad():
        for param in trained.parameters():
            if param.ndim > 1:
                param.mul_(torch.linspace(0.1, 2.0, param.shape[-1]))
                param.mul_(torch.linspace(0.1, 2.0, param.shape[-2])[:, None])
    assert judge(trained) == []
    assert judge(Stack(1.0), step=7) == []
    normed = nn.Sequential(Stack(1.0), nn.LayerNorm(16))
    nn.init.uniform_(normed[1].weight, 0.5, 1.5)
    assert judge(normed) == []


@pytest.mark.parametrize(
    "draw",
    [nn.init.orthogonal_, nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.trunc_normal_],
)
def test_usual_draws_look_drawn(draw):
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    for layer in model:
        draw(layer.weight)
    assert freshness.looks_drawn(freshness.measure_draws(model).tolist())


def test_models_without_matrices_are_left_alone():
    assert freshness.measure_draws(nn.BatchNorm1d(4)) is not None
    assert freshness.measure_draws(nn.ReLU()) is None
    assert freshness.looks_drawn([])
    lazy = nn.Sequential(nn.LazyLinear(16), nn.Linear(16, 16))
    assert freshness.measure_draws(lazy) is not None


def chain(*layers):
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def test_a_chain_is_judged_from_end_to_end():
    def drawn(std, count=6):
        layers = [nn.Linear(64, 64, bias=False) for _ in range(count)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=std)
        return layers

    assert judge(chain(*drawn(1.0)), width=64) == [("exploding", "0")]
    assert judge(chain(*drawn(0.01)), width=64) == [("vanishing", "0")]
    assert judge(chain(*drawn(0.01, count=2)), width=64) == []
    normed = nn.Sequential(*(p for x in drawn(0.01) for p in (x, nn.BatchNorm1d(64))))
    assert judge(normed, width=64) == []
    assert judge(chain(*(nn.Linear(64, 64) for _ in range(12))), width=64) == []


def test_alike_filters_are_fine_where_the_loss_tells_them_apart():
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    nn.init.constant_(model[2].weight, 1 / 16)
    assert judge(model) == []
    nn.init.constant_(model[0].weight, 1 / 16)
    assert judge(model) == [("symmetric", "0")]
    model[0].requires_grad_(False)
    assert judge(model) == []


class Head(nn.Module):
    def __init__(self, std: float, classes: int = 50) -> None:
        super().__init__()
        self.body = nn.Linear(16, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, classes)
        nn.init.normal_(self.head.weight, std=std)

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"label_smoothing": 0.1},
        {"weight": torch.linspace(0.1, 2.0, 50)},
    ],
    ids=lambda asked: next(iter(asked), "plain"),
)
def test_a_first_loss_is_held_against_the_log_of_the_classes(asked):
    label = torch.randint(50, (64,))
    label[::5] = -100
    x = torch.randn(64, 16)
    for std, expected in ((0.02, []), (1.0, [("head-too-large", "head")])):
        model = Head(std)

        def loss(x, model=model):
            return F.cross_entropy(model(x), label, **asked).mean()

        assert watch_once(model, loss, x) == expected


def test_scores_of_pairs_and_constant_targets_are_no_heads():
    model = nn.ModuleList([nn.Linear(16, 8), nn.Linear(16, 8)])

    def pairs(x):
        one, two = (F.normalize(part(x), dim=-1) for part in model)
        return F.cross_entropy(one @ two.T / 0.05, torch.arange(len(x)))

    assert watch_once(model, pairs, torch.randn(64, 16)) == []
    critic = nn.Linear(16, 1)

    def real(x):
        return F.mse_loss(critic(x), torch.ones(len(x), 1))

    assert watch_once(critic, real, torch.randn(64, 16)) == []


def test_a_regression_is_held_against_its_targets():
    model = nn.Linear(16, 1)
    far = 300 + torch.randn(64, 1)

    def loss(x):
        return F.huber_loss(model(x), far)

    x = torch.randn(64, 16)
    assert watch_once(model, loss, x) == [("target-not-centred", "")]
    with torch.no_grad():
        model.bias.fill_(300.0)
    assert watch_once(model, loss, x) == []
    loud = nn.Linear(16, 1)
    nn.init.normal_(loud.weight, std=20.0)
    found = watch_once(loud, lambda x: F.mse_loss(loud(x), torch.randn(64, 1)), x)
    assert found == [("head-too-large", "")]


def test_logits_of_one_class_are_held_against_log_two():
    model, x = nn.Linear(16, 1), torch.randn(64, 16)

    def loss(x):
        return F.binary_cross_entropy_with_logits(model(x), torch.ones(64, 1))

    assert watch_once(model, loss, x) == []
    nn.init.constant_(model.bias, -math.log(99.0))  # a prior of 1 %
    assert watch_once(model, loss, x) == []
    nn.init.normal_(model.weight, std=20.0)
    assert watch_once(model, loss, x) == [("head-too-large", "")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_measured_too(dtype):
    model = Stack(1.0).to(dtype)
    loss = lambda x: model(x).float().square().mean()  # noqa: E731
    assert watch_once(model, loss, torch.randn(64, 16, dtype=dtype)) == [("no-fan-in", "")]
