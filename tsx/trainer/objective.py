"""The loss of one optimizer step, whole or in micro-batches.

A mean of the micro-batches' means would weigh a point in a half-padded micro-batch more than one
in a full one. Here the labels of the whole step are counted first, per horizon, and every
micro-batch divides by that: n micro-batches give the gradient of one batch n times as large. The
load-balancing loss is no sum over tokens; it is the mean of the micro-batches' values.

Shapes: B windows, C points of the context, P points per token, T tokens, O horizons, L layers,
E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsx.config import ModelConfig, Precision
from tsx.data.windows import Batch
from tsx.model.forecaster import Forecast, Forecaster
from tsx.model.losses import Losses, forecast_loss
from tsx.model.router import RouterStats


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """One batch on the device that trains."""

    input_BC: Tensor
    input_mask_BC: Tensor
    target_BC: Tensor
    target_mask_BC: Tensor


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What one step came to: tensors on the device, nothing read, nothing with a gradient.

    Attributes:
        pred: of the whole step, as one large batch would give it.
        aux: mean over the micro-batches.
        aux_L: the same by layer.
        routing: of each micro-batch, each layer's statistics.
    """

    pred: Tensor
    aux: Tensor
    aux_L: Tensor
    routing: tuple[tuple[RouterStats, ...], ...]


