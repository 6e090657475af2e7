"""Two implementations of one thing: agreement, and the place and kind of a difference."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from registry.events import Severity
from tests.faults.plant import list_plants, play
from tests.faults.watched import play_watched
from tsx.config import ModelConfig
from tsx.diagnostics.variants import compare_variants, measure_difference
from tsx.model.forecaster import build_forecaster

pytestmark = pytest.mark.trainer

PLANTS = {plant.name: plant for plant in list_plants() if plant.kind == "variant-equivalence"}


def test_experts_that_answer_otherwise_than_their_loop_are_found_as_they_train():
    plant = PLANTS["tsx-variants-differ"]
    found = [finding for finding in play_watched(plant) if finding.kind == plant.kind]
    assert {finding.module for finding in found} == {
        "blocks.0.moe.experts",
        "blocks.1.moe.experts",
    }
    first = found[0]
    assert (first.module, first.severity) == (plant.module, Severity.ERROR)
    assert first.evidence["mechanism"] == plant.mechanism
    assert first.evidence["largest_difference"] > 100 * first.evidence["tolerance"]
    assert first.where == f"{plant.path}:{plant.line}"
    assert all(finding.count == 1 for finding in found)


def test_a_transposed_product_is_named_with_parameter_and_line():
    plant = PLANTS["einsum-transposed"]
    loop = play(plant)
    middle = loop.model.middle
    before = copy.deepcopy(middle.state_dict())

    def read(x):
        middle.is_fast = False
        try:
            return middle(x)
        finally:
            middle.is_fast = True

    difference = compare_variants(read, middle, [torch.randn(20, 12)])
    assert difference is not None
    assert difference.mechanism == plant.mechanism
    assert difference.evidence["parameter"] == "weight"
    assert difference.where == f"{plant.path}:{plant.line}"
    finding = difference.to_finding(step=3, at=1.0)
    assert (finding.kind, finding.step) == (plant.kind, 3)
    assert all(torch.equal(before[name], t) for name, t in middle.state_dict().items())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_experts_of_a_healthy_model_agree(precision):
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_experts=4, top_k=2)
    moe = build_forecaster(config, seed=0).blocks[0].moe.to(precision)
    x = torch.randn(40, 16, dtype=precision)
    with torch.no_grad():
        routing = moe.router(x)
    assert compare_variants(moe.experts.run_loop, moe.experts, [x, routing]) is None


def test_the_first_module_that_differs_is_named():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    other = copy.deepcopy(one)
    other[1] = nn.GELU()
    x = torch.randn(5, 4)
    difference = compare_variants(one, other, [x])
    assert difference is not None
    assert (difference.mechanism, difference.module) == ("unexplained", "1")
    assert compare_variants(one, copy.deepcopy(one), [x]) is None


def test_neither_buffers_nor_generators_nor_hooks_are_left_changed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    other = copy.deepcopy(model)
    before = [copy.deepcopy(module.state_dict()) for module in (model, other)]
    state = torch.get_rng_state()
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight.flip(0))
    before[1] = copy.deepcopy(other.state_dict())
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert compare_variants(model, model, [x]) is None  # dropout draws the same for both
    assert compare_variants(model, other, [x]) is not None
    assert torch.equal(torch.get_rng_state(), state)
    for module, kept in zip((model, other), before, strict=True):
        assert all(torch.equal(kept[name], t) for name, t in module.state_dict().items())
        assert not any(part._forward_hooks for part in module.modules())


def test_rows_that_are_scaled_are_told_from_anything_else():
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    scaled = measure_difference(rows, rows * torch.linspace(1.1, 2.0, 9)[:, None])
    assert scaled is not None
    assert scaled.mechanism == "rows-scaled"
    assert scaled.evidence["row_factors"] == pytest.approx([1.1, 2.0])
    other = measure_difference(rows, rows.flip(0))
    assert other is not None
    assert other.mechanism == "unexplained"


def test_shapes_and_numbers_that_are_not_finite():
    shapes = measure_difference(torch.zeros(2, 3), torch.zeros(3, 2))
    assert shapes is not None
    assert shapes.mechanism == "shape"
    bad = torch.tensor([1.0, math.nan, math.inf])
    assert measure_difference(bad, bad.clone()) is None
    assert measure_difference(torch.ones(3), bad) is not None
    assert measure_difference(torch.zeros(0), torch.zeros(0)) is None


def test_the_tolerance_is_the_coarser_dtype_s_unless_given():
    one = torch.ones(8)
    assert measure_difference(one, one * 1.001) is not None
    assert measure_difference(one, (one * 1.001).bfloat16()) is None
    assert measure_difference(one, one * 1.001, tolerance=0.01) is None


def test_a_variant_that_returns_no_tensor_is_refused():
    with pytest.raises(TypeError, match="returned str"):
        compare_variants(lambda x: "x", lambda x: x, [torch.ones(2)])
