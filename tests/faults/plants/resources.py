"""Time and memory that are lost, and a batch that cannot be learned by heart."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH
from tests.faults.plant import Loop, Plant

slow = partial(Plant, kind="throughput", steps=6)
memory = partial(Plant, kind="oom")
heart = partial(Plant, kind="overfit", steps=60)


class Reader:
    """Waits for a disk before each batch."""

    def __init__(self) -> None:
        self.waits = 0

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        self.waits += 1
        time.sleep(0.02)  # fault: the disk is waited for
        return parts.rows(step)


def waited(loop: Loop) -> None:
    assert loop.batch.waits == len(loop.seen)


def mostly_padded(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return series padded to the longest: one long, the others short."""
    x, y = parts.waves(step, length=40)
    keep = torch.zeros(x.shape)
    keep[0], keep[1:, :4] = 1.0, 1.0
    return x * keep, y * keep, keep


def padded_loss(model: nn.Module, x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
    return ((model(x) - y).square() * keep).sum() / keep.sum()


def is_mostly_padding(loop: Loop) -> None:
    assert all(float(step.batches[0][2].mean()) < 0.26 for step in loop.seen)


class Chatty(Loop):
    """Reads each parameter's gradient to the host, every step."""

    reads = 0

    def update(self) -> None:
        for parameter in self.model.parameters():
            for value in parameter.grad.flatten()[:20]:
                self.reads += 1
                value.item()  # fault: a wait for the device per number
        super().update()


def reads_much(loop: Loop) -> None:
    assert loop.reads > 50 * len(loop.seen)


class CellByCell(nn.Module):
    """A GRU by hand, one step and one gate at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(1 + WIDTH, 1) for _ in range(WIDTH))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        state, out = x_BTF.new_zeros(len(x_BTF), WIDTH), []
        for t in range(x_BTF.shape[1]):
            given = torch.cat((x_BTF[:, t], state), -1)
            units = [gate(given).tanh() for gate in self.gates]  # fault: unit by unit
            state = torch.cat(units, -1)
            out.append(self.head(state))
        return torch.stack(out, 1)


def many_small(loop: Loop) -> None:
    """One forward pass calls more than 150 layers of one unit."""
    calls: list[int] = []
    for gate in loop.model.gates:
        gate.register_forward_hook(lambda m, x, y: calls.append(y.shape[-1]))
    with torch.no_grad():
        loop.loss(*loop.batch(1))
    assert len(calls) > 150
    assert set(calls) == {1}


class Remembering(Loop):
    """Averages all losses so far, each with its graph: steps get slower, memory grows."""

    def start(self, run: Any, **declared: Any) -> None:
        super().start(run, **declared)
        self.past: list[Tensor] = []

    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        loss = run.compute(self.loss, *self.batch(step))
        self.past.append(loss)  # fault: kept with its graph
        loss.backward(retain_graph=True)
        self.update()
        mean = torch.stack(self.past).mean()
        run.log({"loss": float(mean.detach())}, step=step)


def keeps_graphs(loop: Loop) -> None:
    assert len(loop.past) == len(loop.seen)
    assert all(loss.grad_fn is not None for loss in loop.past)


class Rescanned:
    """Cuts its windows from a list that is copied and grows with each batch."""

    def __init__(self) -> None:
        self.history: list[float] = []
        self.work: list[int] = []

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        self.history = self.history + x.flatten().tolist()  # fault: all of the past, each time
        scale = torch.tensor(sorted(self.history)).std()
        self.work.append(len(self.history))
        return x / scale, y / scale


def works_more(loop: Loop) -> None:
    work = loop.batch.work
    assert work == sorted(work)
    assert work[-1] >= 6 * work[0]


class OneHot(nn.Module):
    """Turns hashed words into one-hot rows."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(1, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.one_hot(ids, int(ids.max()) + 1)  # fault: as wide as the largest hash
        return self.proj(rows.sum(-1, keepdim=True).float())


def build_hashes() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(1 << (8 if step < 3 else 46), (16,), generator=parts.draw(step))
        return ids.clamp(min=1 << (4 if step < 3 else 45)), torch.zeros(16, 1)

    return parts.make_loop(OneHot(), batch)


def wants_too_much(loop: Loop) -> None:
    ids = parts.draw(3)
    rows = torch.randint(1 << 46, (16,), generator=ids)
    assert 16 * 8 * int(rows.max()) > 1 << 48  # more than a process can address
    assert len(loop.seen[-1].losses) == 0


class Pairs(nn.Module):
    """Compares each point of a window with each other one, in full."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, x_BT: Tensor) -> Tensor:
        size = x_BT.shape[-1]
        table = x_BT.new_zeros(len(x_BT), size, size)  # fault: all pairs at once
        return self.head(table.sum(-1).mean(-1, keepdim=True))


def build_pairs() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        size = 32 if step < 2 else 1 << 24
        return torch.zeros(1).expand(4, size), torch.zeros(4, 1)

    return parts.make_loop(Pairs(), batch, _pairs_loss)


def _pairs_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x).nan_to_num(), y)


def pairs_too_many(loop: Loop) -> None:
    assert 4 * 4 * (1 << 24) ** 2 > 1 << 51
    assert loop.batch(2)[0].shape == (4, 1 << 24)


def fixed(batch: Any) -> Any:
    """Return one batch for every step."""
    held = batch(1)
    return lambda step: tuple(copy.copy(part) for part in held)


def cannot_learn(loop: Loop) -> None:
    """A batch that is declared fixed is not learned."""
    assert loop.declares["fixed_batch"]
    first, last = loop.seen[0].losses[0], loop.seen[-1].losses[0]
    assert last > 0.3 * first
    assert all(step.is_finite for step in loop.seen)


def build_contradiction() -> Loop:
    """Every picture is there twice, with another label each time."""
    x, y = parts.images(1)
    x[6:], y[6:] = x[:6], (y[:6] + 1) % parts.CLASSES
    return parts.conv(batch=lambda step: (x, y), declares={"fixed_batch": True})


def build_narrow() -> Loop:
    """A window's start decides nothing about its far end: the net forgets at once."""
    loop = parts.recurrent(Forgetful(), declares={"fixed_batch": True})
    x, _ = parts.waves(1)
    target = x.flip(1) + 3 * torch.randn(x.shape, generator=parts.draw(5))
    loop.batch = lambda step: (x, target)
    return loop


class Forgetful(nn.Module):
    def forward(self, h_BTD: Tensor) -> Tensor:
        return h_BTD.mean(-1, keepdim=True).expand_as(h_BTD)  # fault: one number is left


def build_slow_heart() -> Loop:
    return parts.transformer(batch=fixed(parts.tokens), lr=1e-5, declares={"fixed_batch": True})


class TwoWays(nn.Module):
    """Experts by loop and experts by einsum, chosen by a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.weight = nn.Parameter(0.3 * torch.randn(3, WIDTH, WIDTH))
        self.is_fast = True

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        if not self.is_fast:
            return torch.stack(
                [w * (self.weight[e] @ row) for w, e, row in zip(weight, chosen, x, strict=True)]
            )
        y = torch.einsum("nd,nde->ne", x, self.weight[chosen])  # fault: the matrix transposed
        return weight[:, None] * y


def ways_differ(loop: Loop) -> None:
    middle, x = loop.model.middle, torch.randn(20, WIDTH)
    fast = middle(x)
    middle.is_fast = False
    read = middle(x)
    middle.is_fast = True
    assert fast.shape == read.shape
    assert not torch.allclose(fast, read, atol=0.1)


ENTRIES = (
    slow(
        name="waits-for-disk",
        architecture="mlp",
        mechanism="data-bound",
        marker="# fault: the disk is waited for",
        story="Batches take twenty times as long as the step that uses them.",
        build=lambda: parts.mlp(batch=Reader()),
        proof=waited,
    ),
    slow(
        name="mostly-padding",
        architecture="recurrent",
        mechanism="padding-waste",
        severity="info",
        story="Batches are padded to their longest series: three quarters are padding.",
        build=lambda: parts.make_loop(parts.Recurrent(), mostly_padded, padded_loss),
        proof=is_mostly_padding,
    ),
    slow(
        name="reads-each-gradient",
        architecture="conv",
        mechanism="host-syncs",
        severity="info",
        marker="# fault: a wait for the device per number",
        story="Gradients are read number by number for a chart; each read waits for the device.",
        build=lambda: parts.conv(kind=Chatty),
        proof=reads_much,
    ),
    slow(
        name="unit-by-unit",
        architecture="recurrent",
        mechanism="tiny-kernels",
        marker="# fault: unit by unit",
        severity="info",
        story="A cell computes each of its units by a product of its own.",
        build=lambda: parts.make_loop(CellByCell(), parts.waves),
        proof=many_small,
    ),
    slow(
        name="history-rescanned",
        architecture="recurrent",
        mechanism="slower-over-time",
        marker="# fault: all of the past, each time",
        story="Steps get slower all day: the loader sorts all that it has ever served.",
        build=lambda: parts.recurrent(batch=Rescanned()),
        steps=8,
        proof=works_more,
    ),
    memory(
        name="graphs-kept",
        architecture="mlp",
        mechanism="graph-kept",
        marker="# fault: kept with its graph",
        blind=True,
        steps=8,
        story="Memory grows until none is left (a kind of question in forums): losses are added "
        "up with their graphs.",
        build=lambda: parts.mlp(kind=Remembering),
        proof=keeps_graphs,
    ),
    memory(
        name="hashes-one-hot",
        architecture="mlp",
        mechanism="shape-from-data",
        marker="# fault: as wide as the largest hash",
        severity="error",
        raises="alloc",
        story="One-hot rows of hashed words: 16 words want more than a petabyte.",
        build=build_hashes,
        proof=wants_too_much,
    ),
    memory(
        name="all-pairs",
        architecture="attention",
        mechanism="quadratic",
        marker="# fault: all pairs at once",
        severity="error",
        steps=2,
        raises="alloc",
        story="A table of all pairs of a window of 16 million points.",
        build=build_pairs,
        proof=pairs_too_many,
    ),
    heart(
        name="contradiction",
        architecture="conv",
        mechanism="labels-contradict",
        story="One batch cannot be learned by heart: each picture is in it twice, with two labels.",
        build=build_contradiction,
        proof=cannot_learn,
    ),
    heart(
        name="forgets-at-once",
        architecture="recurrent",
        mechanism="bottleneck",
        module="middle",
        marker="# fault: one number is left",
        story="One batch cannot be learned by heart: the model keeps a single number.",
        build=build_narrow,
        proof=cannot_learn,
    ),
    heart(
        name="too-slow-to-learn",
        architecture="attention",
        mechanism="lr-too-small",
        causal=True,
        story="The language model's diary: at 1e-5 one batch is not learned; it was neither depth "
        "nor length, but the rate.",
        build=build_slow_heart,
        proof=cannot_learn,
    ),
    Plant(
        name="einsum-transposed",
        severity="error",
        kind="variant-equivalence",
        architecture="moe",
        mechanism="transposed",
        module="middle",
        marker="# fault: the matrix transposed",
        story="Experts by loop and by einsum give two answers: one takes the matrix transposed.",
        build=lambda: parts.mlp(TwoWays()),
        proof=ways_differ,
    ),
)
