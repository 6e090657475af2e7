"""Which series are held out for validation: whole series, chosen by name and number.

A series is held out when the hash of its data set's name and its own number falls under the
share asked for. The choice knows neither the training seed nor the other series, so it stays the
same when the corpus grows. Only where the share selects none of two or more series, or all of
them, one series is moved: the one nearest to the border.

Shapes: S series of one data set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsx.data.meta import Floats
from tsx.data.scaling import Mask
from tsx.data.shuffle import Words, hash_name, mix


def hold_out(names: Sequence[str], eligible: Sequence[Mask], share: float) -> list[Mask]:
    """Return a mask of the held-out series for each data set.

    Args:
        names: of the data sets; a copy of a data set takes the name of its original, so that
            the two never end up on different sides.
        eligible: for each data set, which series give any window at all.
        share: of the series to hold out; 0 holds out none.
    """
    draws = [_draw(name, len(mask)) for name, mask in zip(names, eligible, strict=True)]
    held = [mask & (draw_S < share) for draw_S, mask in zip(draws, eligible, strict=True)]
    num_eligible = sum(int(mask.sum()) for mask in eligible)
    num_held = sum(int(mask.sum()) for mask in held)
    if share > 0 and num_eligible > 1:
        if num_held == 0:
            _move(draws, eligible, held, to_validation=True)
        elif num_held == num_eligible:
            _move(draws, eligible, held, to_validation=False)
    elif num_held:
        held = [np.zeros_like(mask) for mask in held]
    return held


def _draw(name: str, count: int) -> Floats:
    """Return a number in [0, 1) for each series of a data set."""
    key = mix(np.full(1, hash_name(name), np.uint64))
    number_S: Words = np.arange(count, dtype=np.uint64)
    words = mix(key + number_S)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _move(
    draws: Sequence[Floats], eligible: Sequence[Mask], held: list[Mask], *, to_validation: bool
) -> None:
    """Hold out the series with the lowest draw, or give back the one with the highest."""
    sign = 1.0 if to_validation else -1.0
    ranks = [np.where(mask, sign * draw, 2.0) for draw, mask in zip(draws, eligible, strict=True)]
    part = min(range(len(ranks)), key=lambda index: ranks[index].min(initial=2.0))
    held[part][int(ranks[part].argmin())] = to_validation
