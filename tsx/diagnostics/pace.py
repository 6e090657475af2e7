"""How often to look at an optimizer: as often as the looks cost next to nothing."""

from __future__ import annotations

import math
import weakref

from torch.optim import Optimizer

MAX_SHARE = 0.001  # of the time that looks may take; what each step costs comes on top


class Pace:
    """When to look at one optimizer.

    Args:
        optimizer: whose steps these are; not kept alive.
        prefix: of its keys.
        every: steps from one look to the next, or None to go by the time.
        period_s: least seconds between looks that go by the time.
        is_ours: whether to look at all.
        max_share: of the time that looks may take.
        first: looks that are taken one after the other.

    Attributes:
        due_s: when the next look that goes by the time is due, by the clock.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        prefix: str,
        every: int | None,
        period_s: float,
        *,
        is_ours: bool = True,
        max_share: float = MAX_SHARE,
        first: int = 2,
    ) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.prefix = prefix
        self.is_urged = False
        self.is_ours = is_ours
        self._max_share = max_share
        self._every = every
        self._period_s = period_s
        self._steps = 0
        self._first = first
        self._looks = 0
        self.due_s = -math.inf

    def is_due(self, now: float) -> bool:
        """Count one step and return whether to look at it."""
        self._steps += 1
        if not self.is_ours:
            return False
        if self.is_urged:
            self.is_urged = False
            return True
        if self._every is not None:
            return (self._steps - 1) % self._every == 0
        return now >= self.due_s

    def will_be_due(self, now: float) -> bool:
        """Return whether the step that begins now will be looked at, and hold on to that."""
        if not self.is_ours:
            return False
        if self._every is not None:
            return self._steps % self._every == 0
        self.is_urged = self.is_urged or now >= self.due_s
        return self.is_urged

    def put_off(self, spent_s: float) -> None:
        """Put the next look off for what steps beside the last one have cost."""
        self.due_s += spent_s / self._max_share

    def note(self, spent_s: float, now: float) -> None:
        """Put the next look off until the last one's share of the time is small enough."""
        self._looks += 1
        if self._looks >= self._first:  # the first ones pay for what torch loads
            self.due_s = now + max(spent_s / self._max_share, self._period_s)
