"""What a run watches: models through their optimizers, losses through `compute`.

Knows torch only once the program does. A fault in here is told as a finding `detector-failed` and
never reaches the training.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from registry.events import Finding, RunPrepared, Severity
from tsx.cli.output import clean
from tsx.errors import Diverged
from tsx.recording.lines import RunLines
from tsx.recording.values import Refused, read_number

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tsx.diagnostics.nonfinite.postmortem import Postmortem
    from tsx.diagnostics.watch import Watch

P = ParamSpec("P")
T = TypeVar("T")

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


class Call(NamedTuple):
    """A function that `compute` called, to be called again."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    step: int  # the one under way


class Watching:
    """The watched models and the last computation of one run."""

    def __init__(
        self, lines: RunLines, tell: Callable[[str], None], folder: Path | None = None
    ) -> None:
        self._lines = lines
        self._tell = tell
        self._watches: list[Watch] = []
        self._numbers = itertools.count(1)
        self._is_told = False
        self._folder = folder  # where a call that is not finite is kept
        self._diverged: Diverged | None = None  # to be raised
        self._postmortem: Postmortem | None = None
        self._last: tuple[Any, ...] | None = None  # call: function, arguments, step
        self.hear: Callable[[Any, int], None] | None = None  # gets each line that is logged

    def watch(
        self,
        model: nn.Module,
        optimizer: object,
        *,
        every: int | None,
        on_nonfinite: str = "continue",
        **declared: Any,
    ) -> None:
        """See `Run.watch`; a model that is watched already gets one more optimizer."""
        try:
            from tsx.config import OnNonFinite
            from tsx.diagnostics.detector import Declared
            from tsx.diagnostics.nonfinite.postmortem import Postmortem
            from tsx.diagnostics.watch import Watch, unwrap

            if every is not None and (not isinstance(every, int) or every < 1):
                raise ValueError(f"every={every!r} is no number of steps")
            for watch in self._watches:
                if watch.model is unwrap(model):
                    watch.add(optimizer)
                    return
            watch = Watch(
                model,
                optimizer,
                self._lines,
                numbers=self._numbers,
                declared=Declared(**declared),
                every=every,
                on_nonfinite=OnNonFinite(on_nonfinite),
                tell=self._say,
            )
            self._watches.append(watch)
            if self._postmortem is None:
                self._postmortem = Postmortem(watch.model, _find_loss)
                watch.postmortem = self._postmortem
                if self._folder is not None:
                    from tsx.recording.dumping import CallDumps

                    self._postmortem.keep = CallDumps(self._folder, self._lines).keep
                self.hear = watch.engine.log
            self._lines.emit(describe_models([watch.model for watch in self._watches]))
        except Exception as error:
            self._fail("watch", error)

    def compute(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Run.compute`."""
        if self._diverged is not None:
            self._halt()
        step = self._lines.telemetry.step + 1
        self._last = (fn, args, kwargs, step)
        if self._postmortem is not None:
            try:
                self._postmortem.begin_call(fn, args, kwargs)
            except Exception as error:
                self._postmortem = None
                self._fail("nan-origin", error)
        try:
            if self._watches:
                engine = self._watches[0].engine
                result: T = engine.compute(fn, args, kwargs, _find_loss)
            else:
                result = fn(*args, **kwargs)
        except BaseException as error:
            with contextlib.suppress(Exception):
                error.add_note(f"tsx: raised in run.compute, at step {step}")
            raise
        try:
            self._check_loss(result, step)
        except Exception as error:
            self._fail("compute", error)
        if self._diverged is not None:
            self._halt()
        return result

    @property
    def last_call(self) -> Call | None:
        """The call that was made last."""
        return None if self._last is None else Call(*self._last)

    def _halt(self) -> None:
        """Raise what a loss that is not finite has come to, if the policy is to halt."""
        diverged, self._diverged = self._diverged, None
        if diverged is not None:
            raise diverged

    def close(self, *, is_whole: bool = False) -> None:
        """Take all hooks away; the run is over, as far as it should have gone or not."""
        for watch in self._watches:
            with contextlib.suppress(Exception):
                watch.close(is_whole=is_whole)

    def forget(self) -> None:
        """Watch no more, in a forked child."""
        for watch in self._watches:
            with contextlib.suppress(Exception):
                watch.forget()
        self._watches = []
        self.hear = None

    def _check_loss(self, result: Any, step: int) -> None:
        """Look at the loss that a result holds, if any: on the host at once, else later."""
        torch = sys.modules.get("torch")
        trains = torch is not None and torch.is_grad_enabled()
        try:
            loss = read_number(_find_loss(result))
        except Refused:
            return
        if isinstance(loss, float):
            self._judge(loss, step, trains=trains, is_at_hand=True)
        else:
            self._lines.read_late(
                loss.detach().clone(), lambda value: self._judge(value, step, trains=trains)
            )

    def _judge(self, loss: float, step: int, *, trains: bool, is_at_hand: bool = False) -> None:
        """Tell of a loss that is not finite, once until it is finite again.

        Args:
            loss: as it was returned.
            step: whose loss it is.
            trains: gradients were asked for.
            is_at_hand: the model is still as it was for the call.
        """
        is_bad = not math.isfinite(loss)
        for watch in self._watches:
            watch.loss = loss
            watch.engine.saw_loss(loss, step)
            if is_at_hand and trains:
                watch.policy.saw_loss(is_bad=is_bad)
            if is_bad:
                watch.look_next()
        if is_bad and not self._is_told:
            name = "NaN" if math.isnan(loss) else f"{loss:+}".replace("inf", "infinite")
            finding = self._explain(loss, step, is_at_hand=is_at_hand)
            where = ", ".join(part for part in (finding.module, finding.where) if part)
            why = finding.cause if finding.kind != "non-finite" else ""
            self._tell(f"step {step}: the loss is {name}" + (f": {why} ({where})" if why else ""))
            self._lines.emit(finding)
            for watch in self._watches:
                watch.policy.finding = finding
                watch.is_explained = True
                watch.scene.reports.note(finding)
        self._is_told = is_bad
        if is_bad and trains:
            self._diverged = self._make_error(loss, step)

    def _make_error(self, loss: float, step: int) -> Diverged | None:
        """Return what to raise for a loss that is not finite; None where training goes on."""
        halting = [watch.policy for watch in self._watches if watch.policy.is_halting]
        return halting[0].make_error(step, f"loss {loss}") if halting else None

    def _explain(self, loss: float, step: int, *, is_at_hand: bool) -> Finding:
        """Return what is to be said of a loss that is not finite."""
        if self._postmortem is not None and is_at_hand:
            try:
                found = self._postmortem.explain_loss(
                    step=step, time=time.time(), evidence={"loss": loss}
                )
                if found is not None:
                    return found
            except Exception as error:
                self._fail("nan-origin", error)
        return _make_finding(loss, step)

    def _say(self, finding: Finding) -> None:
        """Say on stderr what was found, unless it is a remark."""
        if finding.severity is not Severity.INFO:
            place = ", ".join(part for part in (finding.module, finding.where) if part)
            at = f" ({place})" if place else ""
            self._tell(f"step {finding.step}: {finding.kind}: {finding.cause}{at}")

    def _fail(self, name: str, error: Exception) -> None:
        """Tell of a detector that failed; training goes on without it."""
        cause = f"{name} failed: {type(error).__name__}: {clean(error, limit=300)}"
        fix = "train on without it; run.watch takes a torch module and its optimizer"
        self._lines.warn("detector-failed", name, cause, fix, error=error)


def describe_models(models: list[nn.Module]) -> RunPrepared:
    """Return what the watched models are: parameters, device, precision."""
    torch = sys.modules["torch"]
    from tsx.diagnostics.loop.updates import is_measurable
    from tsx.perf.device import find_device_name

    params: dict[int, Tensor] = {
        id(p): p for model in models for p in model.parameters() if not _is_lazy(p)
    }
    first = next((p for p in params.values() if is_measurable(p)), None)
    device = torch.device("cpu") if first is None else first.device
    dtype = "" if first is None else str(first.dtype).removeprefix("torch.")
    return RunPrepared(
        time=time.time(),
        pid=os.getpid(),
        device=str(device),
        device_name=find_device_name(device),
        precision=_PRECISIONS.get(dtype, dtype),
        threads=torch.get_num_threads(),
        params_total=sum(p.numel() for p in params.values()),
        versions={"torch": str(torch.__version__), "cuda": torch.version.cuda or ""},
    )


def _is_lazy(param: Tensor) -> bool:
    """Return whether a parameter has no shape yet."""
    return bool(sys.modules["torch"].nn.parameter.is_lazy(param))


def _make_finding(loss: float, step: int) -> Finding:
    """Return what is said of a loss that is not finite where nobody knows more."""
    return Finding(
        time=time.time(),
        kind="non-finite",
        severity=Severity.ERROR,
        step=step,
        phase="forward",
        cause="the loss that run.compute returned is not finite",
        evidence={"loss": loss},
        fix="lower the learning rate, or look at the batch of this step",
    )


def _find_loss(result: Any) -> Any:
    """Return what may be the loss in a result: itself, the first of a tuple, "loss" or .loss."""
    torch = sys.modules.get("torch")
    if torch is not None and type(result) is torch.Tensor:  # nearly always
        return result
    if isinstance(result, (tuple, list)):
        return result[0] if result else None
    held = getattr(result, "loss", None)
    if held is not None and not callable(held):
        return held
    is_mapping = hasattr(result, "keys") and isinstance(result, Mapping)  # no tensor is asked
    return result.get("loss") if is_mapping else result
