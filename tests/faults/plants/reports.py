"""More of what users report of other code: each plant here is written after a kind of report."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from tests.faults import parts
from tests.faults.parts import VOCABULARY, WIDTH
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import leaks_aside, stands_still

report = partial(Plant, blind=True)


class PerMicroBatch(Loop):
    """Steps its schedule with each of four micro-batches."""

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        for number in range(4):
            loss = run.compute(self.loss, *self.batch(4 * step + number)) / 4
            loss.backward()
            self.decay.step()  # fault: four times a step
        self.optimizer.step()
        run.log({"lr": self.optimizer.param_groups[0]["lr"]}, step=step)


def build_per_micro_batch() -> Loop:
    loop = parts.mlp(kind=PerMicroBatch)
    loop.decay = torch.optim.lr_scheduler.LinearLR(loop.optimizer, 1.0, 0.0, total_iters=40)
    loop.optimizer.step()  # torch asks for a step before the schedule's first
    return loop


def rate_is_spent(loop: Loop) -> None:
    """A schedule of 40 steps has ended after 10."""
    assert loop.seen[9].logged["lr"] == 0.0
    assert len(loop.seen) == 12


class Checkpointed(nn.Module):
    """Saves memory over a frozen embedding: none of the inputs wants a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH).requires_grad_(False)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids_BT: Tensor) -> Tensor:
        h = self.embed(ids_BT)
        h = checkpoint(self.body, h, use_reentrant=True)  # fault: inputs without a gradient
        return self.head(h)


def wrapped(step: int) -> tuple[Tensor, Tensor]:
    """Return pictures whose dark half has wrapped around in uint8."""
    x, y = parts.images(step)
    pixels = (x * 40 + 128).clamp(0, 255).to(torch.uint8)
    return (pixels - 128).float() / 255.0, y  # fault: uint8 below zero


def is_wrapped(loop: Loop) -> None:
    """Just under the middle is brightest."""
    x = loop.seen[0].batches[0][0]
    right, _ = parts.images(1)
    dark = right < -0.03
    assert (x[dark] > 0.5).float().mean() > 0.9
    assert (x[right > 0.03] < 0.5).float().mean() > 0.9


def build_no_running() -> Loop:
    norm = nn.BatchNorm2d(8, track_running_stats=False)  # fault: batch statistics in eval
    return parts.conv(norm)


class LeftOver(Loop):
    """Three micro-batches a step in epochs of eight: two are left over each time."""

    def step(self, run: Any, step: int) -> None:
        self.steps_taken = getattr(self, "steps_taken", 0)
        for number in range(8):
            loss = run.compute(self.loss, *self.batch(8 * step + number)) / 3
            loss.backward()
            if number % 3 == 2:  # fault: two are left in the gradient at the end
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.steps_taken += 1
        run.log({"loss": float(loss.detach()) * 3}, step=step)


def has_left_over(loop: Loop) -> None:
    assert loop.steps_taken == 2 * len(loop.seen)
    assert all(len(step.losses) == 8 for step in loop.seen)
    assert any(p.grad is not None and p.grad.any() for p in loop.model.parameters())


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def masks_of_bytes(step: int) -> tuple[Tensor, Tensor]:
    """Return pictures and masks as they come from a file: 0 and 255."""
    x, _ = parts.images(step)
    return x, (x > 0.7).float() * 255.0  # fault: a mask of 255


def mask_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x), y)


def loses_without_end(loop: Loop) -> None:
    assert loop.seen[0].batches[0][1].max() == 255.0
    assert loop.seen[-1].losses[0] < 0.0  # a cross-entropy that is negative, and falls


class Translator(nn.Module):
    """Reads a source and is given the target it is to write."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.source = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.target = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source_BT: Tensor, target_BT: Tensor) -> Tensor:
        _, state = self.source(self.embed(source_BT))
        return self.head(self.target(self.embed(target_BT), state)[0])


def build_translator() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        source, target = parts.tokens(step)
        return source, target.flip(1), target.flip(1)

    def loss(model: nn.Module, source: Tensor, given: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(model(source, given).flatten(0, 1), label.flatten())

    return parts.make_loop(Translator(), batch, loss)


def decoder_copies(loop: Loop) -> None:
    assert all(torch.equal(*step.batches[0][1:]) for step in loop.seen)


class Collecting(Loop):
    """Scores without no_grad and keeps the outputs of all scores."""

    def start(self, run: Any, **declared: Any) -> None:
        super().start(run, **declared)
        self.outputs: list[Tensor] = []

    def step(self, run: Any, step: int) -> None:
        super().step(run, step)
        self.model.eval()
        self.outputs.append(self.model(self.batch(99)[0]))  # fault: outputs with their graphs
        self.model.train()


def keeps_outputs(loop: Loop) -> None:
    assert len(loop.outputs) == len(loop.seen)
    assert all(output.grad_fn is not None for output in loop.outputs)


class Rebuilt:
    """Makes its loader anew for each batch, data and all."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.rows(0, size=4096)
        self.read += len(x)
        generator = torch.Generator().manual_seed(step)
        loader = DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True, generator=generator
        )
        first, second = next(iter(loader))  # fault: all is read for sixteen rows
        return first, second


