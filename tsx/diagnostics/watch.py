"""Shows detectors any model as its optimizer steps, through hooks that every optimizer calls.

It sees accumulated gradients once, unscaled by a GradScaler, and steps that a scaler leaves out not
at all. A look is taken as often as it costs next to nothing; the first steps all are looked at. On
an accelerator nothing is waited for: results are handed on as tensors and read later, and a look is
taken at most once a second, for its cost there is not seen.

A fused optimizer under a GradScaler steps on scaled gradients: their norm is divided by the scale,
and what is not finite in them is the scaler's to answer. Not covered: gradients inside captured
CUDA graphs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from registry.events import Finding
from tsx.config import OnNonFinite
from tsx.diagnostics.detector import Declared, Detector, Look, Scene, Voice
from tsx.diagnostics.engine import Engine, has_compiled_parts
from tsx.diagnostics.nonfinite.grad_guard import GradGuard
from tsx.diagnostics.nonfinite.grad_norm import GradNorm
from tsx.diagnostics.nonfinite.postmortem import Postmortem
from tsx.diagnostics.nonfinite.step_policy import StepPolicy, is_bad_number
from tsx.diagnostics.pace import Pace
from tsx.diagnostics.reports import Reports
from tsx.diagnostics.roster import make_detectors

if TYPE_CHECKING:
    from tsx.config import RunConfig

DEVICE_PERIOD_S = 1.0  # between looks on an accelerator
FIRST_LOOKS = 4  # one after the other: what is wrong from the start shows there


class Watch:
    """Watches one model until it is closed.

    Args:
        model: the module that trains; compiled and wrapped ones are fine.
        optimizer: only its steps; None for every optimizer that holds the model's parameters.
        voice: gets values and findings.
        numbers: counts optimizers over all watches of a run, from 1, for the names of keys.
        declared: what the user says of the loop.
        every: steps from one look to the next; None for as many as keep the cost low.
        on_nonfinite: what becomes of a step whose loss or gradient is not finite.
        config: of a recipe's run, whose trainer explains what is not finite by itself.
        tell: gets each new finding, to be said aloud.
        clock: seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: object,
        voice: Voice,
        *,
        numbers: Iterator[int],
        declared: Declared | None = None,
        every: int | None = None,
        on_nonfinite: OnNonFinite = OnNonFinite.CONTINUE,
        config: RunConfig | None = None,
        tell: Callable[[Finding], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = unwrap(model)
        self.loss: float | None = None  # of the step under way, where it was seen
        self.postmortem: Postmortem | None = None
        self.policy = StepPolicy(on_nonfinite, voice, tell)
        self.is_explained = False  # the step under way: its gradients need no finding of their own
        self._voice = voice
        self._numbers = numbers
        self._every = every
        self._clock = clock
        self._names = {
            id(p): name.replace("_orig_mod.", "") for name, p in self.model.named_parameters()
        }
        self.scene = Scene(
            self.model,
            declared or Declared(),
            voice,
            Reports(voice.emit, self.policy.note),
            config=config,
            names=self._names,
            modules={id(module): name for name, module in self.model.named_modules()},
        )
        norm = GradNorm(self.scene, lambda: self.is_explained, self.explain_gradients)
        own: list[Detector] = [norm] if config is None else []
        self.engine = Engine(
            self.scene,
            [*own, *make_detectors(self.scene)],
            is_compiled=has_compiled_parts(model),
            clock=clock,
        )
        self._only: list[object] = []
        self.add(optimizer)
        self._paces: dict[int, Pace] = {}  # by the optimizer's id
        self._guard = GradGuard(clock)
        self._look: Look | None = None
        self._spent_s = 0.0  # on the look under way
        self._hooks = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]

    def add(self, optimizer: object) -> None:
        """Watch the steps of one more optimizer; wrappers count as what they wrap."""
        self._only += [] if optimizer is None else [optimizer]
        inner = getattr(optimizer, "optimizer", None)
        if inner is not None and len(self._only) < 10:
            self.add(inner)

    def look_next(self) -> None:
        """Look at the next step whatever it costs."""
        for pace in self._paces.values():
            pace.is_urged = True

    def close(self, *, is_whole: bool = False) -> None:
        """Take the hooks away; the run is over, as far as it should have gone or not."""
        if self._hooks:
            self.engine.close(is_whole=is_whole)
        self.forget()

    def forget(self) -> None:
        """Take the hooks away, and say nothing more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._look = None

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        is_seen = self._look_before(optimizer)
        if is_seen or (is_seen is not None and self.policy.is_suspect):
            self.policy.apply(optimizer, self.scene.reports, is_seen=is_seen)

    def _look_before(self, optimizer: Optimizer) -> bool | None:
        """Look if it is time to; return whether gradients seem bad, None for another's step."""
        is_bad = False
        try:
            pace = self._paces.get(id(optimizer))
            if pace is None or pace.optimizer() is not optimizer:
                pace = self._paces[id(optimizer)] = self._make_pace(optimizer)
            began = self._clock()
            is_due = pace.is_due(began)
            if not pace.is_ours:
                return None
            if self.postmortem is not None or self.policy.is_active:
                is_bad = self._guard.sees_bad(optimizer)
            if not (is_due or is_bad):
                return False
            with torch.no_grad():
                self._look = self._begin(optimizer, pace)
                if self._look is not None:
                    values = self.engine.before_step(self._look)
                    hold(self._voice, self._look, values)
                    is_bad = is_bad or is_bad_number(values.get("grad_norm"))
            self._spent_s = self._clock() - began
        except Exception as error:
            self._give_up(error)
        return is_bad

    def explain_gradients(self, step: int) -> Finding | None:
        """Return where gradients that are not finite come from; None where nobody can tell."""
        if self.postmortem is None:
            return None
        try:
            return self.postmortem.explain_gradients(step=step, time=time.time())
        except Exception as error:
            self._warn("nan-origin", error)
            return None

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        pace = self._paces.get(id(optimizer))
        if pace is None or not pace.is_ours:  # another model's: this one's step goes on
            return
        self.is_explained = False
        self.policy.end_step()
        if self.postmortem is not None:
            self.postmortem.end_step()
        look, self._look = self._look, None
        try:
            if look is not None and look.optimizer is optimizer:
                self.loss = None
                began = self._clock()
                with torch.no_grad():
                    hold(self._voice, look, self.engine.after_step(look))
                ended = self._clock()
                pace.note(self._spent_s + ended - began, ended)
            self.engine.end_step(optimizer)
            if self.engine.spent_s:
                pace.put_off(self.engine.spent_s)
                self.engine.spent_s = 0.0
            self._begin_next()
        except Exception as error:
            self._give_up(error)

    def _begin_next(self) -> None:
        """Say whether the step that begins now is looked at."""
        now = self._clock()
        self.engine.is_looking = False
        if [pace for pace in self._paces.values() if pace.will_be_due(now)]:
            self.engine.begin_look()

    def _make_pace(self, optimizer: Optimizer) -> Pace:
        """Return when to look at an optimizer; never at one that is not ours."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        devices = {p.device.type for p in params if id(p) in self._names}
        is_meant = not self._only or any(optimizer is other for other in self._only)
        if not devices or not is_meant:
            return Pace(optimizer, "", None, 0.0, is_ours=False)
        number = next(self._numbers)
        prefix = "watch" if number == 1 else f"watch/{number}"
        period_s = 0.0 if devices == {"cpu"} else DEVICE_PERIOD_S
        return Pace(optimizer, prefix, self._every, period_s, first=FIRST_LOOKS)

    def _begin(self, optimizer: Optimizer, pace: Pace) -> Look | None:
        """Return what there is to see; None where nothing has a gradient."""
        names, params, grads = list_gradients(optimizer, self._names)
        if not names:
            return None
        if grads[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        scale = getattr(optimizer, "grad_scale", None)
        tensors, step = (names, params, grads), self._voice.step + 1
        return Look(self.model, optimizer, step, *tensors, scale, pace.prefix, loss=self.loss)

    def _give_up(self, error: Exception) -> None:
        """Stop watching: training goes on."""
        self.close()
        self._warn("watch", error)

    def _warn(self, name: str, error: Exception) -> None:
        cause = f"the detector {name} failed and is off: {type(error).__name__}"
        self._voice.warn("detector-failed", name, cause, "train on without it", error=error)


def hold(voice: Voice, look: Look, values: Mapping[str, Tensor | float]) -> None:
    """Let values ride on the next line of metrics."""
    for key, value in values.items():
        voice.held[f"{look.prefix}/{key}"] = value


def list_gradients(
    optimizer: Optimizer, known: Mapping[int, str]
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Return names, parameters and gradients of what has one; values of a sparse one."""
    names, params, grads = [], [], []
    for group in optimizer.param_groups:
        for param in group["params"]:
            name = known.get(id(param))
            if name is None or param.grad is None:
                continue
            grad = param.grad.detach()
            names.append(name)
            params.append(param)
            grads.append(grad.coalesce().values() if grad.is_sparse else grad)
    return names, params, grads


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped, or the module itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model
