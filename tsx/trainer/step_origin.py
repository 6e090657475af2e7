"""Why a step of a recipe's run was not finite: its first bad value, and what brings it about.

The step is run again, micro-batch by micro-batch, with the weights it was taken with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsx.config import Precision
from tsx.data.windows import Batch
from tsx.diagnostics.nonfinite.held_call import HeldCall
from tsx.diagnostics.nonfinite.trials import Explained, Explainer
from tsx.diagnostics.tracing.replay import Moment, Rewinder
from tsx.model.forecaster import Forecaster, build_forecaster
from tsx.trainer.objective import DeviceBatch, compute_loss, move_batch, weigh


def find_step_origin(
    model: Forecaster,
    batches: Sequence[Batch],
    precision: Precision,
    device: torch.device,
    *,
    rewinder: Rewinder,
    moment: Moment,
    seed: int,
    is_gradient: bool,
    get_before: Callable[[], Batch | None] = lambda: None,
) -> Explained | None:
    """Run a step again; return where its first bad value comes from, None where all is finite.

    Args:
        model: with the weights and gradients of the step.
        batches: its micro-batches.
        precision: of the forward pass.
        device: that trains.
        rewinder: of the model.
        moment: right before the step.
        seed: the run's; a fresh model is drawn from another.
        is_gradient: the loss was finite.
        get_before: returns the batch before the first of these, None where it is not at hand.
    """
    counts_O, share = weigh(model.config, batches, device), 1.0 / len(batches)

    def run(**tensors: Tensor) -> tuple[Any, ...]:
        data = DeviceBatch(**{f"{name}_BC": tensor for name, tensor in tensors.items()})
        return compute_loss(model, data, precision, counts_O=counts_O, share=share)

    def hold(batch: Batch) -> HeldCall:
        return HeldCall(run, (), _name_tensors(move_batch(batch, device)), moment)

    def find_previous(index: int) -> HeldCall | None:
        batch = batches[index - 1] if index else get_before()
        return None if batch is None else hold(batch)

    explainer = Explainer(model, rewinder, lambda result: result[0], _make_renew(seed + 1))
    calls = [hold(batch) for batch in batches]
    found = explainer.explain(calls, find_previous, backward=is_gradient)
    if found is not None and len(batches) > 1:
        found.evidence["micro_batch"] = f"{found.index + 1} of {len(batches)}"
    return found


def _name_tensors(data: DeviceBatch) -> dict[str, Tensor]:
    return {
        "input": data.input_BC,
        "input_mask": data.input_mask_BC,
        "target": data.target_BC,
        "target_mask": data.target_mask_BC,
    }


def _make_renew(seed: int) -> Callable[[nn.Module, Callable[[], bool]], bool]:
    """Return what draws the parameters of a forecaster anew, in place."""

    def renew(model: nn.Module, has_time: Callable[[], bool]) -> bool:
        assert isinstance(model, Forecaster)
        device = next(model.parameters()).device
        fresh = dict(build_forecaster(model.config, seed=seed, device=device).named_parameters())
        with torch.no_grad():
            for name, param in model.named_parameters():
                param.copy_(fresh[name])
        return True

    return renew