def move_batch(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch to the device; from pinned memory, without waiting, where that is CUDA."""
    arrays = (batch.input_BC, batch.input_mask_BC, batch.target_BC, batch.target_mask_BC)
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cuda":
        return DeviceBatch(*(t.pin_memory().to(device, non_blocking=True) for t in tensors))
    return DeviceBatch(*(t.to(device) for t in tensors))


def run_forward(model: Forecaster, data: DeviceBatch, precision: Precision) -> Forecast:
    """Predict a batch: fp32, or bf16 autocast on the fp32 parameters."""
    device_type, is_bf16 = data.input_BC.device.type, precision is Precision.BF16
    with torch.autocast(device_type, dtype=torch.bfloat16, enabled=is_bf16):
        forecast: Forecast = model(data.input_BC, data.input_mask_BC)
    return forecast


def count_labels(
    masks: Sequence[npt.NDArray[np.bool_]], model: ModelConfig, origin_stride: int | None = None
) -> npt.NDArray[np.int64]:
    """Return how many labels each horizon has over some target masks [B, C].

    Horizon h at origin r is held against targets (r + 1) S - 1 to (r + 1) S - 2 + h, S points
    between origins (`origin_stride`, else every token's P), so target i is a label of
    floor(j / S) - max(ceil((j - h + 1) / S), 0) + 1 origins, j = i - S + 1, none below 0.
    """
    points_C = np.sum([mask.sum(0, dtype=np.int64) for mask in masks], axis=0)
    length, stride = len(points_C), origin_stride or model.patch_len
    offset_C = np.arange(length) - stride + 1
    last_C = offset_C // stride
    counts = []
    for horizon in model.horizons:
        first_C = np.maximum(-((horizon - 1 - offset_C) // stride), 0)
        labels_C = np.where(offset_C >= 0, last_C - first_C + 1, 0)
        counts.append(int((points_C * labels_C).sum()))
    return np.array(counts, dtype=np.int64)


def weigh(config: ModelConfig, batches: Sequence[Batch], device: torch.device) -> Tensor:
    """Return the labels per horizon [O] of a whole step, at least 1: divisors of its loss."""
    counts = count_labels([batch.target_mask_BC for batch in batches], config)
    return torch.from_numpy(np.maximum(counts, 1)).to(device)


def compute_loss(
    model: Forecaster, data: DeviceBatch, precision: Precision, *, counts_O: Tensor, share: float
) -> tuple[Tensor, Losses, Forecast]:
    """Return what one micro-batch adds to the loss of its step, that in parts, and the forecast.

    Args:
        model: predicts.
        data: the micro-batch.
        precision: of the forward pass.
        counts_O: labels of the whole step.
        share: of the micro-batch in its step: aux is a mean over them, pred a sum.
    """
    config = model.config
    forecast = run_forward(model, data, precision)
    losses = forecast_loss(forecast, data.target_BC, data.target_mask_BC, config, counts_O)
    return losses.pred + config.aux_loss_weight * share * losses.aux, losses, forecast


def _call(fn: Callable[..., Any], **tensors: Tensor) -> Any:
    """Return what a function gives."""
    return fn(**tensors)


def accumulate_gradients(
    model: Forecaster,
    batches: Sequence[Batch],
    precision: Precision,
    device: torch.device,
    *,
    compute: Callable[..., Any] = _call,
) -> StepLoss:
    """Run forward and backward over the micro-batches of one step; gradients add up in `.grad`.

    Args:
        model: predicts.
        batches: of one step.
        precision: of the forward pass.
        device: that trains.
        compute: calls a function with tensors by name; what looks at calls stands there.
    """
    counts_O, share = weigh(model.config, batches, device), 1.0 / len(batches)
    parts: list[Losses] = []
    routing: list[tuple[RouterStats, ...]] = []

    def run(**tensors: Tensor) -> tuple[Tensor, Losses, Forecast]:
        data = DeviceBatch(**tensors)
        return compute_loss(model, data, precision, counts_O=counts_O, share=share)

    for batch in batches:
        data = move_batch(batch, device)
        loss, losses, forecast = compute(
            run,
            input_BC=data.input_BC,
            input_mask_BC=data.input_mask_BC,
            target_BC=data.target_BC,
            target_mask_BC=data.target_mask_BC,
        )
        torch.autograd.backward(loss)
        parts.append(losses)
        routing.append(tuple(_detach(stats) for stats in forecast.routing))
    return StepLoss(
        pred=torch.stack([losses.pred.detach() for losses in parts]).sum(),
        aux=torch.stack([losses.aux.detach() for losses in parts]).mean(),
        aux_L=torch.stack([losses.aux_L for losses in parts]).mean(0),
        routing=tuple(routing),
    )


def _detach(stats: RouterStats) -> RouterStats:
    """Return copies of the statistics without the graph they came from.

    Copies, because a captured CUDA graph writes the next micro-batch's over them.
    """
    load_E, prob_E, aux = (value.detach().clone() for value in stats)
    return RouterStats(load_E, prob_E, aux)


def read_router_metrics(loss: StepLoss) -> dict[str, float]:
    """Return the `router/...` values of a step, read from the device in one go.

    Per layer: load of the busiest expert over the mean, entropy of the mean probabilities over
    ln E, load-balancing loss. Over the layers: the largest load, the smallest entropy and the
    share of experts without a single token. Loads and probabilities are means over the
    micro-batches first.
    """
    layers = [_average(stats) for stats in zip(*loss.routing, strict=True)]
    rows = torch.stack(
        [
            torch.stack([stats.load_max_over_mean for stats in layers]),
            torch.stack([stats.entropy for stats in layers]),
            loss.aux_L,
            torch.stack([stats.idle_frac for stats in layers]),
        ]
    ).tolist()
    values = {
        "router/load_max_over_mean": max(rows[0]),
        "router/entropy": min(rows[1]),
        "router/idle_experts_frac": sum(rows[3]) / len(rows[3]),
    }
    for layer, (load, entropy, aux, _) in enumerate(zip(*rows, strict=True)):
        values[f"router/layer{layer}/load_max_over_mean"] = load
        values[f"router/layer{layer}/entropy"] = entropy
        values[f"router/layer{layer}/aux"] = aux
    return values


def _average(parts: Sequence[RouterStats]) -> RouterStats:
    """Return one layer's statistics over the micro-batches of a step."""
    if len(parts) == 1:
        return parts[0]
    load_E, prob_E, aux = (torch.stack(values).mean(0) for values in zip(*parts, strict=True))
    return RouterStats(load_E, prob_E, aux)
