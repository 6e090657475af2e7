"""Asks the detectors of one loop, and guards the loop against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from tsx.diagnostics.detector import Detector, Look, Scene

_METHODS = (
    *("before_call", "after_call", "saw_function", "saw_op", "saw_module", "after_trace"),
    *("begin_look", "before_step", "after_step", "end_step", "saw_loss", "saw_values"),
    *("raised", "close"),
)


class Panel:
    """Detectors that are asked; one that fails is told of and asked no more.

    Args:
        scene: what is known of the loop.
        detectors: who looks.
        clock: seconds.

    Attributes:
        detectors: that have not failed.
        costs_s: seconds spent so far, by detector.
    """

    def __init__(
        self, scene: Scene, detectors: Iterable[Detector], clock: Callable[[], float]
    ) -> None:
        self.detectors = list(detectors)
        self.costs_s: dict[str, float] = {}
        self._scene = scene
        self._clock = clock
        self._who: dict[str, list[Detector]] = {}
        self._sort()

    def host(self, detector: Detector) -> None:
        """Show the loop to one more detector, before all others."""
        self.detectors.insert(0, detector)
        self._sort()

    def ask_all(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Ask everyone who overrides a method."""
        for detector in list(self._who[method]):
            self.ask(detector, method, *args, **kwargs)

    def ask_one(self, detector: Detector, method: str, args: tuple[Any, ...]) -> None:
        """Ask a detector unless it has failed meanwhile."""
        if detector in self.detectors:
            self.ask(detector, method, *args)

    def ask(self, detector: Detector, method: str, *args: Any, **kwargs: Any) -> Any:
        """Ask one detector; one that fails is told of and asked no more."""
        began = self._clock()
        try:
            return getattr(detector, method)(*args, **kwargs)
        except Exception as error:
            self.detectors.remove(detector)
            self._sort()
            self.tell(detector.name, error)
            return None
        finally:
            spent = self._clock() - began
            self.costs_s[detector.name] = self.costs_s.get(detector.name, 0.0) + spent

    def collect(self, method: str, look: Look) -> dict[str, Tensor | float]:
        """Ask everyone, and return the values they give."""
        values: dict[str, Tensor | float] = {}
        for detector in list(self._who[method]):
            values |= self.ask(detector, method, look) or {}
        return values

    def _sort(self) -> None:
        """Note who overrides what: nobody else is asked."""
        self._who = {
            method: [
                detector
                for detector in self.detectors
                if getattr(type(detector), method) is not getattr(Detector, method)
            ]
            for method in _METHODS
        }

    def tell(self, name: str, error: Exception) -> None:
        """Tell of a detector that failed."""
        cause = f"the detector {name} failed and is off: {type(error).__name__}"
        fix = "train on without it"
        self._scene.voice.warn("detector-failed", name, cause, fix, error=error)