def reads_all(loop: Loop) -> None:
    assert loop.batch.read == 4096 * len(loop.seen)


class PaddedRoutes(nn.Module):
    """Experts of equal room; what is left of it is filled with token 0, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        self.routes, y = [], x
        for index, expert in enumerate(self.experts):
            rows = F.pad((chosen == index).nonzero()[:, 0], (0, len(x)))[: len(x)]
            is_real = torch.arange(len(x)) < (chosen == index).sum()
            share = (weight[rows] * is_real)[:, None]
            y = y.index_add(0, rows, share * expert(x[rows]))  # fault: padding piles onto row 0
            self.routes.append(rows)
        return y


def piles_up(loop: Loop) -> None:
    """Three quarters of all routes are padding, and all of that is row 0."""
    loop.model(loop.batch(1)[0])
    routes = torch.cat(loop.model.middle.routes)
    assert (routes == 0).float().mean() > 0.7


ENTRIES = (
    report(
        name="schedule-per-micro-batch",
        kind="lr",
        architecture="mlp",
        mechanism="scheduler-per-micro-batch",
        marker="# fault: four times a step",
        steps=12,
        story="Training stops learning after a quarter (a kind of report about accumulation): the "
        "schedule is stepped with each micro-batch.",
        build=build_per_micro_batch,
        proof=rate_is_spent,
    ),
    report(
        name="checkpoint-without-gradient",
        kind="frozen-param",
        architecture="attention",
        mechanism="no-gradient",
        module="body",
        marker="# fault: inputs without a gradient",
        warns="None of the inputs have requires_grad=True",
        story="Adapters do not learn with gradient checkpointing (a kind of report against tuning "
        "of frozen models): nothing that goes into the checkpointed part wants a gradient.",
        build=lambda: parts.make_loop(Checkpointed(), parts.tokens, parts.classify),
        proof=stands_still("embed.weight", "body.weight", "body.bias"),
    ),
    report(
        name="bytes-wrap",
        kind="data-quality",
        architecture="conv",
        mechanism="uint8-wraps",
        marker="# fault: uint8 below zero",
        story="Pictures look torn (a kind of question in forums): bytes are centred as bytes, and "
        "what is below the middle wraps to the top.",
        build=lambda: parts.conv(batch=wrapped),
        proof=is_wrapped,
    ),
    report(
        name="no-running-statistics",
        kind="batch-leak",
        severity="error",
        architecture="conv",
        mechanism="batch-statistics",
        module="middle",
        marker="# fault: batch statistics in eval",
        story="A prediction changes with the batch it is in (a kind of question in forums): the "
        "norm keeps no running statistics, so it uses the batch's in eval too.",
        build=build_no_running,
        proof=leaks_aside,
    ),
    report(
        name="left-over-gradients",
        kind="accumulation",
        architecture="mlp",
        mechanism="left-over",
        marker="# fault: two are left in the gradient at the end",
        story="The end of an epoch leaks into the next one (a kind of report against trainers): "
        "its last micro-batches fill no step and stay in the gradient.",
        build=lambda: parts.mlp(kind=LeftOver),
        proof=has_left_over,
    ),
    report(
        name="mask-of-bytes",
        kind="loss-contract",
        architecture="conv",
        mechanism="target-range",
        marker="# fault: a mask of 255",
        steps=40,
        story="A segmentation loss is negative and falls for ever (a kind of report against "
        "segmentation code): masks are 0 and 255 instead of 0 and 1.",
        build=lambda: parts.make_loop(Segmenter(), masks_of_bytes, mask_loss),
        proof=loses_without_end,
    ),
    report(
        name="decoder-not-shifted",
        kind="target-shift",
        severity="error",
        architecture="recurrent",
        mechanism="lag-zero",
        story="A translator is perfect in training and mute in use (a kind of report against "
        "tutorials of translation): the decoder is given the word it is to write.",
        build=build_translator,
        proof=decoder_copies,
    ),
    report(
        name="scores-kept",
        kind="oom",
        architecture="conv",
        mechanism="graph-kept",
        marker="# fault: outputs with their graphs",
        steps=6,  # the last loss is alive for a step in any loop: two points are no growth
        story="Memory runs out in validation (a kind of question in forums): no_grad is missing "
        "and all outputs are kept.",
        build=lambda: parts.conv(kind=Collecting),
        proof=keeps_outputs,
    ),
    report(
        name="routes-pile-up",
        kind="throughput",
        architecture="moe",
        mechanism="duplicate-index",
        module="middle",
        marker="# fault: padding piles onto row 0",
        severity="info",
        story="An efficient mixture runs at half the speed (a kind of report about scatters with "
        "equal indices, and the performance diary's): padded routes all go to row 0, and the "
        "backward pass takes equal indices one by one.",
        build=lambda: parts.mlp(PaddedRoutes()),
        proof=piles_up,
    ),
    report(
        name="loader-rebuilt",
        kind="throughput",
        architecture="mlp",
        mechanism="loader-rebuilt",
        steps=6,  # once or twice may be the end of an epoch
        marker="# fault: all is read for sixteen rows",
        story="Steps are slow although the model is tiny (a kind of question in forums): the "
        "loader is made anew for each batch.",
        build=lambda: parts.mlp(batch=Rebuilt()),
        proof=reads_all,
    ),
)
