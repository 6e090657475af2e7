"""Router statistics and the load-balancing loss at values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tsx.config import AuxReduction
from tsx.model.forecaster import Forecaster
from tsx.model.router import Router, RouterStats, Routing, measure_routing, reduce_aux

pytestmark = pytest.mark.trainer

PER_LAYER, CONCATENATED = AuxReduction.PER_LAYER, AuxReduction.CONCATENATED


def route(probs: list[list[float]], top_k: int) -> Routing:
    probs_NE = torch.tensor(probs)
    weights, experts = probs_NE.topk(top_k, dim=-1)
    counts = torch.bincount(experts.flatten(), minlength=probs_NE.shape[1])
    return Routing(probs_NE, weights, experts, counts)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (8, 1), (4, 4), (1, 1)])
def test_a_flat_router_reads_one_per_layer_and_k_concatenated(num_experts: int, top_k: int) -> None:
    routing = route([[1 / num_experts] * num_experts] * 6, top_k)
    layers = [measure_routing(routing, None)] * 3
    assert reduce_aux(layers, PER_LAYER, top_k).item() == pytest.approx(1.0)
    assert reduce_aux(layers, CONCATENATED, top_k).item() == pytest.approx(top_k)


def test_flat_probabilities_hide_any_load() -> None:
    """Ties send every token to the same K experts, and aux still reads 1."""
    stats = measure_routing(route([[0.25] * 4] * 10, top_k=1), None)
    assert stats.aux.item() == pytest.approx(1.0)
    assert stats.load_max_over_mean.item() == pytest.approx(4.0)
    assert stats.idle_frac.item() == 0.75


def test_layers_collapsed_onto_opposite_experts() -> None:
    """The concatenated value cannot see them: 1.8 a layer, 1.0 together."""
    layers = [
        measure_routing(route([[0.9, 0.1]] * 5, top_k=1), None),
        measure_routing(route([[0.1, 0.9]] * 5, top_k=1), None),
    ]
    assert [stats.aux.item() for stats in layers] == pytest.approx([1.8, 1.8])
    assert reduce_aux(layers, PER_LAYER, 1).item() == pytest.approx(1.8)
    assert reduce_aux(layers, CONCATENATED, 1).item() == pytest.approx(1.0)


def test_aux_can_fall_below_one() -> None:
    # two of three tokens lean a little to expert 0, the third belongs wholly to expert 1:
    # f = (2/3, 1/3), r = (1.02/3, 1.98/3), 2 * sum f r = 2 * (2.04 + 1.98) / 9
    stats = measure_routing(route([[0.51, 0.49], [0.51, 0.49], [0.0, 1.0]], top_k=1), None)
    assert stats.aux.item() == pytest.approx(2 * (2.04 + 1.98) / 9)
    assert stats.aux.item() < 1.0


def test_padding_is_left_out() -> None:
    probs = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.0, 0.1, 0.9], [0.3, 0.3, 0.4]]
    valid = torch.tensor([True, True, False, False])
    got = measure_routing(route(probs, top_k=1), valid)
    want = measure_routing(route(probs[:2], top_k=1), None)
    torch.testing.assert_close(got.load_E, want.load_E)
    torch.testing.assert_close(got.prob_E, want.prob_E)
    torch.testing.assert_close(got.aux, want.aux)


def test_a_batch_of_padding_is_zero_not_nan() -> None:
    stats = measure_routing(route([[0.5, 0.5]] * 2, top_k=1), torch.zeros(2, dtype=torch.bool))
    assert stats.aux.item() == 0.0
    assert stats.load_E.tolist() == [0.0, 0.0]


def test_entropy_is_normalised() -> None:
    uniform = torch.full((4,), 0.25)
    collapsed = torch.tensor([1.0, 0.0, 0.0, 0.0])
    half = torch.tensor([0.5, 0.5, 0.0, 0.0])
    aux = torch.tensor(1.0)
    got = [RouterStats(p, p, aux).entropy.item() for p in (uniform, collapsed, half)]
    assert got == pytest.approx([1.0, 0.0, math.log(2) / math.log(4)])
    assert RouterStats(aux[None], aux[None], aux).entropy.item() == 1.0


def test_load_is_the_share_of_routed_rows() -> None:
    stats = measure_routing(route([[0.5, 0.3, 0.2], [0.5, 0.1, 0.4]], top_k=2), None)
    assert stats.load_E.tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert stats.load_max_over_mean.item() == pytest.approx(1.5)
    assert stats.idle_frac.item() == 0


def test_only_probabilities_carry_gradient() -> None:
    router = Router(3, 4, top_k=2)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    stats = measure_routing(router(x), None)
    assert not stats.load_E.requires_grad
    stats.aux.backward()
    assert router.proj.weight.grad is not None
    assert router.proj.weight.grad.abs().sum() > 0


def test_the_router_stays_in_fp32_under_autocast() -> None:
    router = Router(8, 4, top_k=2)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        probs = router(x).probs_NE
    assert probs.dtype is torch.float32
    torch.testing.assert_close(probs, (x.float() @ router.proj.weight.T).softmax(-1))


def test_patches_count_as_tokens_and_one_valid_point_is_enough(
    make_tiny: Callable[..., Forecaster], series: Callable[..., torch.Tensor]
) -> None:
    model = make_tiny(patch_len=3)
    window = series(1, 9)
    valid = torch.tensor([[True] * 4 + [False] * 5])  # tokens 0 and 1
    got = model(window * valid, valid).routing[0]
    want = model((window * valid)[:, :6]).routing[0]
    torch.testing.assert_close(got.load_E, want.load_E)
    torch.testing.assert_close(got.prob_E, want.prob_E)


def test_parity_mode_counts_padding(
    make_tiny: Callable[..., Forecaster], series: Callable[..., torch.Tensor]
) -> None:
    model = make_tiny(aux_reduction=CONCATENATED)
    window = series(2, 6)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 2:] = False
    got, want = model(window * valid, valid).routing, model(window * valid).routing
    assert all(torch.equal(a.load_E, b.load_E) for a, b in zip(got, want, strict=True))
