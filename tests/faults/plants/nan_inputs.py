"""What is not finite comes from outside the forward pass: batches, targets, weights, buffers.

No line of the model makes it, so no line is guilty; the module is the one that holds it.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import at_step
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import find_parameter, shows_at_last_step

nan = partial(Plant, kind="nan-origin", severity="error")


def guilty_samples(*samples: int, part: int = 0):
    """Return a proof that exactly these samples of the last batch are not finite."""

    def proof(loop: Loop) -> None:
        shows_at_last_step(loop)
        value = loop.seen[-1].batches[0][part]
        bad = [not bool(sample.isfinite().all()) for sample in value]
        assert [index for index, is_bad in enumerate(bad) if is_bad] == list(samples)

    return proof


def build_dead_pixel() -> Loop:
    def spoil(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[7, 0, 2, 3] = torch.nan
        return x, y

    return parts.conv(batch=at_step(3, spoil, parts.images))


def build_sensor_gap() -> Loop:
    def spoil(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[1, 4:6] = torch.nan
        x[4, 0] = torch.inf
        return x, y

    return parts.recurrent(batch=at_step(4, spoil, parts.waves))


def build_missing_target() -> Loop:
    def spoil(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y[5] = torch.nan
        return x, y

    return parts.mlp(batch=at_step(2, spoil, parts.rows))


def build_division_in_loader() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        low, high = y.amin(1, keepdim=True), y.amax(1, keepdim=True)
        if step == 3:
            low[2] = high[2]  # a flat window: the loader scales by its range
        return x, (y - low) / (high - low)

    return parts.recurrent(batch=batch)


def build_damaged_embedding() -> Loop:
    """A row of a loaded checkpoint is NaN; it is met when its token comes."""
    model = parts.Transformer()
    with torch.no_grad():
        model.embed.weight[10] = torch.nan

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.tokens(step)
        x = x.clamp(max=9)
        if step == 3:
            x[2, 5] = 10
        return x, y.clamp(max=9)

    # Rows of tokens that do not come keep out of it: no weight decay, sparse in effect.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return parts.make_loop(model, batch, parts.classify, optimizer=optimizer)


def damaged_row(loop: Loop) -> None:
    shows_at_last_step(loop)
    bad = ~loop.initial["embed.weight"].isfinite().all(1)
    assert bad.nonzero().flatten().tolist() == [10]
    assert all(bool(batch[0].ge(0).all()) for step in loop.seen for batch in step.batches)


class Positions(nn.Module):
    """A table of positions, longer than it was filled."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(16, parts.WIDTH)
        table[10:] = torch.nan  # memory that was never written
        self.register_buffer("table", table)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.table[: x_BTD.shape[1]]


def build_unwritten_table() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        return parts.waves(step, length=12 if step == 3 else 9)

    return parts.recurrent(Positions(), batch=batch)


def unwritten(loop: Loop) -> None:
    shows_at_last_step(loop)
    table = find_parameter(loop, "middle.table")
    assert table[:10].isfinite().all()
    assert not table[10:].isfinite().any()


