from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tsx.config import Precision, decode
from tsx.data.windows import Batch
from tsx.model.forecaster import build_forecaster
from tsx.model.router import RouterStats
from tsx.trainer.objective import accumulate_gradients, count_labels, read_router_metrics

pytestmark = pytest.mark.trainer

CPU = torch.device("cpu")


def make_config(**model):
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_experts": 4, "top_k": 2}
    return decode(
        {"model": {**sizes, "horizons": [1, 4, 9], **model}, "data": {"context_length": 12}}
    ).model


def make_batch(lengths, points=12, seed=0):
    """Return windows with that many valid points each, zeros behind."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(lengths), points + 1)).astype(np.float32)
    usable = np.arange(points + 1) < np.array(lengths)[:, None]
    values = np.where(usable, values, 0).astype(np.float32)
    return Batch(
        input_BC=np.ascontiguousarray(values[:, :-1]),
        target_BC=np.ascontiguousarray(values[:, 1:]),
        target_mask_BC=np.ascontiguousarray(usable[:, 1:]),
        input_mask_BC=np.ascontiguousarray(usable[:, :-1]),
    )


def split(batch, sizes):
    """Cut a batch into consecutive ones."""
    bounds = np.cumsum([0, *sizes])
    fields = ("input_BC", "target_BC", "target_mask_BC", "input_mask_BC")
    return [
        Batch(**{name: getattr(batch, name)[a:b] for name in fields})
        for a, b in itertools.pairwise(bounds)
    ]


@pytest.mark.parametrize("patch_len", [1, 2, 3, 4])
def test_labels_are_counted_as_a_loop_would(patch_len):
    config = make_config(patch_len=patch_len)
    rng = np.random.default_rng(patch_len)
    masks = [rng.random((3, 12)) < 0.6, rng.random((2, 12)) < 0.9]
    expected = []
    for horizon in config.horizons:
        count = 0
        for mask in masks:
            for token in range(12 // patch_len):
                first = (token + 1) * patch_len - 1
                count += int(mask[:, first : first + horizon].sum())
        expected.append(count)
    assert count_labels(masks, config).tolist() == expected


@pytest.mark.parametrize("points", [12, 19])
@pytest.mark.parametrize("stride", [1, 4, 8, 12])
def test_labels_of_spaced_origins_are_counted_as_a_loop_would(points, stride):
    config = make_config()
    masks = [np.random.default_rng(stride).random((3, points)) < 0.7]
    expected = [
        sum(
            int(masks[0][:, point : point + horizon].sum())
            for point in range(points)
            if (point + 1) % stride == 0
        )
        for horizon in config.horizons
    ]
    assert count_labels(masks, config, stride).tolist() == expected
    same = make_config(patch_len=4)
    if stride % 4 == 0 and points % 4 == 0:
        assert count_labels(masks, same, stride).tolist() == expected


@pytest.mark.parametrize("patch_len", [1, 2])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 5), (3, 3)])
def test_micro_batches_give_the_gradient_of_the_whole(patch_len, sizes):
    # Padding is uneven, so a mean of the micro-batches' means would be another gradient.
    config = make_config(patch_len=patch_len, aux_loss_weight=0.0)
    whole = make_batch([13, 13, 5, 3, 13, 2])
    gradients, preds = [], []
    for batches in ([whole], split(whole, sizes)):
        model = build_forecaster(config, seed=0)
        loss = accumulate_gradients(model, batches, Precision.FP32, CPU)
        gradients.append([p.grad for p in model.parameters()])
        preds.append(loss.pred.item())
    assert preds[0] == pytest.approx(preds[1], rel=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_mean_of_means_would_have_been_another_gradient():
    config = make_config(aux_loss_weight=0.0)
    whole = make_batch([13, 13, 5, 3, 13, 2])
    parts = split(whole, (2, 2, 2))
    model = build_forecaster(config, seed=0)
    right = accumulate_gradients(model, [whole], Precision.FP32, CPU).pred.item()
    naive = [accumulate_gradients(model, [p], Precision.FP32, CPU).pred.item() for p in parts]
    assert abs(np.mean(naive) - right) > 1e-3


def test_aux_is_the_mean_of_the_micro_batches():
    config = make_config()
    parts = split(make_batch([13, 13, 5, 3, 13, 2]), (2, 4))
    model = build_forecaster(config, seed=0)
    alone = [accumulate_gradients(model, [p], Precision.FP32, CPU).aux.item() for p in parts]
    both = accumulate_gradients(model, parts, Precision.FP32, CPU)
    assert both.aux.item() == pytest.approx(np.mean(alone))
    assert both.aux_L.mean().item() == pytest.approx(both.aux.item())


def test_aux_reaches_the_router_with_its_weight_once():
    model_config = make_config(aux_loss_weight=1.0)
    batch = make_batch([13, 13])
    routers = []
    for batches in ([batch], [batch, batch, batch]):
        model = build_forecaster(model_config, seed=0)
        accumulate_gradients(model, batches, Precision.FP32, CPU)
        routers.append(model.blocks[0].moe.router.proj.weight.grad)
    torch.testing.assert_close(*routers, rtol=1e-4, atol=1e-7)


def test_a_batch_of_padding_alone_is_zero_and_finite():
    config = make_config()
    model = build_forecaster(config, seed=0)
    loss = accumulate_gradients(model, [make_batch([1, 1])], Precision.FP32, CPU)
    assert loss.pred.item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_router_metrics_of_a_collapsed_layer():
    config = make_config()
    model = build_forecaster(config, seed=0)
    loss = accumulate_gradients(model, [make_batch([13, 13])], Precision.FP32, CPU)
    loads = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    flat = torch.full((4,), 0.25)
    routing = tuple(RouterStats(load_E, flat, torch.tensor(1.0)) for load_E in loads)
    values = read_router_metrics(dataclasses.replace(loss, routing=(routing,)))
    assert values["router/layer0/load_max_over_mean"] == 2.0
    assert values["router/layer1/load_max_over_mean"] == 1.0
    assert values["router/load_max_over_mean"] == 2.0
    assert values["router/idle_experts_frac"] == 0.25
    assert values["router/layer1/aux"] == pytest.approx(loss.aux_L[1].item())
    assert values["router/layer0/entropy"] == pytest.approx(1.0)


def test_router_metrics_average_the_micro_batches():
    # Two micro-batches that collapse onto different experts: together half the experts are busy.
    model = build_forecaster(make_config(), seed=0)
    loss = accumulate_gradients(model, [make_batch([13, 13])], Precision.FP32, CPU)
    one, other = torch.eye(4)[:2]
    parts = tuple((RouterStats(x, x, torch.tensor(4.0)),) * 2 for x in (one, other))
    values = read_router_metrics(dataclasses.replace(loss, routing=parts))
    assert values["router/load_max_over_mean"] == 2.0
    assert values["router/entropy"] == pytest.approx(0.5)
    assert values["router/idle_experts_frac"] == 0.5


def test_what_is_kept_of_a_step_holds_no_graph():
    model = build_forecaster(make_config(), seed=0)
    loss = accumulate_gradients(model, [make_batch([13, 13])] * 2, Precision.FP32, CPU)
    tensors = [loss.pred, loss.aux, loss.aux_L, *(t for p in loss.routing for s in p for t in s)]
    assert not any(tensor.requires_grad for tensor in tensors)
