"""The order windows are trained and scored in.

`BatchStream` is endless and drops nothing: an epoch ends in the middle of a batch if it must. Its
order is a pure function of seed, epoch and position, so it costs no memory and resumes exactly.
`evaluation_indices` spreads a few batches evenly over a whole set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from tsx.data.meta import Ints
from tsx.data.shuffle import permute
from tsx.data.windows import Batch
from tsx.errors import DataError


class Windows(Protocol):
    """What a stream reads from; `tsx.data.windows.WindowSet` is one."""

    def __len__(self) -> int:
        """Return the number of windows."""

    def get_batch(self, indices: Ints) -> Batch:
        """Return the windows of these numbers."""


class BatchStream:
    """Training batches without end, every epoch in an order of its own.

    Args:
        windows: what batches are cut from.
        batch_size: windows a batch.
        seed: of the order.
        fixed_batches: give the first N batches again and again; 0 is off.
    """

    def __init__(
        self, windows: Windows, *, batch_size: int, seed: int, fixed_batches: int = 0
    ) -> None:
        if len(windows) == 0:
            raise DataError("no window to train on")
        self._windows = windows
        self._batch_size = batch_size
        self._seed = seed
        self._fixed_batches = fixed_batches
        self._position = 0

    def next_batch(self) -> Batch:
        """Return the next batch."""
        batch = self.get_batch(self._position)
        self._position += 1
        return batch

    @property
    def position(self) -> int:
        """Number of batches that were given; that of the next one."""
        return self._position

    def get_batch(self, position: int) -> Batch:
        """Return the batch at a position, the first being 0; the next one stays the same."""
        return self._windows.get_batch(self.get_indices(position))

    def get_indices(self, position: int) -> Ints:
        """Return the window numbers of the batch at a position, the first being 0."""
        if self._fixed_batches:
            position %= self._fixed_batches
        size = len(self._windows)
        sample_B = position * self._batch_size + np.arange(self._batch_size, dtype=np.int64)
        return permute(sample_B % size, sample_B // size, size=size, seed=self._seed)

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes to go on from here, as plain JSON data."""
        return {"position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            DataError: the state is of another stream (windows, batch size, seed or fixed
                batches differ), or is no state at all.
        """
        for key, own in self._identity().items():
            if state.get(key) != own:
                raise DataError(
                    f"the saved data position has {key}={state.get(key)!r}, this run has {own!r}: "
                    "the same batches cannot follow"
                )
        position = state.get("position")
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise DataError(f"the saved data position is {position!r}; expected a count of batches")
        self._position = position

    def _identity(self) -> dict[str, int]:
        return {
            "num_windows": len(self._windows),
            "batch_size": self._batch_size,
            "seed": self._seed,
            "fixed_batches": self._fixed_batches,
        }


def evaluation_indices(num_windows: int, batch_size: int, max_batches: int = 0) -> Iterator[Ints]:
    """Yield the window numbers of each evaluation batch, the same every time.

    Numbers rise in even steps over the whole set, so a few batches see early and late series of
    every sizeable domain. The last batch may be short.

    Args:
        num_windows: of the set.
        batch_size: windows a batch.
        max_batches: at most so many batches; 0 is every window.
    """
    taken = min(num_windows, batch_size * max_batches) if max_batches else num_windows
    for start in range(0, taken, batch_size):
        order = np.arange(start, min(start + batch_size, taken), dtype=np.int64)
        yield (2 * order + 1) * num_windows // (2 * taken)
