"""Can this model learn one batch by heart? Pure: losses and facts in, a verdict out.

One batch that is repeated must be learned, whatever the model is good for: a loss that stays up
has a cause that more data would only hide. See `tsx.diagnostics.loss.overfit` for who asks.

Shapes: N samples, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tsx.config import RunConfig

LEARNED = 0.05  # of the first loss: what the recipe overfit reaches twice over
STUCK = 0.3  # of the first loss: nobody would call that learned
MIN_STEPS = 40  # below, a small rate and a short run look alike
FALLING = 0.1  # share that the last fifth is below the one before: it is on its way
MAX_SAMPLES = 512  # that are compared with each other
RICH, POOR = 4, 2  # directions that go into a module and that come out where it is a bottleneck
NEGLIGIBLE = 1e-4  # of the largest singular value
MAX_ROWS = 256  # whose directions are counted


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the losses say.

    Attributes:
        is_learned: the batch was learned by heart.
        is_short: there were too few steps to tell.
        is_stuck: the loss is high still, and not on its way down.
        step: the first with a loss that low; of the last where there is none.
        first: loss.
        last: the median of the last five.
    """

    is_learned: bool
    is_short: bool
    is_stuck: bool
    step: int
    first: float
    last: float


def judge(losses: Sequence[float]) -> Verdict | None:
    """Return the verdict on a loss per step; None where they are no losses that end at 0."""
    if not losses or not all(map(math.isfinite, losses)) or losses[0] <= 0 or min(losses) < 0:
        return None
    first, last = losses[0], median(losses[-5:])
    low = next((step for step, loss in enumerate(losses, 1) if loss <= LEARNED * first), 0)
    fifth = max(len(losses) // 5, 1)
    before, end = fmean(losses[-2 * fifth : -fifth] or losses), fmean(losses[-fifth:])
    is_learned = last <= LEARNED * first
    return Verdict(
        is_learned=is_learned,
        is_short=len(losses) < MIN_STEPS,
        is_stuck=not is_learned and last > STUCK * first and end > (1 - FALLING) * before,
        step=low if is_learned else len(losses),
        first=first,
        last=last,
    )


def find_contradictions(inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> list[list[int]]:
    """Return pairs of samples whose inputs are equal and whose targets are not.

    Args:
        inputs: with one length along their first axis; all of them make a sample.
        targets: likewise.
    """
    if not inputs or not targets:
        return []
    count = min(len(tensor) if tensor.ndim else 0 for tensor in (*inputs, *targets))
    seen: dict[bytes, int] = {}
    pairs = []
    for index in range(min(count, MAX_SAMPLES)):
        first = seen.setdefault(_read_sample(inputs, index), index)
        if first != index and _read_sample(targets, first) != _read_sample(targets, index):
            pairs.append([first, index])
    return pairs


def count_directions(values: Tensor) -> int:
    """Return the rank of values [..., D] over their rows, the mean taken away: what they can tell.

    Rows beyond `MAX_ROWS` are left out; 0 where nothing varies, or is not finite.
    """
    rows_ND = values.detach().float().reshape(-1, values.shape[-1])[:MAX_ROWS]
    rows_ND = rows_ND - rows_ND.mean(0)
    if not rows_ND.isfinite().all() or not rows_ND.any():
        return 0
    sizes = torch.linalg.svdvals(rows_ND)
    return int((sizes > NEGLIGIBLE * sizes[0]).sum())


def is_bottleneck(given: int, made: int, width: int) -> bool:
    """Return whether a module of an output `width` wide lets nearly nothing through."""
    return given >= RICH and made < POOR and width >= RICH


def list_rungs(config: RunConfig | None, *, lr: float) -> list[str]:
    """Return what to try next, the simplest model first: depth 1, one short window, a larger rate.

    Commands where the run is one of a recipe, sentences elsewhere.
    """
    if config is None:
        return [
            "one layer",
            "one short length for all samples",
            f"a learning rate of {10 * lr:.0e}",
        ]
    settings = []
    if config.model.num_layers > 1:
        settings.append("model.num_layers=1")
    short = max(config.data.context_length // 4, 2 * max(config.model.horizons))
    short -= short % config.model.patch_len
    if 0 < short < config.data.context_length:
        settings.append(f"data.context_length={short}")
    settings.append(f"optim.lr={10 * lr:.0e}")
    return [f"tsx run overfit --set {setting}" for setting in settings]


def split_batch(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs and the targets of a call: of several tensors the last is the target.

    Names that begin with "target" decide where there are any.
    """
    named = [tensor for name, tensor in tensors.items() if name.startswith("target")]
    if named:
        rest = [tensor for name, tensor in tensors.items() if not name.startswith("target")]
        return [tensor for tensor in rest if tensor.ndim], named
    values = [tensor for tensor in tensors.values() if tensor.ndim]
    return values[:-1], values[-1:]


def _read_sample(tensors: Sequence[Tensor], index: int) -> bytes:
    """Return what makes one sample, comparable."""
    parts = (tensor[index].detach().cpu().contiguous().reshape(-1) for tensor in tensors)
    return b"|".join(part.view(torch.uint8).numpy().tobytes() for part in parts)
