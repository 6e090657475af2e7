"""Out of memory, under its many names, as one error that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tsx.config import RunConfig
from tsx.errors import OutOfMemory

# A host without memory is a plain RuntimeError of torch's CPU allocator; MPS has no class either.
SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "MPS backend out of memory")


@contextmanager
def explain_out_of_memory(config: RunConfig) -> Iterator[None]:
    """Turn any out-of-memory error of the device or the host into `OutOfMemory`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _explain(error, config) from error
    except RuntimeError as error:
        if any(sign in str(error) for sign in SIGNS):
            raise _explain(error, config) from error
        raise


def _explain(error: BaseException, config: RunConfig) -> OutOfMemory:
    lines = str(error).strip().splitlines()
    train = config.train
    smaller = max(1, train.batch_size // 2)
    return OutOfMemory(
        f"out of memory with [train] batch_size={train.batch_size}, "
        f"[data] context_length={config.data.context_length}: "
        f"{lines[0] if lines else type(error).__name__}",
        next_command=f"--set train.batch_size={smaller} "
        f"--set train.grad_accum_steps={2 * train.grad_accum_steps}"
        if train.batch_size > 1
        else "--set data.context_length=N  (a shorter one)",
    )
