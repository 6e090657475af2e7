"""Who looks for NaN beside tsx: torch's anomaly mode and Hugging Face's DebugUnderflowOverflow.

Each plays the same loops from the same seeds, in its default settings, and what it says is read
generously: the module is that of the last frame of the report (and, counted apart, any that the
report prints), the line is the last one outside torch in the traceback of the forward call. What
ends a loop and is no report of a bad value is a crash.

`DebugUnderflowOverflow` takes the absolute value of every tensor that it meets, which torch refuses
for bool ones; the patched variant leaves those out and is otherwise the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.fault_verdicts import get_line
from benchmarks.plain_loops import QuietRun
from tests.faults.plant import ROOT, Healthy, PlainRun, Plant, play
from tests.faults.watched import WatchedLines, WatchedRun, list_alarms
from tsx import __version__
from tsx.diagnostics.nonfinite.origin import KIND

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_OUTSIDE = ("site-packages", "tests/faults/plant.py", "diagnosis_rivals.py", "runpy")
_PREFIX = " " * 18  # of a line of DebugUnderflowOverflow that names a module and its class


@dataclass
class Said:
    """What one of them says of a loop.

    Attributes:
        step: of the alarm, the first being 1; 0 where none was raised.
        module: that is blamed; None where none is named.
        printed: every module that the report names.
        line: "file.py:12".
        cause: slug of the mechanism.
        crash: the error that stopped the loop and is no report.
    """

    step: int = 0
    module: str | None = None
    printed: frozenset[str] = field(default_factory=frozenset)
    line: str = ""
    cause: str = ""
    crash: str = ""


class Onlooker:
    """One way to look for values that are not finite, and how its report is read."""

    name: ClassVar[str]
    says: ClassVar[tuple[str, ...]]  # of module, line and cause, what it can say at all

    @classmethod
    def find_version(cls) -> str | None:
        """Return what is installed, None where it is not there."""
        return f"torch {torch.__version__}"

    def make_run(self) -> Any:
        """Return the run of a loop that is timed."""
        return QuietRun()

    def attach(self, model: nn.Module) -> None:
        """Look at a model from here on."""

    def looking(self) -> AbstractContextManager[Any]:
        """Return the context that every step is taken in."""
        return contextlib.nullcontext()

    def play(self, loop: Plant | Healthy) -> Said:
        """Play a loop under these eyes."""
        run, printed = _AttachedRun(self), io.StringIO()
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(printed),
            _quiet_compiler(),
            self.looking(),
        ):
            warnings.simplefilter("always")
            try:
                play(loop, run=run)
            except Exception as error:
                texts = [str(warning.message) for warning in caught]
                said = self.read(error, printed.getvalue(), texts)
                if said is None:
                    text = f"{type(error).__name__}: {error}".splitlines()[0]
                    return Said(crash=text)
                said.step = len(run.steps)
                return said
        return Said()

    def read(self, error: Exception, printed: str, warned: list[str]) -> Said | None:
        """Return what a report says; None where the error is no report."""
        raise NotImplementedError


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Let nobody hear that hooks break a compiled graph."""
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _AttachedRun(PlainRun):
    """A run in which somebody looks at each model once."""

    def __init__(self, onlooker: Onlooker) -> None:
        super().__init__()
        self._onlooker = onlooker
        self._models: list[nn.Module] = []

    def watch(self, model: nn.Module, optimizer: Optimizer, **declared: Any) -> None:
        if not any(model is other for other in self._models):
            self._models.append(model)
            self._onlooker.attach(model)


