"""What a forecast is trained on, and the errors it is judged by.

Labels: token t has seen the points up to (t + 1) P - 1, and `target` is the input shifted by one,
so horizon h at token t is held against target[(t + 1) P - 1 : (t + 1) P - 1 + h]. Labels beyond
the window and masked ones count nothing.

Origins: a token's last point, where a forecast starts. Training counts them all. Scoring may keep
every S-th point only (`origin_stride`, a multiple of P), points p with (p + 1) % S == 0: models
whose tokens differ in length are then held against the same labels, one by one.

Shapes: B batch, C points of the context, P points per token, T = C / P tokens, S points between
origins, R = C // S origins, h points of a horizon, O number of horizons, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tsx.config import ModelConfig
from tsx.model.forecaster import Forecast
from tsx.model.router import reduce_aux


class Losses(NamedTuple):
    """The loss of one batch and its parts; scalars unless a suffix says otherwise."""

    total: Tensor  # pred + aux_loss_weight * aux
    pred: Tensor  # mean over horizons
    aux: Tensor  # reduced as the config says
    aux_L: Tensor  # each layer's own value, flat router 1, detached
    pred_O: Tensor  # each horizon's Huber loss, detached


class HorizonErrors(NamedTuple):
    """Sums per horizon, to be added over batches before dividing."""

    abs_sum_O: Tensor
    sq_sum_O: Tensor
    count_O: Tensor  # labels counted, int64


def forecast_loss(
    forecast: Forecast,
    target_BC: Tensor,
    mask_BC: Tensor,
    config: ModelConfig,
    counts_O: Tensor | None = None,
    *,
    origin_stride: int | None = None,
) -> Losses:
    """Return the multi-horizon Huber loss with the load-balancing loss added.

        pred  = mean_h [ sum(mask * huber(y_h - label_h)) / sum(mask) ]
        total = pred + aux_loss_weight * aux

    Source: Time-MoE (arXiv 2409.16040), eqs. 8 to 11, delta 2. Departure: a horizon without one
    label gives 0 where the official code divides 0 by 0.

    Args:
        forecast: of the batch.
        target_BC: the input shifted by one point; finite everywhere, zeros where masked.
        mask_BC: bool, the targets that count.
        config: of the model.
        counts_O: labels per horizon to divide by, at least 1, where this batch is a part of a
            larger one: `pred` summed over the parts is then the larger one's. None: its own.
        origin_stride: points between origins, a multiple of patch_len; None is every token.
    """
    per_horizon = []
    labels = _iter_labels(forecast, target_BC, mask_BC, config, origin_stride)
    for index, (prediction, label, mask) in enumerate(labels):
        error = F.huber_loss(prediction, label, reduction="none", delta=config.huber_delta)
        count = mask.sum().clamp(min=1) if counts_O is None else counts_O[index]
        per_horizon.append((error * mask).sum() / count)
    pred = sum(per_horizon[1:], per_horizon[0]) / len(per_horizon)
    aux = reduce_aux(forecast.routing, config.aux_reduction, config.top_k)
    aux_L = torch.stack([stats.aux for stats in forecast.routing]).detach()
    return Losses(
        total=pred + config.aux_loss_weight * aux,
        pred=pred,
        aux=aux,
        aux_L=aux_L,
        pred_O=torch.stack(per_horizon).detach(),
    )


@torch.no_grad()
def horizon_errors(
    forecast: Forecast,
    target_BC: Tensor,
    mask_BC: Tensor,
    config: ModelConfig,
    *,
    origin_stride: int | None = None,
) -> HorizonErrors:
    """Return absolute and squared errors summed over the labels of each horizon.

    MAE and MSE of a horizon are the sums over all batches divided by the counts over all batches.
    """
    absolute, squared, counts = [], [], []
    labels = _iter_labels(forecast, target_BC, mask_BC, config, origin_stride)
    for prediction, label, mask in labels:
        error = (prediction - label) * mask
        absolute.append(error.abs().sum())
        squared.append(error.square().sum())
        counts.append(mask.sum())
    return HorizonErrors(torch.stack(absolute), torch.stack(squared), torch.stack(counts))


def _iter_labels(
    forecast: Forecast,
    target_BC: Tensor,
    mask_BC: Tensor,
    config: ModelConfig,
    origin_stride: int | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield prediction, label and mask of each horizon, all [B, R, h], in the target's dtype."""
    stride = origin_stride or config.patch_len
    tokens = stride // config.patch_len  # between two origins
    for prediction, horizon in zip(forecast.predictions, config.horizons, strict=True):
        label = _window(target_BC, horizon, stride)
        mask = _window(mask_BC, horizon, stride)
        yield prediction[:, tokens - 1 :: tokens].to(label.dtype), label, mask


def _window(x_BC: Tensor, horizon: int, stride: int) -> Tensor:
    """Return a view [B, R, h] whose [b, r] starts at target (r + 1) stride - 1; 0 past the end."""
    padded = F.pad(x_BC[:, stride - 1 :], (0, horizon - 1))
    return padded.unfold(1, horizon, stride)
