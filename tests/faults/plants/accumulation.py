"""Gradients that add up when they should not, or are weighed wrongly before the step."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.plant import Loop, Plant

wrong = partial(Plant, kind="accumulation", steps=6)


class NeverZeroed(Loop):
    def step(self, run: Any, step: int) -> None:
        loss = run.compute(self.loss, *self.batch(step))
        loss.backward()  # fault: onto the gradients of all steps before
        self.update()
        run.log({"loss": float(loss.detach())}, step=step)


def grads_pile_up(loop: Loop) -> None:
    """The gradient that is held is the sum over all steps, not that of the last one."""
    held = loop.model.get_parameter(find_weight(loop)).grad.clone()
    one = grad_of(loop, len(loop.seen))
    assert held.norm() > 2 * one.norm()


def find_weight(loop: Loop) -> str:
    """Return the name of the last matrix."""
    return [name for name, p in loop.model.named_parameters() if p.ndim == 2][-1]


def grad_of(loop: Loop, *steps: int) -> Tensor:
    """Return the gradient that the sum of these losses has now."""
    loop.model.zero_grad()
    for step in steps:
        loop.loss(*loop.batch(step)).backward()
    return loop.model.get_parameter(find_weight(loop)).grad.clone()


class MicroBatches(Loop):
    """Four micro-batches a step; `batch` is asked for numbers that go on."""

    count = 4

    def numbers(self, step: int) -> range:
        return range((step - 1) * self.count + 1, step * self.count + 1)

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        total = 0.0
        for number in self.numbers(step):
            loss = run.compute(self.loss, *self.batch(number)) / self.count
            loss.backward()
            total += float(loss.detach())
        self.update()
        run.log({"loss": total}, step=step)


class ZeroedInside(MicroBatches):
    def step(self, run: Any, step: int) -> None:
        for number in self.numbers(step):
            self.optimizer.zero_grad()  # fault: inside the loop of micro-batches
            loss = run.compute(self.loss, *self.batch(number)) / self.count
            loss.backward()
        self.update()
        run.log({"loss": float(loss.detach()) * self.count}, step=step)


def only_last_counts(loop: Loop) -> None:
    """The gradient that is held is the last micro-batch's, a quarter of it."""
    assert all(len(step.losses) == 4 for step in loop.seen)
    with torch.no_grad():  # back to before the update cannot be had; the sizes tell
        held = loop.model.get_parameter(find_weight(loop)).grad.clone()
    last = grad_of(loop, 24) / 4
    whole = grad_of(loop, 21, 22, 23, 24) / 4
    assert (held - last).norm() < (held - whole).norm()


def uneven_tokens(number: int) -> tuple[Tensor, Tensor]:
    """Return tokens; of every second micro-batch only two labels count."""
    x, y = parts.tokens(number)
    y = y.clone()
    if number % 2 == 0:
        y[1:] = -100
        y[0, 2:] = -100
    return x, y


def weighs_unevenly(loop: Loop) -> None:
    """A label of an even micro-batch weighs 27 times one of an odd one."""
    counts = [int((batch[1] != -100).sum()) for batch in loop.seen[-1].batches]
    assert counts == [54, 2, 54, 2]
    means = grad_of(loop, 21, 22, 23, 24) / 4
    loop.model.zero_grad()
    for number in (21, 22, 23, 24):
        x, y = loop.batch(number)
        logits = loop.model(x).flatten(0, -2)
        (F.cross_entropy(logits, y.flatten(), reduction="sum") / sum(counts)).backward()
    right = loop.model.get_parameter(find_weight(loop)).grad
    assert (means - right).norm() > 0.3 * right.norm()


