"""The detectors of `tsx.diagnostics` in a run of a recipe: what they see of it, and their voice.

They see what a loop of one's own shows them through `run.watch` and `run.compute`: each
micro-batch's loss, each step of the optimizer, each line of metrics. What is not finite is the
trainer's own to explain. Nothing here changes a number of the training or stops it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from registry.events import Event, Finding
from tsx.diagnostics.detector import Declared
from tsx.diagnostics.watch import Watch

if TYPE_CHECKING:
    from tsx.trainer.session import Session


class TrainerVoice:
    """Speaks into a run's telemetry; see `tsx.diagnostics.detector.Voice`."""

    def __init__(self, session: Session) -> None:
        self.held: dict[str, Tensor | float] = {}
        self._session = session
        self._late: list[tuple[Tensor, Callable[[Any], None]]] = []
        self._told: set[tuple[str, str]] = set()

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._session.progress.step

    def emit(self, event: Event) -> None:
        """Record a finding."""
        self._session.telemetry.emit(event)

    def read_late(self, tensor: Tensor, take: Callable[[Any], None]) -> None:
        """Hand a tensor's values on: from the host now, from a device when a line is logged."""
        if tensor.device.type == "cpu":
            take(tensor.tolist())
        else:
            self._late.append((tensor, take))

    def warn(
        self, kind: str, topic: str, cause: str, fix: str, *, error: BaseException | None = None
    ) -> None:
        """Record a warning, once a topic."""
        if (kind, topic) in self._told:
            return
        self._told.add((kind, topic))
        evidence = {"topic": topic}
        if error is not None:
            evidence["error"] = f"{type(error).__name__}: {error}"[:1000]
        self._session.telemetry.warn(kind, cause, fix, evidence)

    def take_values(self) -> dict[str, float]:
        """Read what is on the device still; called where the host waits for it anyway."""
        late, self._late = self._late, []
        for tensor, take in late:
            take(tensor.tolist())
        self.held.clear()
        return {}


class Diagnosis:
    """Watches the training of one session from `start` to `close`; does nothing outside of them."""

    def __init__(self) -> None:
        self._watch: Watch | None = None
        self._voice: TrainerVoice | None = None

    def start(self, session: Session) -> None:
        """Begin to watch; a failure is told of and training goes on without it."""
        if not session.config.diagnostics.watch:
            return
        self._voice = TrainerVoice(session)
        try:
            self._watch = Watch(
                session.model,
                session.optimizer,
                self._voice,
                numbers=itertools.count(1),
                declared=Declared(
                    causal=True,
                    steps=session.config.train.steps,
                    fixed_batch=is_fixed_batch(session),
                ),
                config=session.config,
            )
        except Exception as error:
            self._fail(error)

    @property
    def is_trace_due(self) -> bool:
        """Whether the coming step is traced: its time is no speed."""
        return self._watch is not None and self._watch.engine.is_trace_due

    def compute(self, fn: Callable[..., tuple[Any, ...]], **tensors: Tensor) -> tuple[Any, ...]:
        """Return `fn(**tensors)`, whose first is a loss, and show it to the detectors."""
        if self._watch is None:
            return fn(**tensors)
        result: tuple[Any, ...] = self._watch.engine.compute(fn, (), tensors, _take_first)
        return result

    def saw_loss(self, loss: float, step: int) -> None:
        """Show the loss of a step, as soon as it is on the host."""
        if self._watch is not None:
            self._watch.loss = loss
            self._watch.engine.saw_loss(loss, step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Show a line of metrics."""
        if self._watch is not None and self._voice is not None:
            self._voice.take_values()
            self._watch.engine.log(values, step)

    def note(self, finding: Finding) -> None:
        """Take note of a finding that the trainer has emitted: it explains others."""
        if self._watch is not None:
            self._watch.scene.reports.note(finding)

    def close(self, *, is_whole: bool) -> None:
        """End; `is_whole` says that the run went as far as it should."""
        watch, self._watch = self._watch, None
        if watch is not None and self._voice is not None:
            try:
                self._voice.take_values()
                watch.close(is_whole=is_whole)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Tell of detectors that cannot be hosted; training goes on without them."""
        self._watch = None
        if self._voice is not None:
            cause = f"the detectors failed and are off: {type(error).__name__}"
            self._voice.warn("detector-failed", "watch", cause, "train on without", error=error)


def is_fixed_batch(session: Session) -> bool:
    """Return whether a run's config asks for one batch at every step."""
    return session.config.train.fixed_batches > 0


def _take_first(result: tuple[Any, ...]) -> Any:
    return result[0]
