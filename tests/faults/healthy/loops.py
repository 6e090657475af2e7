"""Loops that do something unusual rightly: accumulation, mixed precision, schedules, scores."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import VOCABULARY
from tests.faults.plant import Healthy, Loop
from tests.faults.proofs import equal_batches, falls, has_moved, trains

autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


class Accumulating(Loop):
    """Four micro-batches of unequal counts, divided by the labels of them all."""

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        batches = [self.batch(4 * step + number) for number in range(4)]
        labels = sum(int((y != -100).sum()) for _, y in batches)
        total = 0.0
        for x, y in batches:
            loss = run.compute(self.loss, x, y, labels)
            loss.backward()
            total += float(loss.detach())
        self.update()
        run.log({"loss": total}, step=step)


def uneven(number: int) -> tuple[Tensor, Tensor]:
    x, y = parts.tokens(number)
    y = y.clone()
    if number % 2:
        y[:, 4:] = -100
    return x, y


def summed_loss(model: nn.Module, x: Tensor, y: Tensor, labels: int) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / labels


class EqualMeans(Loop):
    """Micro-batches of equal counts: a mean of means is right."""

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        total = 0.0
        for number in range(2):
            loss = run.compute(self.loss, *self.batch(2 * step + number)) / 2
            loss.backward()
            total += float(loss.detach())
        self.update()
        run.log({"loss": total}, step=step)


class Scaling(Loop):
    """A scaler, unscaled before the clipping; `enabled` as in a run without fp16."""

    enabled = True

    def start(self, run: Any, **declared: Any) -> None:
        super().start(run, **declared)
        self.scaler = torch.amp.GradScaler("cpu", enabled=self.enabled, init_scale=2.0**10)

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        loss = run.compute(self.loss, *self.batch(step))
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        run.log({"loss": float(loss.detach())}, step=step)


class NotScaling(Scaling):
    enabled = False


def autocast_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with autocast():
        logits = model(x)
    return F.cross_entropy(logits.float().flatten(0, -2), y.flatten())


def build_warm_up() -> Loop:
    """From a rate of 0, up, and down to 0 at the very end."""
    loop = parts.transformer()

    def factor(step: int) -> float:
        return step / 5 if step < 5 else (30 - step) / 25

    loop.scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, factor)
    return loop


def warms_up(loop: Loop) -> None:
    trains()(loop)
    assert loop.optimizer.param_groups[0]["lr"] == 0.0  # the schedule has ended


class Scoring(Loop):
    """Scores every fifth step, in eval mode, and goes back."""

    def step(self, run: Any, step: int) -> None:
        super().step(run, step)
        if step % 5 == 0:
            self.model.eval()
            with torch.no_grad():
                score = float(self.loss(*self.batch(500)))
            self.model.train()
            run.log({"val/loss": score}, step=step)


def scores_and_trains(loop: Loop) -> None:
    trains()(loop)
    assert loop.model.training
    assert sum("val/loss" in step.logged for step in loop.seen) == 6


def clips_each_step(loop: Loop) -> None:
    trains()(loop)
    loop.loss(*loop.batch(1)).backward()
    norm = nn.utils.get_total_norm([p.grad for p in loop.model.parameters()])
    assert norm > loop.clip


def repeats_on_purpose(loop: Loop) -> None:
    trains(share=0.5)(loop)
    first = loop.seen[0].batches[0]
    assert all(equal_batches(first, step.batches[0]) for step in loop.seen)
    assert loop.declares["fixed_batch"]


def build_muon() -> Loop:
    model = parts.Recurrent(nn.Linear(parts.WIDTH, parts.WIDTH))
    matrices = [model.middle.weight]
    rest = [p for p in model.parameters() if p is not model.middle.weight]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0)
    return parts.make_loop(model, parts.waves, optimizer=[muon, torch.optim.AdamW(rest, lr=1e-2)])


class Alternating(Loop):
    """Two optimizers in turn: each zeroes and steps its own part."""

    def step(self, run: Any, step: int) -> None:
        optimizer = self.optimizers[step % 2]
        self.model.zero_grad()
        loss = run.compute(self.loss, *self.batch(step))
        loss.backward()
        optimizer.step()
        run.log({"loss": float(loss.detach())}, step=step)


def build_alternating() -> Loop:
    model = parts.Recurrent()
    both = [
        torch.optim.AdamW(model.rnn.parameters(), lr=1e-2),
        torch.optim.AdamW(model.head.parameters(), lr=1e-2),
    ]
    return parts.make_loop(model, parts.waves, kind=Alternating, optimizer=both)


class Averaged(Loop):
    """Keeps averaged weights beside the model and scores with them."""

    def start(self, run: Any, **declared: Any) -> None:
        super().start(run, **declared)
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        self.average = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=decay)

    def update(self) -> None:
        super().update()
        self.average.update_parameters(self.model)


def compiled() -> Loop:
    torch._dynamo.reset()
    loop = parts.mlp()
    loop.model.compile(backend="eager")
    return loop


def with_epochs(step: int) -> tuple[Tensor, Tensor]:
    """Return batches of a small set in a new order each epoch."""
    epoch, number = divmod(step - 1, 4)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(epoch))
    x, y = parts.rows(0, size=64)
    chosen = order.view(4, 16)[number]
    return x[chosen], y[chosen]


def ignored(step: int) -> tuple[Tensor, Tensor]:
    """Return tokens whose first four labels are a prompt, and one label in all of one batch."""
    x, y = parts.tokens(step)
    y = y.clone()
    y[:, :4] = -100
    if step == 7:
        y[1:] = -100
        y[0, :-1] = -100
    return x, y


def rare(step: int) -> tuple[Tensor, Tensor]:
    """Return tokens of which the last of the vocabulary comes once in thirty steps."""
    x, y = parts.tokens(step)
    x = x.clamp(max=VOCABULARY - 2)
    if step == 12:
        x[0, 0] = VOCABULARY - 1
    return x, y


def rare_rows(loop: Loop) -> None:
    falls(loop)
    assert has_moved(loop, "embed.weight")
    padding = loop.model.embed.weight[0]
    assert torch.equal(padding, loop.initial["embed.weight"][0])


def build_rare() -> Loop:
    model = parts.Transformer()
    model.embed = nn.Embedding(VOCABULARY, parts.WIDTH, padding_idx=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    return parts.make_loop(model, rare, parts.classify, optimizer=optimizer)


lm = partial(Healthy, architecture="attention", causal=True)
ENTRIES = (
    lm(
        name="right-accumulation",
        looks="micro-batches of unequal counts, each divided by the labels of them all",
        build=lambda: parts.make_loop(parts.Transformer(), uneven, summed_loss, kind=Accumulating),
        proof=trains(),
        steps=20,
    ),
    Healthy(
        name="mean-of-equal-means",
        architecture="conv",
        looks="a mean of means over micro-batches, which is right where counts are equal",
        build=lambda: parts.conv(kind=EqualMeans),
        proof=trains(),
        steps=20,
    ),
    lm(
        name="autocast-bf16",
        looks="bf16 products beside fp32 weights, softmax and loss in fp32",
        build=lambda: parts.make_loop(parts.Transformer(), parts.tokens, autocast_loss),
        proof=trains(),
    ),
    Healthy(
        name="scaler-unscaled",
        architecture="conv",
        looks="scaled gradients that are unscaled before they are clipped",
        build=lambda: parts.conv(kind=Scaling),
        proof=trains(),
    ),
    Healthy(
        name="scaler-disabled",
        architecture="conv",
        looks="a scaler that is there and turned off, as in a bf16 run",
        build=lambda: parts.make_loop(
            parts.ConvNet(), parts.images, autocast_loss, kind=NotScaling
        ),
        proof=trains(),
    ),
    lm(
        name="warm-up-from-zero",
        looks="a first step at rate 0 moves nothing; the last rate is 0 again",
        build=build_warm_up,
        proof=warms_up,
    ),
    Healthy(
        name="scores-in-between",
        architecture="conv",
        looks="eval mode every fifth step, and back; dropout and batch norm in train mode",
        build=lambda: parts.conv(nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.1)), kind=Scoring),
        proof=scores_and_trains,
    ),
    Healthy(
        name="clipped-each-step",
        architecture="recurrent",
        looks="gradients are clipped at every step, by a little",
        build=lambda: parts.recurrent(clip=0.02),
        proof=clips_each_step,
    ),
    lm(
        name="one-batch-by-heart",
        looks="the same batch at every step, on purpose, and declared so",
        build=lambda: parts.transformer(
            batch=lambda step: parts.tokens(1), declares={"fixed_batch": True}
        ),
        proof=repeats_on_purpose,
        steps=40,
    ),
    Healthy(
        name="muon-and-adamw",
        architecture="recurrent",
        looks="two optimizers with rates of two families, each right for its own",
        build=build_muon,
        proof=trains(),
        steps=40,
    ),
    Healthy(
        name="optimizers-in-turn",
        architecture="recurrent",
        looks="each step moves one half of the parameters only",
        build=build_alternating,
        proof=trains(),
        steps=60,
    ),
    Healthy(
        name="averaged-weights",
        architecture="mlp",
        looks="an average of the weights beside the model, never put back",
        build=lambda: parts.mlp(kind=Averaged),
        proof=trains(),
    ),
    Healthy(
        name="compiled",
        architecture="mlp",
        looks="compiled once, with one shape",
        build=compiled,
        proof=trains(),
        slow=True,
    ),
    Healthy(
        name="epochs-in-new-order",
        architecture="mlp",
        looks="the same rows in each epoch, in another order",
        build=lambda: parts.mlp(batch=with_epochs),
        proof=trains(),
    ),
    lm(
        name="prompts-ignored",
        looks="nearly half the labels are -100; in one batch all but one",
        build=lambda: parts.transformer(batch=ignored),
        proof=trains(),
        steps=40,
    ),
    lm(
        name="rare-rows",
        looks="rows of an embedding have no gradient for most steps, the padding row never",
        build=build_rare,
        proof=rare_rows,
    ),
)
