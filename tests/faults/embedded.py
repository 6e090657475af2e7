"""tsx's own model and trainer as a loop, with one piece replaced.

A patch is a context manager that stands while a session is built and run, so the same patch serves
the loop here and a run of the real trainer. The steps of the loop are the trainer's: its schedule,
its count of labels, its clipping, its intervals.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from registry.events import Event, EventSink
from tests.faults.plant import Loop, Plant
from tsx.config import RunConfig, decode
from tsx.data.stream import BatchStream
from tsx.model import losses as model_losses
from tsx.trainer import optim, session
from tsx.trainer.loop import Outcome, train
from tsx.trainer.objective import DeviceBatch, count_labels, move_batch, run_forward
from tsx.trainer.schedule import get_lr
from tsx.trainer.telemetry import Telemetry

BASE: dict[str, dict[str, Any]] = {
    "data": {"context_length": 24, "stride": 12, "val_split": 0.2},
    "model": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "num_experts": 4,
        "top_k": 2,
        "d_ff": 24,
        "horizons": [1, 4],
        "init_std": 0.1,
    },
    "optim": {"lr": 5e-3, "warmup_steps": 0},
    "train": {"steps": 6, "batch_size": 4, "log_every": 1, "device": "cpu"},
    "eval": {"every": 0},
    "perf": {"mfu_peak_tflops": 1.0, "sample_every_s": 0.0},
}
Patch = Callable[[], AbstractContextManager[Any]]


class KeptEvents:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


def write_series(folder: Path, *, offset: float = 0.0) -> Path:
    """Write noisy waves, lengths unequal so that some windows are padded; return where.

    The data set's name decides which series are held out: it is the same in every folder.
    """
    path = folder / "waves" / "series.jsonl"
    path.parent.mkdir()
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for index in range(12):
            time = np.arange(70 if index % 3 else 15)
            wave = np.sin(time / (3 + index % 4)) + 0.1 * generator.standard_normal(len(time))
            file.write(json.dumps({"sequence": (wave + offset).tolist()}) + "\n")
    return path


def make_config(path: Path, changes: dict[str, Any]) -> RunConfig:
    """Return the tiny config with `section__key` values changed; its data lies at `path`."""
    raw = {section: dict(keys) for section, keys in BASE.items()}
    raw["data"]["path"] = str(path)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        raw.setdefault(section, {})[name] = value
    return decode(raw)


@dataclass
class EmbeddedLoop(Loop):
    """The trainer's step, with its losses handed to `run.compute`."""

    session: Any = None
    patch: Patch = nullcontext
    aux: float = 0.0  # of the last loss

    def step(self, run: Any, step: int) -> None:
        with self.patch():
            self.take(run, step)

    def take(self, run: Any, step: int) -> None:
        """Take the step, with the patch in place."""
        config = self.session.config
        optim.set_lr(self.optimizer, get_lr(config, step))
        self.optimizer.zero_grad(set_to_none=True)
        count = config.train.grad_accum_steps
        batches = [self.session.stream.next_batch() for _ in range(count)]
        labels = count_labels([batch.target_mask_BC for batch in batches], config.model)
        counts_O = torch.from_numpy(np.maximum(labels, 1))
        total = 0.0
        for batch in batches:
            data = move_batch(batch, self.session.device)
            parts = (data.input_BC, data.input_mask_BC, data.target_BC, data.target_mask_BC)
            loss = run.compute(self.loss, *parts, counts_O)
            loss.backward()
            total += float(loss.detach())
        norm = optim.measure_grad_norm(self.model.parameters())
        optim.clip_gradients(self.model.parameters(), config.optim.max_grad_norm, norm)
        self.optimizer.step()
        lr = self.optimizer.param_groups[0]["lr"]
        values = {"train/loss": total, "train/aux": self.aux, "train/lr": lr}
        run.log(values | {"train/grad_norm": float(norm)}, step=step)


def build_loop(
    patch: Patch = nullcontext,
    *,
    offset: float = 0.0,
    served: Callable[[Any, int], Any] | None = None,
    **changes: Any,
) -> EmbeddedLoop:
    """Build a session under a patch and make a loop of it."""
    with tempfile.TemporaryDirectory() as place, patch():
        folder = Path(place)
        config = make_config(write_series(folder, offset=offset), changes)
        ready = session.prepare(config, Telemetry(KeptEvents()), folder=folder, home=folder)
        ready.corpus.train.get_batch(np.arange(1))  # maps the only shard, which the loop keeps
    share = config.model.aux_loss_weight / config.train.grad_accum_steps

    def loss(
        x_BC: Tensor, seen_BC: Tensor, target_BC: Tensor, mask_BC: Tensor, counts_O: Tensor
    ) -> Tensor:
        data = DeviceBatch(x_BC, seen_BC, target_BC, mask_BC)
        forecast = run_forward(ready.model, data, ready.precision)
        losses = model_losses.forecast_loss(forecast, target_BC, mask_BC, config.model, counts_O)
        loop.aux = float(losses.aux.detach())
        return losses.pred + share * losses.aux

    def batch(step: int) -> tuple[Tensor, ...]:
        """Return the batch of a step as tensors, without taking it from the stream."""
        windows = ready.stream._windows.get_batch(ready.stream.get_indices(step - 1))
        data = move_batch(served(windows, step) if served else windows, ready.device)
        return data.input_BC, data.input_mask_BC, data.target_BC, data.target_mask_BC

    loop = EmbeddedLoop(
        model=ready.model, optimizer=ready.optimizer, batch=batch, loss=loss, session=ready
    )
    loop.patch = patch
    return loop


def train_planted(plant: Plant, folder: Path, sink: EventSink) -> Outcome:
    """Run the real trainer under a plant's patch and config, in a folder of its own."""
    assert plant.patch is not None
    config = make_config(write_series(folder), plant.config)
    with plant.patch():
        return train(config, sink, folder=folder, home=folder, stop=threading.Event())


def replace(target: str, piece: Any) -> Patch:
    """Return a patch that puts a piece in the place of `module.name`."""
    return partial(mock.patch, target, piece)


def after_build(change: Callable[[Any], None]) -> Patch:
    """Return a patch that changes each model right after the trainer has built it."""

    @contextmanager
    def patch() -> Any:
        build = session.build_forecaster

        def built(*args: Any, **kwargs: Any) -> Any:
            model = build(*args, **kwargs)
            with torch.no_grad():
                change(model)
            return model

        with mock.patch("tsx.trainer.session.build_forecaster", built):
            yield

    return patch


def serving(served: Callable[[Any, int], Any]) -> Patch:
    """Return a patch that lets the trainer's stream serve what `served` makes of each batch."""

    @contextmanager
    def patch() -> Any:
        take = BatchStream.next_batch

        def next_batch(self: Any) -> Any:
            batch = take(self)
            return served(batch, self._position)

        with mock.patch("tsx.data.stream.BatchStream.next_batch", next_batch):
            yield

    return patch


def plant(
    *, patch: Patch = nullcontext, config: dict[str, Any] | None = None, **rest: Any
) -> Plant:
    """Return a plant of the embedded model and trainer."""
    config = config or {}
    extras = {key: rest.pop(key) for key in ("served", "offset") if key in rest}
    if "served" in extras:
        patch = serving(extras["served"])
    return Plant(
        architecture="embedded",
        causal=True,
        build=lambda: build_loop(patch, **extras, **config),
        patch=patch,
        config=config,
        **rest,
    )
