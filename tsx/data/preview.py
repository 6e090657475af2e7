"""The training batch that a run would take at a position, with where each window comes from.

Made by the very stream that training reads, so it is that batch bit for bit.

Shapes: B windows, C context.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsx.config import RunConfig
from tsx.data.corpus import open_corpus
from tsx.data.stream import BatchStream
from tsx.data.windows import Batch, Origin


@dataclass(frozen=True)
class BatchPreview:
    """A batch, and whether its targets are its inputs one point later."""

    number: int
    seed: int
    num_windows: int  # of the training set
    batch: Batch
    origins: tuple[Origin, ...]
    num_compared: int  # places where input t + 1 and target t are both points
    num_unequal: int  # of those, or where one mask says otherwise than the other


def preview_batch(config: RunConfig, number: int, *, home: Path) -> BatchPreview:
    """Return batch `number` of training, the first being 0.

    Raises:
        DataError: as `open_corpus` and `WindowSet.get_batch`.
    """
    corpus = open_corpus(config.data, home=home, patch_len=config.model.patch_len)
    train = config.train
    stream = BatchStream(
        corpus.train,
        batch_size=train.batch_size,
        seed=train.seed,
        fixed_batches=train.fixed_batches,
    )
    indices = stream.get_indices(number)
    batch = corpus.train.get_batch(indices)
    compared, unequal = count_shift(batch)
    return BatchPreview(
        number=number,
        seed=train.seed,
        num_windows=len(corpus.train),
        batch=batch,
        origins=tuple(corpus.train.list_origins(indices)),
        num_compared=compared,
        num_unequal=unequal,
    )


def count_shift(batch: Batch) -> tuple[int, int]:
    """Return at how many places input t + 1 and target t can be compared, and differ."""
    later, target = batch.input_BC[:, 1:], batch.target_BC[:, :-1]
    later_mask, target_mask = batch.input_mask_BC[:, 1:], batch.target_mask_BC[:, :-1]
    both = later_mask & target_mask
    unequal = (both & (later != target)) | (later_mask != target_mask)
    return int(both.sum()), int(np.count_nonzero(unequal))
