"""What is served: targets of another time, batches that say nothing, the same batch again."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.faults import parts
from tests.faults.parts import at_step
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import equal_batches

shift = partial(Plant, kind="target-shift", causal=True)
quality = partial(Plant, kind="data-quality")
repeated = partial(Plant, kind="repeated-data", steps=12)


def is_shifted_by(lag: int):
    """Return a proof that target t is input t + lag (1 is right) and no other."""

    def proof(loop: Loop) -> None:
        found = set()
        for step in loop.seen:
            x, y = (value.squeeze(-1) for value in step.batches[0][:2])
            size = x.shape[1]
            for s in range(-2, 4):
                xs = x[:, max(s, 0) : size + min(s, 0)]
                ys = y[:, max(-s, 0) : size - max(s, 0)]
                if torch.equal(xs, ys):
                    found.add(s)
        assert found == {lag}

    return proof


def build_unshifted() -> Loop:
    return parts.transformer(batch=lambda step: (parts.tokens(step)[0],) * 2)


def build_shifted_twice() -> Loop:
    """The loader shifts, and the loss shifts again."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.tokens(step)
        return x[:, :-1], y[:, 1:]  # what the loss comes to: token t + 2

    return parts.transformer(batch=batch)


def build_past() -> Loop:
    """The two slices of a window are taken the wrong way round."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        return y, x

    return parts.recurrent(batch=batch)


def build_constant() -> Loop:
    def flat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[1:5], y[1:5] = 0.7, 0.7
        return x, y

    return parts.recurrent(batch=at_step(3, flat, parts.waves))


def mostly_constant(loop: Loop) -> None:
    x = loop.seen[-1].batches[0][0]
    assert (x.amax(1) == x.amin(1)).sum() == 4


def build_sentinel() -> Loop:
    """Missing readings are written as -9999."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        x[:, 3::7], y[:, 2::7] = -9999.0, -9999.0
        return x, y

    return parts.recurrent(batch=batch)


def has_sentinels(loop: Loop) -> None:
    for step in loop.seen:
        x = step.batches[0][0]
        assert (x == -9999.0).float().mean() > 0.1
        assert x[x != -9999.0].abs().max() < 2.0
        assert step.losses[0] > 1e6


def build_huge() -> Loop:
    """Pixels of 0 .. 65535 are not scaled."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.images(step)
        return x * 20000.0 + 30000.0, y

    return parts.conv(batch=batch)


def is_huge(loop: Loop) -> None:
    assert all(step.batches[0][0].abs().mean() > 1e4 for step in loop.seen)
    assert loop.seen[0].losses[0] > 100


PAD = 0


def padded_tokens(step: int) -> tuple[Tensor, Tensor]:
    """Return tokens most of which are padding."""
    x, y = parts.tokens(step)
    y[:, 3:], x[:, 4:] = PAD, PAD
    return x, y


def padding_is_trained(loop: Loop) -> None:
    for step in loop.seen:
        y = step.batches[0][1]
        assert (y == PAD).float().mean() > 0.6
        assert not (y == -100).any()


def build_all_padding() -> Loop:
    def empty(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[2:], y[2:] = PAD, PAD
        return x, y

    return parts.transformer(batch=at_step(2, empty, parts.tokens))


def mostly_padding(loop: Loop) -> None:
    x = loop.seen[-1].batches[0][0]
    assert x.eq(PAD).all(1).sum() == 4


def masked_by_value(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(torch.nan_to_num(x)), torch.nan_to_num(y))  # fault: gaps become zeros


def build_gaps() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        gap = torch.rand(x.shape, generator=parts.draw(step)) < 0.3
        return x.masked_fill(gap, torch.nan), y.masked_fill(gap, torch.nan)

    return parts.make_loop(parts.Recurrent(), batch, masked_by_value)


def has_gaps(loop: Loop) -> None:
    assert all(step.is_finite for step in loop.seen)
    assert all(step.batches[0][1].isnan().float().mean() > 0.2 for step in loop.seen)


class Noisy(Dataset):
    """Rows with noise from a generator of the data set's own."""

    def __init__(self) -> None:
        self.x, self.y = parts.rows(0, size=64)
        self.generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.from_numpy(self.generator.normal(size=6)).float()
        return noise, self.y[index]  # the noise is the input, as in a generator's training


