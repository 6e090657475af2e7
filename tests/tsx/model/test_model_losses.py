"""The loss and the errors against loops over every window, token, horizon and point."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tsx.config import AuxReduction, ModelConfig
from tsx.model.forecaster import Forecast
from tsx.model.losses import forecast_loss, horizon_errors
from tsx.model.router import RouterStats

pytestmark = pytest.mark.trainer


def flat_stats(num_experts: int = 2) -> RouterStats:
    share = torch.full((num_experts,), 1 / num_experts)
    return RouterStats(share, share, torch.tensor(1.0))


def huber(error: float, delta: float) -> float:
    size = abs(error)
    return 0.5 * size * size if size <= delta else delta * (size - 0.5 * delta)


def list_labels(
    forecast: Forecast, target: torch.Tensor, mask: torch.Tensor, config: ModelConfig
) -> list[list[float]]:
    """Return, for each horizon, every counted error."""
    errors: list[list[float]] = []
    for prediction, horizon in zip(forecast.predictions, config.horizons, strict=True):
        errors.append([])
        for b in range(target.shape[0]):
            for t in range(target.shape[1] // config.patch_len):
                for j in range(horizon):
                    # series point 0 is input 0, so target[i] is series point i + 1; token t ends
                    # with series point (t + 1) P - 1 and its next points start one later
                    i = (t + 1) * config.patch_len + j - 1
                    if i < target.shape[1] and mask[b, i]:
                        errors[-1].append(float(prediction[b, t, j] - target[b, i]))
    return errors


@pytest.fixture(params=[1, 2, 5])
def case(
    request: pytest.FixtureRequest, series: Callable[..., torch.Tensor]
) -> tuple[ModelConfig, Forecast, torch.Tensor, torch.Tensor]:
    patch_len = request.param
    config = ModelConfig(patch_len=patch_len, horizons=(1, 4, 30), huber_delta=0.7)
    target = series(3, 20, seed=1) * 2
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[1, 13:] = False
    mask[2, 4] = False  # a masked point in the middle
    target = target * mask
    tokens = 20 // patch_len
    predictions = tuple(series(3, tokens * h, seed=h).view(3, tokens, h) for h in config.horizons)
    return config, Forecast(predictions, (flat_stats(), flat_stats())), target, mask


def test_loss_equals_the_loop(
    case: tuple[ModelConfig, Forecast, torch.Tensor, torch.Tensor],
) -> None:
    config, forecast, target, mask = case
    losses = forecast_loss(forecast, target, mask, config)
    expected = [
        sum(huber(e, config.huber_delta) for e in errors) / len(errors)
        for errors in list_labels(forecast, target, mask, config)
    ]
    assert losses.pred_O.tolist() == pytest.approx(expected, rel=1e-5)
    assert losses.pred.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert losses.aux.item() == pytest.approx(1.0)
    assert losses.total.item() == pytest.approx(sum(expected) / 3 + 0.02, rel=1e-5)


def test_errors_equal_the_loop(
    case: tuple[ModelConfig, Forecast, torch.Tensor, torch.Tensor],
) -> None:
    config, forecast, target, mask = case
    got = horizon_errors(forecast, target, mask, config)
    expected = list_labels(forecast, target, mask, config)
    assert got.count_O.tolist() == [len(errors) for errors in expected]
    assert got.abs_sum_O.tolist() == pytest.approx(
        [sum(map(abs, errors)) for errors in expected], rel=1e-5
    )
    assert got.sq_sum_O.tolist() == pytest.approx(
        [sum(e * e for e in errors) for errors in expected], rel=1e-5
    )


@pytest.mark.parametrize("patch_len", [1, 3])
def test_a_forecast_of_the_next_points_has_no_error(patch_len: int) -> None:
    """On the series 0, 1, 2, ... the right answer at a token is known: the count goes on."""
    points, horizons = 12, (1, 2, 6)
    config = ModelConfig(patch_len=patch_len, horizons=horizons)
    last_point = torch.arange(patch_len - 1, points, patch_len, dtype=torch.float32)
    predictions = tuple((last_point[:, None] + torch.arange(1.0, h + 1))[None] for h in horizons)
    forecast = Forecast(predictions, (flat_stats(),))
    target = torch.arange(1.0, points + 1)[None]
    mask = torch.ones(1, points, dtype=torch.bool)
    assert forecast_loss(forecast, target, mask, config).pred.item() == 0.0
    off_by_one = Forecast(tuple(p + 1 for p in predictions), (flat_stats(),))
    assert forecast_loss(off_by_one, target, mask, config).pred.item() == pytest.approx(0.5)


def name_labels(
    patch_len: int, origin_stride: int | None, points: int, mask: torch.Tensor
) -> list[set[tuple[int, int, int]]]:
    """Return, for each horizon, the (window, origin, point) of every label that is counted.

    What is counted is read off the gradient: a squared error of 1 everywhere gives each label's
    prediction a gradient of its own size, and the label's value says which point it is.
    """
    config = ModelConfig(patch_len=patch_len, horizons=(1, 3, 9), huber_delta=1e9)
    tokens, windows = points // patch_len, len(mask)
    zeros = [torch.zeros(windows, tokens, h, requires_grad=True) for h in config.horizons]
    target = torch.arange(1.0, points + 1).repeat(windows, 1) * mask  # target[i] is point i + 1
    forecast = Forecast(tuple(zeros), (flat_stats(),))
    ones_O = torch.ones(len(zeros))
    forecast_loss(
        forecast, target, mask, config, ones_O, origin_stride=origin_stride
    ).pred.backward()
    found = []
    for prediction in zeros:
        assert prediction.grad is not None
        point_BTh = (-prediction.grad * len(zeros)).round().long()  # the gradient is -label / O
        found.append(
            {
                (b, (t + 1) * patch_len - 1, int(point_BTh[b, t, j]))
                for b, t, j in point_BTh.nonzero().tolist()
            }
        )
    counts = horizon_errors(forecast, target, mask, config, origin_stride=origin_stride).count_O
    assert counts.tolist() == [len(labels) for labels in found]
    return found


@pytest.mark.parametrize(("patch_len", "stride"), [(8, 8), (4, 8), (2, 8), (4, 16), (8, 24)])
@pytest.mark.parametrize("points", [24, 40, 48])
def test_spaced_origins_have_the_labels_of_patches(
    patch_len: int, stride: int, points: int
) -> None:
    lengths = torch.tensor([points, 23, 17, 16, 9, 8, 1, 0])  # right-padded, few of them multiples
    mask = torch.arange(points) < lengths[:, None]
    mask[0, 13] = False
    pointwise = name_labels(1, stride, points, mask)
    assert name_labels(patch_len, stride, points, mask) == pointwise
    if patch_len == stride:
        assert name_labels(patch_len, None, points, mask) == pointwise
    for labels, horizon in zip(pointwise, (1, 3, 9), strict=True):
        assert labels == {
            (b, origin, point)
            for b in range(len(lengths))
            for origin in range(stride - 1, points, stride)
            for point in range(origin + 1, origin + 1 + horizon)
            if point <= points and mask[b, point - 1]
        }
    assert name_labels(1, None, points, mask) != pointwise  # every origin is another task
    assert name_labels(1, stride - 1, points, mask) != pointwise


@pytest.mark.parametrize("points", [16, 24])
def test_persistence_scores_the_same_however_the_series_is_cut(
    points: int, series: Callable[..., torch.Tensor]
) -> None:
    """The last point seen, again and again: scored by hand, pointwise and in patches of 8."""
    horizons, stride = (1, 5), 8
    window = series(3, points + 1, seed=4)
    mask = torch.arange(points) < torch.tensor([points, 13, 9])[:, None]
    target = window[:, 1:] * mask
    by_hand = []
    for horizon in horizons:
        squares = [
            float(window[b, p] - window[b, p + j]) ** 2
            for b in range(3)
            for p in range(stride - 1, points, stride)
            for j in range(1, horizon + 1)
            if p + j <= points and mask[b, p + j - 1]
        ]
        by_hand.append(sum(squares) / len(squares))
    for patch_len, origin_stride in ((1, stride), (8, None), (8, stride), (1, None)):
        last = window[:, patch_len - 1 : points : patch_len]
        guess = tuple(last[:, :, None].expand(-1, -1, h) for h in horizons)
        config = ModelConfig(patch_len=patch_len, horizons=horizons)
        errors = horizon_errors(
            Forecast(guess, (flat_stats(),)), target, mask, config, origin_stride=origin_stride
        )
        mse = (errors.sq_sum_O / errors.count_O).tolist()
        same_task = (origin_stride or patch_len) == stride
        assert (mse == pytest.approx(by_hand, rel=1e-5)) is same_task


def test_huber_bends_at_delta() -> None:
    config = ModelConfig(horizons=(1,))
    mask = torch.ones(1, 2, dtype=torch.bool)
    forecast = Forecast((torch.tensor([[[1.0], [5.0]]]),), (flat_stats(),))
    # delta 2: 0.5 * 1 for the error 1, 2 * (5 - 1) for the error 5
    losses = forecast_loss(forecast, torch.zeros(1, 2), mask, config)
    assert losses.pred.item() == pytest.approx((0.5 + 8.0) / 2)


def test_masked_points_get_no_gradient() -> None:
    config = ModelConfig(horizons=(2,))
    prediction = torch.zeros(1, 3, 2, requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    forecast = Forecast((prediction,), (flat_stats(),))
    forecast_loss(forecast, torch.ones(1, 3) * mask, mask, config).total.backward()
    assert prediction.grad is not None
    # labels of token t are target[t], target[t + 1]; target[1] is masked, target[3] is outside
    assert (prediction.grad[0] != 0).tolist() == [[True, False], [False, True], [True, False]]


def test_a_batch_without_labels_is_zero_not_nan() -> None:
    config = ModelConfig(horizons=(1, 2))
    predictions = tuple(torch.ones(1, 3, h, requires_grad=True) for h in config.horizons)
    mask = torch.zeros(1, 3, dtype=torch.bool)
    losses = forecast_loss(Forecast(predictions, (flat_stats(),)), torch.zeros(1, 3), mask, config)
    losses.total.backward()
    assert losses.pred.item() == 0.0
    assert all(p.grad is not None and bool((p.grad == 0).all()) for p in predictions)


def test_nan_predictions_show() -> None:
    config = ModelConfig(horizons=(1,))
    forecast = Forecast((torch.tensor([[[math.nan], [0.0]]]),), (flat_stats(),))
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert math.isnan(forecast_loss(forecast, torch.zeros(1, 2), mask, config).total.item())


def test_bf16_predictions_are_judged_in_fp32() -> None:
    config = ModelConfig(horizons=(1,))
    target = torch.full((1, 1), 1.001)
    forecast = Forecast((torch.ones(1, 1, 1, dtype=torch.bfloat16),), (flat_stats(),))
    losses = forecast_loss(forecast, target, torch.ones(1, 1, dtype=torch.bool), config)
    assert losses.pred.dtype is torch.float32
    assert losses.pred.item() == pytest.approx(0.5e-6, rel=1e-3)


def test_aux_enters_with_its_weight() -> None:
    config = ModelConfig(
        horizons=(1,), aux_loss_weight=0.5, aux_reduction=AuxReduction.CONCATENATED, top_k=2
    )
    forecast = Forecast((torch.zeros(1, 1, 1),), (flat_stats(), flat_stats()))
    losses = forecast_loss(forecast, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), config)
    assert losses.aux.item() == pytest.approx(2.0)
    assert losses.total.item() == pytest.approx(1.0)
    assert losses.aux_L.tolist() == [1.0, 1.0]


def test_horizons_and_predictions_must_agree() -> None:
    forecast = Forecast((torch.zeros(1, 1, 1),), (flat_stats(),))
    with pytest.raises(ValueError, match="zip"):
        forecast_loss(
            forecast,
            torch.zeros(1, 1),
            torch.ones(1, 1, dtype=torch.bool),
            ModelConfig(horizons=(1, 2)),
        )
