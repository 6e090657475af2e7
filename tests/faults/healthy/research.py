"""Loops as researchers write them: recurrent language models, per-sample gradients, fine-tuning.

Shapes: T time, B batch, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tests.faults import parts
from tests.faults.parts import VOCABULARY, WIDTH
from tests.faults.plant import Healthy, Loop
from tests.faults.proofs import has_moved, trains


class TimeFirst(nn.Module):
    """Two recurrent layers over [T, B]; returns flat logits and the states it ends in."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.LSTM(WIDTH, WIDTH, 2)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids_TB: Tensor, state: Any) -> tuple[Tensor, Any]:
        states, state = self.rnn(self.embed(ids_TB), state)
        return self.head(states).flatten(0, 1), state


def carries_states() -> Loop:
    state = torch.zeros(2, 6, WIDTH)
    carried = [(state, state.clone())]

    def loss(model: nn.Module, x_TB: Tensor, y: Tensor) -> Tensor:
        logits, after = model(x_TB, carried[0])
        carried[0] = tuple(part.detach() for part in after)
        return F.cross_entropy(logits, y)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.tokens(step, length=8)
        return x.T.contiguous(), y.T.flatten()

    return parts.make_loop(TimeFirst(), batch, loss)


class WithState(nn.Module):
    """As many features as steps; the state and a summary are returned beside the outputs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, size, batch_first=True)
        self.head = nn.Linear(size, 1)

    def forward(self, x_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, state = self.rnn(x_BTF)
        return self.head(states), state, states.mean(1)


def returned_state_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x)[0], y)


def with_spectral_norm() -> Loop:
    norm = nn.utils.parametrizations.spectral_norm
    return parts.mlp(norm(nn.Linear(WIDTH, WIDTH)))


class PerSample(Loop):
    """Clips the gradient of each sample, as differential privacy does."""

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        loss = run.compute(self.clip_each, *self.batch(step))
        self.update()
        run.log({"loss": float(loss)}, step=step)

    def clip_each(self, x: Tensor, y: Tensor) -> Tensor:
        held = {name: param.detach() for name, param in self.model.named_parameters()}
        grads = vmap(grad(self.lose_one), (None, 0, 0))(held, x, y)
        for name, param in self.model.named_parameters():
            norms = grads[name].flatten(1).norm(dim=1).clamp(min=1.0)
            param.grad = (grads[name] / norms.view(-1, *[1] * param.ndim)).mean(0)
        with torch.no_grad():
            return F.mse_loss(self.model(x), y)

    def lose_one(self, held: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(self.model, held, (x[None],)), y[None])


class Unfreezing(Loop):
    """Freezes a layer after it was watched, and lets it go half way."""

    def start(self, run: Any, **declared: Any) -> None:
        super().start(run, **declared)
        self.model.first.requires_grad_(False)

    def step(self, run: Any, step: int) -> None:
        if step == 20:
            self.model.first.requires_grad_(True)
        super().step(run, step)


def was_unfrozen(loop: Loop) -> None:
    trains()(loop)
    assert has_moved(loop, "first.weight")


class ShortLast(Loop):
    """Two micro-batches a step; the last of each epoch is a small one."""

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        total = 0.0
        for number in range(2):
            x, y = self.batch(2 * step + number)
            size = 3 if number and step % 4 == 0 else len(x)
            loss = run.compute(self.loss, x[:size], y[:size]) / 2
            loss.backward()
            total += float(loss.detach())
        self.update()
        run.log({"loss": total}, step=step)


class Spectrum(nn.Module):
    """Weighs the lowest frequencies of a row with complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH // 2 + 1, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=WIDTH)


def warms_up_for_long() -> Loop:
    """A rate of nearly nothing for the whole of the first steps."""
    loop = parts.conv(lr=1e-2)
    loop.scheduler = torch.optim.lr_scheduler.LambdaLR(
        loop.optimizer, lambda step: min(1.0, 1e-7 * 10 ** (step / 10))
    )
    return loop


class Tasks(Loop):
    """Learns one task after the other: the loss leaps between them."""

    def step(self, run: Any, step: int) -> None:
        plain = self.batch
        self.batch = lambda number: (
            plain(number)[0],
            3.0 * plain(number)[0][:, step // 60 :][:, :1],
        )
        super().step(run, step)
        self.batch = plain


def leaps(loop: Loop) -> None:
    losses = [step.losses[0] for step in loop.seen]
    assert losses[59] > 3 * max(losses[50:59])
    assert losses[-1] < losses[59]


research = partial(Healthy, architecture="mlp", proof=trains())
ENTRIES = (
    research(
        name="time-first-states",
        architecture="recurrent",
        looks="states [layers, B, D] come back beside flat logits: layers are no steps",
        build=carries_states,
        proof=trains(share=0.99),
    ),
    research(
        name="state-as-wide-as-long",
        architecture="recurrent",
        looks="state and mean have as many features as the window has steps, and know all of them",
        build=lambda: parts.make_loop(WithState(13), parts.waves, returned_state_loss),
        causal=True,
    ),
    research(
        name="spectral-norm",
        looks="a weight is made anew, and a buffer moved, whenever it is read",
        build=with_spectral_norm,
    ),
    research(
        name="per-sample-gradients",
        looks="the model runs under vmap and grad; gradients are written by hand",
        build=lambda: parts.mlp(kind=PerSample),
        steps=40,
    ),
    research(
        name="unfrozen-half-way",
        looks="a layer that is frozen after run.watch, until step 20",
        build=lambda: parts.mlp(kind=Unfreezing),
        proof=was_unfrozen,
        steps=40,
    ),
    research(
        name="short-last-batch",
        looks="every fourth step has a micro-batch of 3 rows beside one of 16",
        build=lambda: parts.mlp(kind=ShortLast),
        steps=40,
    ),
    research(
        name="complex-weights",
        looks="complex parameters",
        build=lambda: parts.mlp(Spectrum()),
    ),
    research(
        name="long-warm-up",
        architecture="conv",
        looks="for forty steps the rate is next to nothing and still rises",
        build=warms_up_for_long,
        steps=90,
    ),
    research(
        name="task-after-task",
        looks="the loss leaps where the second task begins",
        build=lambda: parts.mlp(kind=Tasks),
        proof=leaps,
        steps=75,
    ),
)
