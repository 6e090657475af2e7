"""Asks the detectors of one loop, and guards the loop against them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from tsx.diagnostics.detector import Detector, Look, Scene

_METHODS = (
    *("before_call", "after_call", "saw_function", "saw_op", "saw_module", "after_trace"),
    *("begin_look", "before_step", "after_step", "end_step", "saw_loss", "saw_values"),
    *("raised", "pause", "close"),
)


class Panel:
    """Detectors that are asked; one that fails is told of and asked no more.

    Args:
        scene: what is known of the loop.
        detectors: who looks.

    Attributes:
        detectors: that have not failed.
    """

    def __init__(self, scene: Scene, detectors: Iterable[Detector]) -> None:
        self.detectors = list(detectors)
        self._scene = scene
        self._who: dict[str, list[tuple[Detector, Callable[..., Any]]]] = {}
        self._constant: dict[str, list[tuple[Detector, Callable[..., Any]]]] = {}
        self._sort()

    def host(self, detector: Detector) -> None:
        """Show the loop to one more detector, before all others."""
        self.detectors.insert(0, detector)
        self._sort()

    def ask_all(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Ask everyone who overrides a method."""
        for detector, bound in self._who[method]:
            try:
                bound(*args, **kwargs)
            except Exception as error:
                self._take_off(detector, error)

    def ask_constant(self, method: str, *args: Any) -> None:
        """Ask those who are shown everything; each step does so, hence a loop of its own."""
        for detector, bound in self._constant[method]:
            try:
                bound(*args)
            except Exception as error:
                self._take_off(detector, error)

    def ask_one(self, detector: Detector, method: str, args: tuple[Any, ...]) -> None:
        """Ask a detector unless it has failed meanwhile."""
        if detector in self.detectors:
            try:
                getattr(detector, method)(*args)
            except Exception as error:
                self._take_off(detector, error)

    def collect(self, method: str, look: Look) -> dict[str, Tensor | float]:
        """Ask everyone, and return the values they give."""
        values: dict[str, Tensor | float] = {}
        for detector, bound in self._who[method]:
            try:
                values |= bound(look) or {}
            except Exception as error:
                self._take_off(detector, error)
        return values

    def _take_off(self, detector: Detector, error: Exception) -> None:
        """Ask a detector that has failed no more, once it has let go of the loop."""
        if detector in self.detectors:
            self.detectors.remove(detector)
            with contextlib.suppress(Exception):
                detector.pause()
        self._sort()
        self.tell(detector.name, error)

    def _sort(self) -> None:
        """Note who overrides what: nobody else is asked."""
        self._who = {
            method: [
                (detector, getattr(detector, method))
                for detector in self.detectors
                if getattr(type(detector), method) is not getattr(Detector, method)
            ]
            for method in _METHODS
        }
        self._constant = {
            method: [pair for pair in who if pair[0].is_constant]
            for method, who in self._who.items()
        }

    def tell(self, name: str, error: Exception) -> None:
        """Tell of a detector that failed."""
        cause = f"the detector {name} failed and is off: {type(error).__name__}"
        fix = "train on without it"
        self._scene.voice.warn("detector-failed", name, cause, fix, error=error)
