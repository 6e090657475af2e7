"""Scores a model on windows it is not trained on.

The windows are the same every time, so that two evaluations differ by the model alone. Errors are
summed over every label before anything is divided: a batch size changes no score. MAE and MSE are
in scaled space, per horizon (`mae_h8`); `mae` and `mse` without a horizon are the means of the
horizons' values, as `pred` is of their Huber losses. `aux` is the mean over batches weighted by
their windows. With an origin stride only the labels of every so many points count: the values per
horizon, their means and `pred` then compare models whose tokens differ in length.

Shapes: B windows, C points of the context, O horizons.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsx.config import ModelConfig, Precision
from tsx.data.stream import evaluation_indices
from tsx.data.windows import WindowSet
from tsx.model.forecaster import Forecaster
from tsx.model.losses import forecast_loss, horizon_errors
from tsx.trainer.compiling import eager
from tsx.trainer.objective import DeviceBatch, count_labels, move_batch, run_forward
from tsx.trainer.session import Session


class StopSignal(Protocol):
    """What asks a run to stop: `threading.Event`, or anything with its `is_set`."""

    def is_set(self) -> bool:
        """Return whether to stop."""


@torch.no_grad()
def evaluate(
    model: Forecaster,
    windows: WindowSet,
    indices: Iterable[npt.NDArray[np.int64]],
    *,
    device: torch.device,
    precision: Precision,
    origin_stride: int | None = None,
    stop: StopSignal | None = None,
) -> dict[str, float]:
    """Return loss, pred, aux, mae, mse and the values per horizon over some windows.

    Args:
        model: left in the mode (train or eval) it came in.
        windows: where to read.
        indices: one array of window indices per batch.
        device: of the model.
        precision: of the forward pass.
        origin_stride: points between the origins that count, a multiple of the model's patch_len;
            None is every token's last point.
        stop: looked at between batches; a stopped evaluation has no score, {}.
    """
    config = model.config
    was_training = model.training
    model.eval()
    rows: list[Tensor] = []
    count_O = np.zeros(len(config.horizons), dtype=np.int64)
    try:
        for batch_indices in indices:
            if stop is not None and stop.is_set():
                return {}
            batch = windows.get_batch(batch_indices)
            rows.append(_sum_batch(model, move_batch(batch, device), precision, origin_stride))
            count_O += count_labels([batch.target_mask_BC], config, origin_stride)
    finally:
        model.train(was_training)
    if not rows:
        return {}
    # Sums of one batch are fp32 on the device; over batches they add up in fp64 on the host.
    return _score(torch.stack(rows).cpu().double().sum(0).numpy(), count_O, config)


def _sum_batch(
    model: Forecaster, data: DeviceBatch, precision: Precision, origin_stride: int | None
) -> Tensor:
    """Return one batch's sums as a vector: huber, abs and sq per horizon, aux, windows."""
    config, target_BC, mask_BC = model.config, data.target_BC, data.target_mask_BC
    size = len(data.input_BC)
    ones_O = torch.ones(len(config.horizons), device=data.input_BC.device)  # leaves the sums
    forecast = run_forward(model, data, precision)
    losses = forecast_loss(
        forecast, target_BC, mask_BC, config, ones_O, origin_stride=origin_stride
    )
    errors = horizon_errors(forecast, target_BC, mask_BC, config, origin_stride=origin_stride)
    tail = torch.stack([losses.aux * size, losses.aux.new_tensor(size)])
    return torch.cat([losses.pred_O, errors.abs_sum_O, errors.sq_sum_O, tail]).float()


def _score(
    sums: npt.NDArray[np.float64], count_O: npt.NDArray[np.int64], config: ModelConfig
) -> dict[str, float]:
    """Divide the sums of all batches; a horizon without one label scores 0."""
    huber_O, abs_O, sq_O = sums[:-2].reshape(3, -1) / np.maximum(count_O, 1)
    pred, aux = float(huber_O.mean()), float(sums[-2] / sums[-1])
    values = {
        "loss": pred + config.aux_loss_weight * aux,
        "pred": pred,
        "aux": aux,
        "mae": float(abs_O.mean()),
        "mse": float(sq_O.mean()),
    }
    for index, horizon in enumerate(config.horizons):
        values[f"mse_h{horizon}"] = float(sq_O[index])
        values[f"mae_h{horizon}"] = float(abs_O[index])
    return values


class Evaluator:
    """Scores the model of a run on its validation and OOD windows, at most once a step each."""

    def __init__(self, session: Session, stop: StopSignal) -> None:
        config, corpus = session.config.eval, session.corpus
        self._session = session
        self._stop = stop
        self._batch_size = config.batch_size or session.config.train.batch_size
        self._sets = {
            "val": (corpus.val, config.max_batches),
            "ood": (corpus.ood, config.ood_max_batches),
        }
        self._scores: dict[str, tuple[int, dict[str, float]]] = {}
        scored = session.progress.scored_step
        if scored is not None:  # a resumed run: its curves have this step
            self._scores = dict.fromkeys(self._sets, (scored, {}))

    def run(self, *, ood: bool = True) -> None:
        """Score what was not scored at this step yet, and emit `val/...` and `ood/...`."""
        for name in ("val", "ood") if ood else ("val",):
            windows, max_batches = self._sets[name]
            step = self._session.progress.step
            if windows is None or self._scores.get(name, (-1,))[0] == step:
                continue
            score = self._score(windows, max_batches)
            if score:
                self._scores[name] = (step, score)
                values = {f"{name}/{key}": value for key, value in score.items()}
                self._session.telemetry.metrics(step, values)
                self._session.diagnosis.log(values, step)

    def get_score(self, step: int) -> dict[str, float]:
        """Return what validation gave at a step, {} where it did not run then."""
        scored, values = self._scores.get("val", (-1, {}))
        return values if scored == step else {}

    def _score(self, windows: WindowSet, max_batches: int) -> dict[str, float]:
        with eager() if self._session.config.perf.compile else nullcontext():
            return evaluate(
                self._session.model,
                windows,
                evaluation_indices(len(windows), self._batch_size, max_batches),
                device=self._session.device,
                precision=self._session.precision,
                origin_stride=self._session.config.eval.origin_stride,
                stop=self._stop,
            )
