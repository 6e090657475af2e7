"""The tape that proves NaN plants, on cases small enough to see through."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.faults.oracle import find_first_nonfinite
from tests.faults.plant import Loop, Plant

pytestmark = pytest.mark.trainer


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.root = Root()

    def forward(self, x: Tensor) -> Tensor:
        return self.root(x * self.weight)


def judge(loss: Callable[[Net, Tensor], Tensor], x: list[float]) -> tuple[str, int, str]:
    """Return phase, line (counted from the loss's first) and module of the blame."""

    def build() -> Loop:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Loop(model, optimizer, lambda step: (torch.tensor(x),), lambda x: loss(model, x))

    empty = {"kind": "", "architecture": "", "mechanism": "", "story": ""}
    blame = find_first_nonfinite(Plant(name="", build=build, proof=print, steps=1, **empty))
    return blame.phase, blame.line - inspect.getsourcelines(loss)[1], blame.module


def finite(model: Net, x: Tensor) -> Tensor:
    return (x * model.weight).sum()


def bad_later(model: Net, x: Tensor) -> Tensor:
    hidden = torch.where(x > 0, 0.0, -torch.inf)
    weight = (model.weight + hidden).softmax(-1)
    return weight.log().sum()


def bad_aside(model: Net, x: Tensor) -> Tensor:
    (x - x).log()
    good = (x * model.weight).sum()
    return good / (good - good)


def bad_module(model: Net, x: Tensor) -> Tensor:
    return model(-x).sum()


def bad_slope(model: Net, x: Tensor) -> Tensor:
    return model(x).sum()


def test_nothing_is_blamed_where_all_is_finite() -> None:
    assert judge(finite, [1.0, 2.0])[0] == ""


def test_a_fill_is_never_to_blame() -> None:
    assert judge(bad_later, [1.0, -1.0])[:2] == ("forward", 3)


def test_what_does_not_reach_the_loss_is_not_to_blame() -> None:
    assert judge(bad_aside, [1.0, 1.0])[:2] == ("forward", 3)


def test_the_module_is_named() -> None:
    assert judge(bad_module, [1.0, 1.0])[::2] == ("forward", "root")


def test_a_slope_that_is_infinite_is_found_in_the_backward_pass() -> None:
    assert judge(bad_slope, [1.0, 1.0])[::2] == ("backward", "root")


def test_a_bad_input_has_no_maker() -> None:
    phase, _, module = judge(finite, [1.0, float("nan")])
    assert (phase, module) == ("forward", "")