class Tsx(Onlooker):
    """`run.watch` and `run.compute`; the first alarm of the kind counts, any alarm on a healthy."""

    name = "tsx"
    says = ("module", "line", "cause")

    @classmethod
    def find_version(cls) -> str:
        """Return our own."""
        return f"tsx {__version__}"

    def make_run(self) -> WatchedLines:
        """Return a run as `tsx.init` gives it, with its events in a list."""
        return WatchedLines(every=None)

    def play(self, loop: Plant | Healthy) -> Said:
        """Play a loop in a watched run."""
        run = WatchedRun()
        try:
            play(loop, run=run)
        except Exception as error:
            return Said(crash=f"{type(error).__name__}: {error}".splitlines()[0])
        finally:
            run.close()
        alarms = list_alarms(run.findings)
        if isinstance(loop, Plant):
            alarms = [finding for finding in alarms if finding.kind == KIND]
        if not alarms:
            return Said()
        first = alarms[0]
        cause = str(first.evidence.get("mechanism", ""))
        printed = frozenset({first.module})
        return Said(max(first.step, 1), first.module, printed, get_line(first), cause)


class AnomalyMode(Onlooker):
    """`torch.autograd.set_detect_anomaly(True)`, whose default is check_nan=True."""

    name = "detect_anomaly"
    says = ("line",)

    def looking(self) -> AbstractContextManager[Any]:
        """Return the mode."""
        return torch.autograd.set_detect_anomaly(True)

    def read(self, error: Exception, printed: str, warned: list[str]) -> Said | None:
        """Read the error, and the line in the traceback that the warning before it holds."""
        if "returned nan values" not in str(error):
            return None
        line = ""
        for text in warned:
            if "Traceback of forward call" in text:
                frames = [f for f in _FRAME.findall(text) if not any(o in f[0] for o in _OUTSIDE)]
                own = [frame for frame in frames if frame[0].startswith(str(ROOT))] or frames
                line = f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
        return Said(line=line)


class StacksOnly(AnomalyMode):
    """Anomaly mode that keeps the tracebacks and does not look; for its cost alone."""

    name = "detect_anomaly, check_nan=False"

    def looking(self) -> AbstractContextManager[Any]:
        """Return the mode."""
        return torch.autograd.set_detect_anomaly(True, check_nan=False)


class UnderflowOverflow(Onlooker):
    """`transformers.debug_utils.DebugUnderflowOverflow(model)`."""

    name = "DebugUnderflowOverflow"
    says = ("module",)

    @classmethod
    def find_version(cls) -> str | None:
        """Return the version of transformers."""
        if importlib.util.find_spec("transformers") is None:
            return None
        import transformers

        return f"transformers {transformers.__version__}"

    def attach(self, model: nn.Module) -> None:
        """Set its hooks."""
        from transformers.debug_utils import DebugUnderflowOverflow

        DebugUnderflowOverflow(model)

    def read(self, error: Exception, printed: str, warned: list[str]) -> Said | None:
        """Read the error, and the frames that were printed before it."""
        if "DebugUnderflowOverflow: inf/nan detected" not in str(error):
            return None
        report = printed.rpartition("Detected inf/nan")[2]
        frames = [
            line[len(_PREFIX) :].rpartition(" ")[0]
            for line in report.splitlines()
            if line.startswith(_PREFIX) and not line.startswith(f"{_PREFIX}***")
        ]
        return Said(module=frames[-1] if frames else None, printed=frozenset(frames))


class PatchedUnderflowOverflow(UnderflowOverflow):
    """The same, with bool tensors left out."""

    name = "DebugUnderflowOverflow, patched"

    def attach(self, model: nn.Module) -> None:
        """Set the hooks of a variant."""
        from transformers.debug_utils import DebugUnderflowOverflow

        class Patched(DebugUnderflowOverflow):
            def analyse_variable(self, var: Any, ctx: str) -> None:
                if isinstance(var, Tensor) and var.dtype == torch.bool:
                    self.expand_frame(f"{'bool':>17} {ctx}")
                else:
                    super().analyse_variable(var, ctx)

        Patched(model)


SCORED: tuple[type[Onlooker], ...] = (
    Tsx,
    AnomalyMode,
    UnderflowOverflow,
    PatchedUnderflowOverflow,
)
TIMED: tuple[type[Onlooker], ...] = (*SCORED, StacksOnly)
