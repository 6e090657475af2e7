"""What a run says beside plain numbers: late values, histograms, findings, and what it refuses.

The slow half of `Run.log`, and the voice of what watches a model. Tells of a thing once, on stderr
and as a finding, and never raises for a value.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from registry.events import Event, EventSink, Finding, Histogram, Metrics, Severity
from tsx.cli.output import clean
from tsx.recording.late_values import LateValues
from tsx.recording.values import is_late, sort_values, to_float
from tsx.trainer.telemetry import Telemetry

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN, _STR = {float, int, bool}, {str}
MAX_TOLD = 20  # things of one kind that are told one by one; the rest are counted


class RunLines:
    """Writes the lines of one run.

    Attributes:
        telemetry: stamps and sends events that are no metrics; swallows and counts refusals.
        held: values that ride on the next line of metrics.
        last: the numbers of the newest line.
        dropped: values that were no numbers.
    """

    def __init__(self, sink: EventSink, step: int, tell: Callable[[str], None]) -> None:
        self._sink = sink
        self._tell = tell
        self._told: dict[str, set[str]] = {}
        self.telemetry = Telemetry(sink)
        self.telemetry.step = step
        self.telemetry.guard()
        self.late = LateValues()
        self.held: dict[str, Tensor | float] = {}
        self.last: Mapping[str, float] = {}
        self.dropped = 0

    @property
    def step(self) -> int:
        """The step of the newest line."""
        return self.telemetry.step

    def log(self, values: Any, step: int, now: float) -> None:
        """Record values of which some need more than being written down.

        Raises:
            ValueError: the sink is closed.
        """
        if type(values) is dict and not (self.held or self.late.waiting):
            kinds = set(map(type, values.values()))
            if kinds <= _PLAIN and set(map(type, values)) <= _STR:  # an epoch, a flag
                plain = dict(zip(values, map(to_float, values.values()), strict=True))
                self._sink.emit(Metrics(time=now, step=step, values=plain))
                self.last = plain
                return
        self.late.read()
        found = sort_values(values)
        if self.held:
            riding, self.held = sort_values(self.held), {}
            found.numbers = riding.numbers | found.numbers
            found.late = riding.late | found.late
        if found.numbers or not (found.late or found.histograms):
            self.last = found.numbers or self.last
            self._sink.emit(Metrics(time=now, step=step, values=found.numbers))
        for key, value in found.histograms.items():
            self._sink.emit(
                Histogram(
                    time=now,
                    step=step,
                    key=key,
                    edges=value.edges,
                    counts=value.counts,
                    nonfinite_count=value.nonfinite_count,
                )
            )
        if found.late:
            self._keep(found.late, step, now)
        for key, why in found.refused.items():
            self._refuse(key, why)

    def emit(self, event: Event) -> None:
        """Record one event that is no line of metrics."""
        self.telemetry.emit(event)

    def read_late(self, tensor: Tensor, take: Callable[[Any], None]) -> None:
        """Hand a tensor's values to `take`: at once from the host, later from a device.

        Args:
            tensor: nobody may change it any more.
            take: gets `tensor.tolist()`.
        """
        if is_late(tensor):
            self.late.add(tensor, take)
        else:
            take(tensor.tolist())

    def finish(self) -> None:
        """Wait for what is still on a device, and record what was to ride on a line."""
        self.late.read(wait=True)
        if self.held:
            with contextlib.suppress(ValueError):
                self.log({}, self.step, time.time())
            self.late.read(wait=True)

    def forget(self) -> None:
        """Drop what is the parent's, in a forked child."""
        self.late.forget()
        self.held = {}

    def warn(
        self, kind: str, topic: str, cause: str, fix: str, *, error: BaseException | None = None
    ) -> None:
        """Tell of something once a topic, on stderr and as a finding."""
        told = self._told.setdefault(kind, set())
        if topic in told or len(told) >= MAX_TOLD:
            return
        told.add(topic)
        self._tell(f"step {self.step}: {cause} (told once)")
        evidence = {} if error is None else {"error": f"{type(error).__name__}: {error}"[:1000]}
        self.telemetry.emit(
            Finding(
                time=time.time(),
                kind=kind,
                severity=Severity.WARNING,
                step=self.step,
                module=topic[:200],
                cause=cause,
                evidence=evidence,
                fix=fix,
            )
        )

    def _keep(self, tensors: Mapping[str, Tensor], step: int, now: float) -> None:
        """Copy tensors of a device; their values are recorded when they have arrived."""
        import torch

        alike: dict[Any, list[str]] = {}
        for key, tensor in tensors.items():
            alike.setdefault((tensor.device, tensor.dtype), []).append(key)
        for keys in alike.values():

            def record(numbers: list[Any], keys: list[str] = keys) -> None:
                values = {key: float(number) for key, number in zip(keys, numbers, strict=True)}
                self.last = {**self.last, **values}
                self._sink.emit(Metrics(time=now, step=step, values=values))

            try:
                with torch.no_grad():
                    copy = torch.stack([tensors[key].detach() for key in keys])
                self.late.add(copy, record)
            except Exception as error:  # an odd kind of tensor, or a device that has failed
                for key in keys:
                    self._refuse(key, f"cannot be copied: {clean(error, limit=200)}")

    def _refuse(self, key: str, why: str) -> None:
        """Count a value that is no number, and tell of its key once."""
        self.dropped += 1
        name = key if key == "log" else repr(clean(key, limit=100))
        fix = "log numbers, 0-d tensors, nested dicts of them, or tsx.histogram(...)"
        self.warn("log-value", key, f"{name} {why}; it is not recorded", fix)
