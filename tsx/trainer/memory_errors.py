"""Out of memory, under its many names, as one error that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tsx.config import RunConfig
from tsx.errors import OutOfMemory
from tsx.model.size import count_params
from tsx.perf.memory import GIB, read_capacity_gib

# A host without memory is a plain RuntimeError of torch's CPU allocator; MPS has no class either.
SIGNS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "MPS backend out of memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, whose scratch space is memory too
    "could not create a memory object",
)


# fp32 weights, gradients and the two moments of AdamW; activations come on top.
BYTES_PER_PARAM = 16


def check_capacity(config: RunConfig, device: torch.device) -> None:
    """Refuse a model whose weights and their training state no memory here could ever hold.

    Without this a model of absurd size is built for minutes, or until the host swaps, before the
    allocator gives up. A `perf.memory_budget_gib` is all the memory there is.

    Raises:
        OutOfMemory: names the size, the memory there is and the keys that decide it.
    """
    total = count_params(config.model).total
    needed, capacity = total * BYTES_PER_PARAM / GIB, read_capacity_gib(device)
    place, budget = device.type, config.perf.memory_budget_gib
    if budget is not None and budget < capacity:
        capacity, place = budget, f"[perf] memory_budget_gib={budget:g} on {device.type}"
    if needed > capacity:
        model = config.model
        raise OutOfMemory(
            f"[model] hidden_size={model.hidden_size}, num_layers={model.num_layers}, "
            f"num_experts={model.num_experts}: {total:,} parameters need {needed:,.1f} GiB to "
            f"train, {place} has {capacity:,.1f} GiB",
            next_command="--set model.hidden_size=N  (a smaller one), or fewer layers or experts",
        )


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
    budget = config.perf.memory_budget_gib
    limit = "" if budget is None else f" and [perf] memory_budget_gib={budget:g}"
    return OutOfMemory(
        f"out of memory with [train] batch_size={train.batch_size}, "
        f"[data] context_length={config.data.context_length}{limit}: "
        f"{lines[0] if lines else type(error).__name__}",
        next_command=f"--set train.batch_size={smaller} "
        f"--set train.grad_accum_steps={2 * train.grad_accum_steps}"
        if train.batch_size > 1
        else "--set data.context_length=N  (a shorter one)",
    )
