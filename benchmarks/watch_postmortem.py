"""Seconds from a value that is not finite to its explanation, on the base model at T=512.

In a loop of one's own, and in a run of a recipe, whose trainer explains its steps by itself.

The planted faults stand in the last block: a logarithm of zero in the forward pass, and a square
root of zero whose slope is infinite while the loss is finite.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.part_times import Ledger
from tests.faults.watched import WatchedLines
from tsx.config import ModelConfig, Precision
from tsx.data.windows import Batch
from tsx.diagnostics.nonfinite.postmortem import Postmortem
from tsx.diagnostics.tracing.replay import Rewinder
from tsx.model.forecaster import build_forecaster
from tsx.trainer.objective import (
    DeviceBatch,
    accumulate_gradients,
    compute_loss,
    move_batch,
    weigh,
)
from tsx.trainer.step_origin import find_step_origin

BATCH, POINTS = 2, 512
LIMIT_S = 5.0

Spoil = Callable[[Tensor], Tensor]
FAULTS: dict[str, Spoil] = {
    "forward, log of zero": lambda y: y + (0.0 * y).log(),
    "backward, root of zero": lambda y: y + (0.0 * y).sqrt(),
}


def measure_postmortems(config: ModelConfig | None = None) -> dict[str, float]:
    """Return the seconds that each fault takes to be explained; a size of one's own for a try.

    Raises:
        RuntimeError: a fault was not found at all.
    """
    size = config or ModelConfig()
    took = {f"a loop: {name}": _measure_loop(size, spoil) for name, spoil in FAULTS.items()}
    for name, spoil in FAULTS.items():
        is_gradient = name.startswith("backward")
        took[f"the trainer: {name}"] = _measure_trainer(size, spoil, is_gradient=is_gradient)
    return took


def _measure_loop(config: ModelConfig, spoil: Spoil) -> float:
    model = build_forecaster(config, seed=0, num_tokens=POINTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    run = WatchedLines(every=None)
    with Ledger() as ledger:
        ledger.time_part(Postmortem, "explain_loss", "postmortem", is_opaque=True)
        ledger.time_part(Postmortem, "explain_gradients", "postmortem", is_opaque=True)
        run.watch(model, optimizer)
        _step(run, model, optimizer, 1)
        block: nn.Module = model.blocks[-1]
        block.register_forward_hook(lambda module, args, out: _spoil_first(out, spoil))
        _step(run, model, optimizer, 2)
        run.close()
        spent = ledger.take()
    if not any(finding.kind == "nan-origin" for finding in run.findings):
        raise RuntimeError(f"no nan-origin among {[f.kind for f in run.findings]}")
    return spent["postmortem"].seconds


def _measure_trainer(config: ModelConfig, spoil: Spoil, *, is_gradient: bool) -> float:
    """Return what the trainer's own search takes, the batch before at hand."""
    model = build_forecaster(config, seed=0, num_tokens=POINTS)
    rewinder, cpu = Rewinder(model), torch.device("cpu")
    batches = [_make_batch(1)]
    model.blocks[-1].register_forward_hook(lambda module, args, out: _spoil_first(out, spoil))
    moment = rewinder.take(whole=True)
    accumulate_gradients(model, batches, Precision.FP32, cpu)
    began = time.perf_counter()
    found = find_step_origin(
        model,
        batches,
        Precision.FP32,
        cpu,
        rewinder=rewinder,
        moment=moment,
        seed=0,
        is_gradient=is_gradient,
        get_before=lambda: _make_batch(0),
    )
    took = time.perf_counter() - began
    if found is None:
        raise RuntimeError("the trainer found no origin")
    return took


def _make_batch(seed: int) -> Batch:
    shape = (BATCH, POINTS + 1)
    series = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    mask = np.ones((BATCH, POINTS), dtype=np.bool_)
    return Batch(series[:, :-1].copy(), series[:, 1:].copy(), mask, mask)


def _step(run: WatchedLines, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    batch = _make_batch(step)
    counts_O = weigh(model.config, [batch], torch.device("cpu"))
    data = move_batch(batch, torch.device("cpu"))

    def measure(x_BC: Tensor, seen_BC: Tensor, target_BC: Tensor, mask_BC: Tensor) -> Tensor:
        given = DeviceBatch(x_BC, seen_BC, target_BC, mask_BC)
        return compute_loss(model, given, Precision.FP32, counts_O=counts_O, share=1.0)[0]

    optimizer.zero_grad()
    parts = (data.input_BC, data.input_mask_BC, data.target_BC, data.target_mask_BC)
    loss = run.compute(measure, *parts)
    loss.backward()
    optimizer.step()
    run.log({"loss": float(loss.detach())}, step=step)


def _spoil_first(out: object, spoil: Spoil) -> object:
    """Return what a block returned, with its first tensor spoilt."""
    if isinstance(out, Tensor):
        return spoil(out)
    assert isinstance(out, tuple)
    return (spoil(out[0]), *out[1:])
