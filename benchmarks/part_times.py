"""What each part of a watch costs, timed apart while a loop runs: seconds of its own, nested out.

Methods of classes are stood in for by timed ones; what a timed call spends in another timed call is
that one's. A phase is a piece of the loop itself, such as the forward call: its plain times say
what it costs anyway, and only what it takes longer where it is interfered with counts. A phase that
is run again by a part (a detector that probes the model) is the part's time whole.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Part:
    """What one part has cost so far."""

    calls: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Phase:
    """Seconds of a piece of the loop, as it is and where it was interfered with."""

    plain_s: list[float] = field(default_factory=list)
    special_s: list[float] = field(default_factory=list)

    def get_part(self) -> Part:
        """Return what the interference costs."""
        usual = statistics.median(self.plain_s) if self.plain_s else 0.0
        return Part(len(self.special_s), sum(self.special_s) - usual * len(self.special_s))


class Ledger:
    """Times parts; a context manager, at whose end every class is as it was.

    Attributes:
        parts: by label.
        phases: by label.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self.phases: dict[str, Phase] = {}
        self._inner: list[float] = []  # seconds that the calls under way have spent in timed ones
        self._under_way: list[str] = []
        self._opaque = 0
        self._held: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Ledger:
        """Begin."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Put every method back."""
        for owner, name, original in reversed(self._held):
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._held = []

    def time_part(self, owner: Any, name: str, label: str, *, is_opaque: bool = False) -> None:
        """Time a method from here on.

        Args:
            owner: class whose method it is, also where it inherits it; or a module.
            name: of the method.
            label: what its time counts for; several methods may share one.
            is_opaque: phases that it runs are its own time.
        """
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._opaque += is_opaque
            began = self._begin(label)
            try:
                return original(*args, **kwargs)
            finally:
                own = self._end(began)
                self._opaque -= is_opaque
                part = self.parts.setdefault(label, Part())
                part.calls += 1
                part.seconds += own

        self._stand_in(owner, name, timed)

    def time_phase(self, owner: Any, name: str, label: str, is_special: Callable[[], bool]) -> None:
        """Time a piece of the loop from here on; `is_special` says if it is interfered with."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._opaque:
                return original(*args, **kwargs)
            special = is_special()
            began = self._begin(label)
            try:
                return original(*args, **kwargs)
            finally:
                own = self._end(began)
                phase = self.phases.setdefault(label, Phase())
                (phase.special_s if special else phase.plain_s).append(own)

        self._stand_in(owner, name, timed)

    def is_within(self, label: str) -> bool:
        """Return whether a call of that label is under way."""
        return label in self._under_way

    def take(self) -> dict[str, Part]:
        """Return what everything cost since the last time, and begin anew."""
        found = self.parts | {label: phase.get_part() for label, phase in self.phases.items()}
        self.parts, self.phases = {}, {}
        return {label: part for label, part in found.items() if part.calls}

    def _begin(self, label: str) -> float:
        self._inner.append(0.0)
        self._under_way.append(label)
        return time.perf_counter()

    def _end(self, began: float) -> float:
        """Return the seconds that were the call's own."""
        took = time.perf_counter() - began
        self._under_way.pop()
        own = took - self._inner.pop()
        if self._inner:
            self._inner[-1] += took
        return own

    def _stand_in(self, owner: Any, name: str, timed: Any) -> None:
        self._held.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, timed)
