"""Spikes of a loss: one value that leaps over its recent level. Pure; standard library only.

A leap is judged in logarithms, because a loss falls by factors: against the median of the last
few values, with the noise of the last `WINDOW` ones. The noise is the median absolute change from
value to value, which a falling or cycling loss does not inflate as a spread around a median would
be. Where any of these values is not positive (a likelihood of densities), differences stand in for
factors. The same judge serves recorded curves and a run under way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from tsx.curves.levels import SIGMA_PER_MAD, find_median

WINDOW = 64  # values that tell the noise, and within which a spike must come back
_NEAR = 8  # values that tell the level: few, so that a falling loss is not held against its past
_FEW = 32  # values below which the noise is not known well
_FEWEST = 5  # values below which nothing is said
_JUMP = math.log(1.5)  # smaller leaps come and go in healthy runs
_JUMP_OF_FEW = math.log(3.0)  # with little history only what no noise would do
_NOISES = 10.0  # of the noise: 64 values know it to a tenth, and batches differ
_LARGER = 1.25  # than any rise before it in the window: what comes often is no spike
_QUICK = math.sqrt(1.5)  # a leap is that much above the last few values, at least
_BACK = 2  # values in a row at the old level that end a spike


@dataclass(slots=True)
class Spike:
    """A loss that leapt. `ratio` is peak over level, NaN where either is not positive."""

    step: int
    value: float
    level: float  # median of the values right before it
    ratio: float
    noises: float  # height over the level, in units of the noise
    peak: float
    recovered_step: int | None = None  # first step at the old level again
    points_after: int = 0  # values seen since


class SpikeWatch:
    """Told each value of a loss in turn, says when one leaps, and whether the loss comes back.

    Values that are not finite are left out. A spike that has not come back within `WINDOW` values
    is the new level from then on.
    """

    def __init__(self) -> None:
        self.spikes: list[Spike] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._near: deque[float] = deque(maxlen=_NEAR)  # the last of them
        self._open: Spike | None = None
        self._since: list[float] = []  # values since the open spike began
        self._back_at = 0.0  # at or below it the open spike is over
        self._back_steps: list[int] = []

    @property
    def num_known(self) -> int:
        """Values that the next one would be judged against."""
        return len(self._recent)

    def push(self, step: int, value: float) -> Spike | None:
        """Take the value of a step; return the spike that begins with it, if one does."""
        if not math.isfinite(value):
            return None
        if self._open is not None:
            self._follow(self._open, step, value)
            return None
        # Most values are no leap at a glance, and this is asked at every step of a run.
        is_quiet = len(self._recent) < _FEWEST or 0 < value <= _QUICK * max(self._near)
        leap = None if is_quiet else _judge(self._recent, value)
        if leap is None:
            self._recent.append(value)
            self._near.append(value)
            return None
        level, noises, self._back_at = leap
        ratio = value / level if min(value, level) > 0 else math.nan
        spike = Spike(step, value, level, ratio, noises, value)
        self.spikes.append(spike)
        self._open, self._since, self._back_steps = spike, [value], []
        return spike

    def _follow(self, spike: Spike, step: int, value: float) -> None:
        """Take a value after a spike; end it where the loss is back, or stays."""
        spike.points_after += 1
        self._since.append(value)
        if value > spike.peak:
            spike.peak = value
            spike.ratio = value / spike.level if spike.level > 0 else math.nan
        self._back_steps = [*self._back_steps, step] if value <= self._back_at else []
        if len(self._back_steps) == _BACK:
            spike.recovered_step = self._back_steps[0]
            self._go_on(self._since[-_BACK:])
        elif spike.points_after >= WINDOW:
            self._go_on(self._since[-WINDOW:])

    def _go_on(self, values: list[float]) -> None:
        """End the open spike; the level is that of these values too."""
        self._recent.extend(values)
        self._near.extend(values)
        self._open = None


def find_spikes(steps: Iterable[int], values: Iterable[float]) -> list[Spike]:
    """Return the spikes of a curve in step order."""
    watch = SpikeWatch()
    push = watch.push
    for step, value in zip(steps, values, strict=True):
        push(step, value)
    return watch.spikes


def is_steep(largest: Sequence[float], index: int) -> bool:
    """Return whether a stretch of a curve may hold a spike, by the largest values of stretches.

    Of neighbouring stretches of `WINDOW` points each. A spike stands out by `_NOISES` of the noise
    over single points, whose largest of 64 lies about 2.4 above their median: by most of that it
    stands out over the largest values of the two stretches before it as well.
    """
    if index < 2:
        return True
    here, before = largest[index], min(largest[index - 2 : index])
    if before <= 0:
        return here > before
    changes = [abs(b - a) for a, b in pairwise(islice(largest, max(index - 17, 0), index))]
    usual = math.log1p(SIGMA_PER_MAD * find_median(changes) / before)
    return math.log(here / before) > max(_JUMP / 2, 3.0 * usual) if here > before else False


def _judge(recent: Iterable[float], value: float) -> tuple[float, float, float] | None:
    """Return (level, height in noises, where the loss is back) of a leap, None where it is none."""
    raw = list(recent)
    positive = value > 0 and min(raw) > 0
    known = [math.log(v) for v in raw] if positive else raw
    x = math.log(value) if positive else value
    near = known[-_NEAR:]
    level = find_median(near)
    if positive:
        jump = _JUMP if len(raw) >= _FEW else _JUMP_OF_FEW
    else:
        jump = max(abs(level) / 2, max(known) - min(known))
    if x - level <= jump or x - max(near) <= jump / 2:
        return None
    changes = [b - a for a, b in pairwise(known)]
    # The change between two independent values has twice the variance of each.
    noise = SIGMA_PER_MAD * find_median([abs(change) for change in changes]) / math.sqrt(2)
    if x - level <= _NOISES * noise or x - known[-1] <= _LARGER * max(changes):
        return None
    noises = min((x - level) / noise, 1e6) if noise else 1e6
    limit = level + jump
    back_at = math.exp(limit) if positive else limit
    return find_median(raw[-_NEAR:]), noises, back_at
