"""Dtypes of norms and products, beside autocast that stands where it should."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults.watched import WatchedLines
from tsx.diagnostics.resources.precision import MISMATCH, UPCAST

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
]
autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def watch_once(model, loss):
    """Take one step and return the mechanisms that were told, with their modules."""
    run, optimizer = WatchedLines(), torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer)
    run.compute(loss, torch.randn(4, 6, 16)).backward()
    optimizer.step()
    run.close()
    kinds = (MISMATCH.name, UPCAST.name, "detector-failed")
    found = [finding for finding in run.findings if finding.kind in kinds]
    return [(finding.evidence["mechanism"], finding.module) for finding in found]


class Norm(nn.Module):
    """A fused norm whose weight has a dtype of its own."""

    def __init__(self, *, is_cast: bool = False) -> None:
        super().__init__()
        self.proj = nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.ones(16))
        self.is_cast = is_cast

    def forward(self, x):
        x = self.proj(x)
        weight = self.weight.to(x.dtype) if self.is_cast else self.weight
        return F.rms_norm(x, (16,), weight)


def in_autocast(model, x):
    with autocast():
        y = model(x)
    return y.float().square().mean()


def test_a_norm_of_two_dtypes_is_told_and_a_cast_one_is_not():
    for is_cast, expected in ((False, [("fp32-weight-bf16-input", "")]), (True, [])):
        model = Norm(is_cast=is_cast)
        assert watch_once(model, lambda x, m=model: in_autocast(m, x)) == expected
    half = Norm().to(torch.bfloat16)
    assert watch_once(half, lambda x: half(x.bfloat16()).float().square().mean()) == []


class Router(nn.Module):
    """Chooses in fp32, on purpose, from more experts than anything else here is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 64)
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            best = F.linear(x.float(), self.gate.weight).softmax(-1).topk(2, -1).values
        return self.out(x) * best.sum(-1, keepdim=True)


def test_a_router_in_fp32_is_meant():
    model = Router()
    assert watch_once(model, lambda x: in_autocast(model, x)) == []


class Leaving(Router):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            wide = self.gate(x.float())
        return self.out(x) * wide.mean(-1, keepdim=True)


def test_a_module_that_leaves_autocast_is_named():
    model = nn.Sequential(nn.Linear(16, 16), Leaving())
    assert watch_once(model, lambda x: in_autocast(model, x)) == [("autocast-left", "1")]


def test_products_after_autocast_and_a_disabled_one_are_fine():
    model = nn.Linear(16, 16)

    def compares(x):
        with autocast():
            y = model(x)
        y = F.normalize(y.float().flatten(0, 1), dim=-1)
        return F.cross_entropy(y @ y.T, torch.arange(len(y)))

    def disabled(x):
        with autocast(enabled=False):
            return model(x).square().mean()

    assert watch_once(model, compares) == []
    assert watch_once(model, disabled) == []


def test_fp64_is_told_where_it_slips_in_and_not_where_it_is_meant():
    table = torch.ones(16, dtype=torch.float64)

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x):
            return self.inner(x) + table

    slipped = nn.Sequential(Doubled(), nn.Identity())
    assert watch_once(slipped, lambda x: slipped(x).mean()) == [("fp64-from-numpy", "0")]
    meant = nn.Linear(16, 16).double()
    assert watch_once(meant, lambda x: meant(x.double()).mean()) == []
    target = torch.zeros(4, 6, 16, dtype=torch.float64)
    single = nn.Linear(16, 16)
    assert watch_once(single, lambda x: (single(x) - target).square().mean()) == []


def test_odd_results_fail_no_detector():
    model = nn.Linear(16, 16)

    def odd(x):
        y = model(x).to_sparse().to_dense()
        z = torch.complex(y, y).abs() + torch.empty(0, 16).sum()
        return torch.where(torch.ones(6, 1, dtype=torch.bool), z, 0.0).mean()

    assert watch_once(model, odd) == []