class CopiedWorkers:
    """What workers do: each has a copy of the data set, made anew each epoch."""

    def __init__(self, workers: int = 2, per_epoch: int = 4, size: int = 8) -> None:
        self.source, self.workers = Noisy(), workers
        self.per_epoch, self.size = per_epoch, size

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        number = (step - 1) % self.per_epoch
        if number == 0:
            self.copies = [copy.deepcopy(self.source) for _ in range(self.workers)]
        data = self.copies[number % self.workers]
        items = [data[self.size * number + i] for i in range(self.size)]
        return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


def same_noise_in_workers(loop: Loop) -> None:
    """Batches 1 and 2 hold the same noise with other labels, and so do epochs."""
    x = [step.batches[0][0] for step in loop.seen]
    y = [step.batches[0][1] for step in loop.seen]
    assert torch.equal(x[0], x[1])
    assert not torch.equal(y[0], y[1])
    assert torch.equal(x[0], x[4])
    assert not torch.equal(x[0], x[2])


def serve_unshuffled(step: int) -> tuple[Tensor, Tensor]:
    """Four batches in an order that no epoch changes: a sampler that is not told the epoch."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    x, y = parts.rows(0, size=64)
    chosen = order.view(4, 16)[(step - 1) % 4]
    return x[chosen], y[chosen]


def epochs_are_equal(loop: Loop) -> None:
    batches = [step.batches[0] for step in loop.seen]
    assert all(equal_batches(batches[i], batches[i + 4]) for i in range(8))
    assert not equal_batches(batches[0], batches[1])


def build_first_again() -> Loop:
    """next(iter(loader)) in each step."""
    x, y = parts.rows(0, size=64)
    loader = DataLoader(list(zip(x, y, strict=True)), batch_size=16)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = next(iter(loader))  # fault: a new iterator each step
        return x, y

    return parts.mlp(batch=batch)


def always_the_same(loop: Loop) -> None:
    first = loop.seen[0].batches[0]
    assert all(equal_batches(first, step.batches[0]) for step in loop.seen)
    assert "fixed_batch" not in loop.declares


def serve_undivided(step: int) -> tuple[Tensor, Tensor]:
    """Two workers read the same stream from its start: each batch comes twice."""
    return parts.waves((step + 1) // 2)


def each_comes_twice(loop: Loop) -> None:
    batches = [step.batches[0] for step in loop.seen]
    assert all(equal_batches(batches[i], batches[i + 1]) for i in range(0, 12, 2))
    assert not equal_batches(batches[0], batches[2])


def denoising_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    torch.manual_seed(0)  # fault: the same noise each step
    noise = torch.randn_like(x)
    return F.mse_loss(model(x + noise), noise)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def noise_is_equal(loop: Loop) -> None:
    """After each loss the generator is where it was after the first one."""
    states = []
    for step in (20, 21):
        torch.manual_seed(step)
        loop.loss(*loop.batch(step))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


ENTRIES = (
    shift(
        name="unshifted-target",
        architecture="attention",
        mechanism="lag-zero",
        story="Targets are the inputs: the loss goes to 0 by copying.",
        build=build_unshifted,
        proof=is_shifted_by(0),
    ),
    shift(
        name="shifted-twice",
        architecture="attention",
        mechanism="lag-two",
        blind=True,
        story="A model learns to skip a token (a kind of report where a library's loss shifts "
        "labels by itself): loader and loss both shift.",
        build=build_shifted_twice,
        proof=is_shifted_by(2),
    ),
    shift(
        name="target-in-the-past",
        architecture="recurrent",
        mechanism="lag-minus-one",
        story="The slices of input and target are swapped: the target is the point before.",
        build=build_past,
        proof=is_shifted_by(-1),
    ),
    quality(
        name="constant-windows",
        architecture="recurrent",
        mechanism="constant",
        story="Four of six windows of a batch do not move at all: a sensor that is stuck.",
        build=build_constant,
        proof=mostly_constant,
    ),
    quality(
        name="sentinel",
        architecture="recurrent",
        mechanism="sentinel-value",
        blind=True,
        story="The loss is about 1e7 and falls slowly (a kind of report about weather data): "
        "missing readings are the number -9999.",
        build=build_sentinel,
        proof=has_sentinels,
    ),
    quality(
        name="unscaled-pixels",
        architecture="conv",
        mechanism="huge-values",
        story="Pixels of 16 bits go in as they are; the first loss is above 100.",
        build=build_huge,
        proof=is_huge,
    ),
    quality(
        name="padding-trained",
        architecture="attention",
        mechanism="loss-on-padding",
        causal=True,
        story="Two thirds of the labels are padding, and the loss counts them: it is low because "
        "padding is easy.",
        build=lambda: parts.transformer(batch=padded_tokens),
        proof=padding_is_trained,
    ),
    quality(
        name="all-padding",
        architecture="attention",
        mechanism="all-padding",
        steps=2,
        causal=True,
        story="Four of six windows are padding alone.",
        build=build_all_padding,
        proof=mostly_padding,
    ),
    quality(
        name="gaps-become-zeros",
        architecture="recurrent",
        mechanism="nonfinite-replaced",
        marker="# fault: gaps become zeros",
        story="A third of the readings are NaN, and the loss turns them into zeros that are "
        "trained on.",
        build=build_gaps,
        proof=has_gaps,
    ),
    repeated(
        name="workers-share-noise",
        architecture="mlp",
        mechanism="worker-seed",
        blind=True,
        story="Augmentation is the same in every worker and in every epoch (a kind of report "
        "against loaders, as pytorch/pytorch 5059): each worker has a copy of one generator.",
        build=lambda: parts.mlp(batch=CopiedWorkers()),
        proof=same_noise_in_workers,
    ),
    repeated(
        name="epoch-never-set",
        architecture="mlp",
        mechanism="sampler-epoch",
        blind=True,
        severity="info",
        story="Each epoch has the same batches in the same order (a kind of report against "
        "distributed training, as pytorch/pytorch 31771): the sampler is never told the epoch.",
        build=lambda: parts.mlp(batch=serve_unshuffled),
        proof=epochs_are_equal,
    ),
    repeated(
        name="first-batch-again",
        architecture="mlp",
        mechanism="iterator-restarted",
        marker="# fault: a new iterator each step",
        blind=True,
        story="Training loss is perfect, validation is not (a kind of question in forums): each "
        "step takes the first batch of a new iterator.",
        build=build_first_again,
        proof=always_the_same,
    ),
    repeated(
        name="stream-not-divided",
        architecture="recurrent",
        mechanism="stream-not-sharded",
        blind=True,
        story="An epoch of a stream is twice as long as its data (a kind of report about streams "
        "with workers, as pytorch/pytorch 41329): each worker reads all of it.",
        build=lambda: parts.recurrent(batch=serve_undivided),
        proof=each_comes_twice,
    ),
    repeated(
        name="noise-seeded-each-step",
        architecture="conv",
        mechanism="reseeded",
        marker="# fault: the same noise each step",
        story="A denoiser seeds the generator in its loss, for the sake of comparison: it only "
        "ever sees one noise.",
        build=lambda: parts.make_loop(Denoiser(), parts.images, denoising_loss),
        proof=noise_is_equal,
    ),
)