class ClippedScaled(Loop):
    """Clips what the scaler has scaled."""

    def start(self, run: Any, **declared: Any) -> None:
        super().start(run, **declared)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        self.norms: list[float] = []

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        loss = run.compute(self.loss, *self.batch(step))
        self.scaler.scale(loss).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)  # fault: before unscaling
        self.norms.append(float(norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        run.log({"loss": float(loss.detach()), "grad_norm": float(norm)}, step=step)


def clips_scaled(loop: Loop) -> None:
    """Norms are some 65536 times too large, so every step is clipped to 1 / 65536."""
    assert min(loop.norms) > 1000
    total = sum(float(p.grad.square().sum()) for p in loop.model.parameters()) ** 0.5
    assert total < 2e-5


class SteppedInside(MicroBatches):
    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        for number in self.numbers(step):
            loss = run.compute(self.loss, *self.batch(number)) / self.count
            loss.backward()
            self.update()  # fault: a step for each micro-batch
        run.log({"loss": float(loss.detach()) * self.count}, step=step)


def steps_too_often(loop: Loop) -> None:
    state = next(iter(loop.optimizer.state.values()))
    assert int(state["step"]) == 4 * len(loop.seen)


class Undivided(MicroBatches):
    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        for number in self.numbers(step):
            loss = run.compute(self.loss, *self.batch(number))
            loss.backward()  # fault: a sum where a mean is meant
        nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)
        self.update()
        run.log({"loss": float(loss.detach())}, step=step)


def build_undivided() -> Loop:
    model = parts.Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return parts.make_loop(model, parts.rows, kind=Undivided, optimizer=optimizer)


def sums_up(loop: Loop) -> None:
    """Four losses a step, all near each other, and a gradient of about their sum."""
    held = loop.model.get_parameter(find_weight(loop)).grad.clone()
    mean = grad_of(loop, 21, 22, 23, 24) / 4
    assert held.norm() > 2.5 * mean.norm()


class TwoOptimizers(Loop):
    """Zeroes one of its two optimizers only."""

    def step(self, run: Any, step: int) -> None:
        self.optimizers[0].zero_grad()  # fault: and the other one?
        loss = run.compute(self.loss, *self.batch(step))
        loss.backward()
        self.update()
        run.log({"loss": float(loss.detach())}, step=step)


def build_two_optimizers() -> Loop:
    model = parts.Recurrent()
    body, head = model.rnn.parameters(), model.head.parameters()
    both = [torch.optim.SGD(body, lr=0.01), torch.optim.SGD(head, lr=0.01)]
    return parts.make_loop(model, parts.waves, kind=TwoOptimizers, optimizer=both)


ENTRIES = (
    wrong(
        name="never-zeroed",
        architecture="mlp",
        mechanism="no-zero-grad",
        marker="# fault: onto the gradients of all steps before",
        story="zero_grad is missing: each step follows the sum of all gradients so far.",
        build=lambda: parts.make_loop(
            m := parts.Mlp(),
            parts.rows,
            kind=NeverZeroed,
            optimizer=torch.optim.SGD(m.parameters(), lr=1e-3),
        ),
        proof=grads_pile_up,
    ),
    wrong(
        name="zeroed-inside",
        architecture="mlp",
        mechanism="zero-grad-inside",
        marker="# fault: inside the loop of micro-batches",
        story="zero_grad stands inside the loop of micro-batches: three of four are for nothing.",
        build=lambda: parts.make_loop(
            m := parts.Mlp(),
            parts.rows,
            kind=ZeroedInside,
            optimizer=torch.optim.SGD(m.parameters(), lr=1e-3),
        ),
        proof=only_last_counts,
    ),
    wrong(
        name="mean-of-means",
        architecture="attention",
        mechanism="mean-of-means",
        blind=True,
        causal=True,
        story="Accumulation gives another loss than one large batch (a kind of report against "
        "trainers, as huggingface/transformers 24725): a mean of means, where one micro-batch "
        "has 54 labels and the next has 2.",
        build=lambda: parts.transformer(kind=MicroBatches, batch=uneven_tokens),
        proof=weighs_unevenly,
    ),
    wrong(
        name="clipped-before-unscaling",
        architecture="conv",
        mechanism="clip-before-unscale",
        marker="# fault: before unscaling",
        blind=True,
        story="Learning is very slow with mixed precision and clipping (a kind of report against "
        "training scripts, as milesial/Pytorch-UNet 468): what is clipped is still scaled.",
        build=lambda: parts.conv(kind=ClippedScaled),
        proof=clips_scaled,
    ),
    wrong(
        name="step-per-micro-batch",
        architecture="mlp",
        mechanism="step-inside",
        marker="# fault: a step for each micro-batch",
        story="The optimizer steps on each micro-batch, with gradients that pile up.",
        build=lambda: parts.mlp(kind=SteppedInside),
        proof=steps_too_often,
    ),
    wrong(
        name="not-divided",
        architecture="mlp",
        mechanism="sum-of-means",
        marker="# fault: a sum where a mean is meant",
        severity="info",
        story="The losses of four micro-batches are not divided by four: the rate is four times "
        "what it says.",
        build=build_undivided,
        proof=sums_up,
    ),
    wrong(
        name="other-optimizer-not-zeroed",
        architecture="recurrent",
        mechanism="no-zero-grad",
        module="head",
        marker="# fault: and the other one?",
        story="Of two optimizers one is zeroed: the gradients of the head pile up.",
        build=build_two_optimizers,
        proof=grads_pile_up,
    ),
)
