"""The same batch again: workers, epochs, iterators and noise that repeat themselves."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.faults import parts
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import equal_batches

repeated = partial(Plant, kind="repeated-data", steps=12)


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
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

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
        story="An epoch of a stream is twice as long as its data (a kind of question about "
        "streams with workers): each worker reads all of it.",
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