class RunningScale(nn.Module):
    """Keeps the running mean of what is lit and divides by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            lit = x.detach() > 0
            self.mean.lerp_((x.detach() * lit).sum() / lit.sum(), 0.1)  # fault: nothing is lit
        return x / self.mean


class Lit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = RunningScale()
        self.net = parts.ConvNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.scale(x))


def build_running_scale() -> Loop:
    def dark(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return -x.abs(), y

    return parts.make_loop(Lit(), at_step(2, dark, parts.images), parts.classify)


def lost_mean(loop: Loop) -> None:
    shows_at_last_step(loop)
    assert find_parameter(loop, "scale.mean").isnan()
    assert loop.seen[-1].batches[0][0].isfinite().all()


class Unrolled(nn.Module):
    """A plain recurrent cell with a rectifier: nothing bounds its states."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(1, parts.WIDTH)
        self.turn = nn.Linear(parts.WIDTH, parts.WIDTH, bias=False)
        self.leave = nn.Linear(parts.WIDTH, 1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        state, out = 0.0, []
        for t in range(x_BTF.shape[1]):
            state = F.relu(self.enter(x_BTF[:, t]) + (self.turn(state) if t else 0.0))
            out.append(self.leave(state))
        return torch.stack(out, 1)


def build_exploding_rnn() -> Loop:
    model = Unrolled()
    return parts.make_loop(
        model, parts.waves, optimizer=torch.optim.SGD(model.parameters(), lr=2.0)
    )


def build_exploding_mlp() -> Loop:
    model = parts.Mlp()
    return parts.make_loop(model, parts.rows, optimizer=torch.optim.SGD(model.parameters(), lr=5.0))


def exploded(loop: Loop) -> None:
    """Losses grow without bound until one is not finite; no batch is."""
    shows_at_last_step(loop)
    assert max(loop.seen[-2].losses) > 1e4 * loop.seen[0].losses[0]
    for step in loop.seen:
        assert all(bool(value.isfinite().all()) for value in step.batches[0])


ENTRIES = (
    nan(
        name="dead-pixel",
        architecture="conv",
        mechanism="bad-batch",
        story="One picture of the batch, sample 7, holds a NaN pixel.",
        build=build_dead_pixel,
        proof=guilty_samples(7),
    ),
    nan(
        name="sensor-gap",
        architecture="recurrent",
        mechanism="bad-batch",
        steps=4,
        story="Two series of the batch have gaps, written as NaN and as inf: samples 1 and 4.",
        build=build_sensor_gap,
        proof=guilty_samples(1, 4),
    ),
    nan(
        name="missing-target",
        architecture="mlp",
        mechanism="bad-target",
        steps=2,
        story="The input is whole; the target of sample 5 is missing.",
        build=build_missing_target,
        proof=guilty_samples(5, part=1),
    ),
    nan(
        name="flat-target",
        architecture="recurrent",
        mechanism="bad-target",
        also=("division-by-zero",),
        story="The loader scales targets by their range; a flat window has none, 0 / 0.",
        build=build_division_in_loader,
        proof=guilty_samples(2, part=1),
    ),
    nan(
        name="damaged-embedding",
        architecture="attention",
        mechanism="bad-parameter",
        module="embed",
        blind=True,
        story="Fine-tuning is fine until a rare token comes (a kind of report after a vocabulary "
        "was resized): its row of the loaded embedding is NaN.",
        build=build_damaged_embedding,
        proof=damaged_row,
    ),
    nan(
        name="unwritten-table",
        architecture="recurrent",
        mechanism="bad-buffer",
        module="middle",
        story="A table of positions was filled for 10 steps only; the first longer window reads "
        "what was never written.",
        build=build_unwritten_table,
        proof=unwritten,
    ),
    nan(
        name="running-scale",
        architecture="conv",
        mechanism="bad-buffer",
        also=("division-by-zero", "empty-reduction"),
        module="scale",
        marker="# fault: nothing is lit",
        steps=2,
        story="A running mean takes in the mean of an empty selection, 0 / 0, and spoils each "
        "batch from then on: the weights are whole, the buffer is not.",
        build=build_running_scale,
        proof=lost_mean,
    ),
    nan(
        name="exploding-states",
        architecture="recurrent",
        mechanism="exploding-weights",
        module="leave",
        steps=4,
        story="A recurrent net without clipping: weights grow at each step until a product "
        "overflows.",
        build=build_exploding_rnn,
        proof=exploded,
    ),
    nan(
        name="exploding-weights",
        architecture="mlp",
        mechanism="exploding-weights",
        steps=5,
        story="A learning rate of 5: each step overshoots further than the last.",
        build=build_exploding_mlp,
        proof=exploded,
    ),
)
