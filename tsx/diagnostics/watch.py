"""Looks at any model as its optimizer steps: gradients, updates, what is not finite.

Works through the hooks that every `torch.optim.Optimizer` calls before and after a step, so it sees
accumulated gradients once, unscaled by a GradScaler, and steps that a scaler leaves out not at all.
A look is taken as often as its cost stays below 0.5 % of the time. On an accelerator nothing is
waited for: results are handed on as tensors and read later, and a look is taken at most once a
second, for its cost there is not seen.

Above `SAMPLE` parameters the update ratio is that of every n-th element. A fused optimizer under a
GradScaler steps on scaled gradients: their norm is divided by the scale, and what is not finite in
them is the scaler's to answer. Not covered: gradients inside captured CUDA graphs.

Further detectors are `Observer`s; one that fails is told of and asked no more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from registry.events import Event, Finding, Severity
from tsx.diagnostics.grad_guard import GradGuard
from tsx.diagnostics.nonfinite import MAX_NAMES, describe
from tsx.diagnostics.pace import Pace
from tsx.diagnostics.postmortem import Postmortem

DEVICE_PERIOD_S = 1.0  # between looks on an accelerator
SAMPLE = 4_000_000  # elements that are kept from before a step to after it

# What helps in anybody's loop, by where the first bad value arose.
FIXES = {
    "config": "look at how this parameter is initialised",
    "optimizer": "go on from an earlier checkpoint with a lower learning rate or clipped gradients",
    "forward": "lower the learning rate, or look at the batch of this step",
    "backward": "clip gradients, lower the learning rate, or look for a division, log or sqrt at 0",
}
_HALF = {torch.float16, torch.bfloat16}


class Voice(Protocol):
    """What a watch speaks through."""

    held: dict[str, Tensor | float]  # values that ride on the next line of metrics

    @property
    def step(self) -> int:
        """The step that was logged last."""

    def emit(self, event: Event) -> None:
        """Record a finding."""

    def read_late(self, tensor: Tensor, take: Callable[[Any], None]) -> None:
        """Hand `tensor.tolist()` to `take`: at once from the host, later from a device."""

    def warn(
        self, kind: str, topic: str, cause: str, fix: str, *, error: BaseException | None = None
    ) -> None:
        """Tell of something once a topic."""


@dataclass(slots=True)
class Look:
    """One look: an optimizer about to step, or that has just stepped. Only what has a gradient."""

    model: nn.Module
    optimizer: Optimizer
    step: int  # the one under way, the first being 1
    names: list[str]
    params: list[Tensor]
    grads: list[Tensor]
    scale: Tensor | None  # what the gradients are still multiplied with
    prefix: str  # of the keys: "watch" or "watch/2" and so on for further optimizers
    loss: float | None = None  # where it was seen
    kept: dict[str, Any] = field(default_factory=dict)  # from before the step to after it


class Observer(Protocol):
    """A detector. Values it returns are recorded; 0-d tensors on a device are read later."""

    name: str

    def before(self, look: Look) -> Mapping[str, Tensor | float]:
        """See gradients and parameters before the optimizer steps."""

    def after(self, look: Look) -> Mapping[str, Tensor | float]:
        """See the parameters after the step."""


class GradNorm:
    """Total norm of the gradients, and a finding where one of them is not finite."""

    name = "grad_norm"

    def __init__(self, voice: Voice, watch: Watch) -> None:
        self._voice = voice
        self._watch = watch
        self._is_told = False

    def before(self, look: Look) -> Mapping[str, Tensor | float]:
        """Return the norm of all gradients as one vector."""
        norms = measure_norms(look.grads)
        total = torch.linalg.vector_norm(norms)
        if look.scale is not None:
            return {"grad_norm": total / look.scale.to(total.device)}
        names, step, at_hand = look.names, look.step, [look]
        # Values of a device arrive when these gradients are gone.
        self._voice.read_late(norms, lambda values: self._check(step, names, values, *at_hand))
        at_hand.clear()
        return {"grad_norm": total}

    def after(self, look: Look) -> Mapping[str, Tensor | float]:
        """Nothing is left to see."""
        return {}

    def _check(
        self, step: int, names: list[str], norms: list[float], look: Look | None = None
    ) -> None:
        """Tell of gradients that are not finite, once until they are finite again."""
        bad = [name for name, norm in zip(names, norms, strict=True) if not math.isfinite(norm)]
        if look is not None and bad:  # squares of large gradients overflow before they do
            held = dict(zip(look.names, look.grads, strict=True))
            bad = [name for name in bad if not held[name].isfinite().all()]
        if bad and not (self._is_told or self._watch.is_explained):
            self._voice.emit(self._find(step, bad, len(names), look))
        self._is_told = bool(bad)

    def _find(self, step: int, bad: list[str], total: int, look: Look | None) -> Finding:
        """Return the finding; the gradients themselves are at hand on the host only."""
        if look is not None:
            explained = self._watch.explain_gradients(step)
            if explained is not None:
                return explained
            finding = describe(
                look.model,
                loss=look.loss,
                grad_norm=math.nan,
                inputs=(),
                step=step,
                time=time.time(),
            )
            return msgspec.structs.replace(finding, fix=FIXES.get(finding.phase, finding.fix))
        evidence = {"nonfinite_gradients": bad[-MAX_NAMES:][::-1]}
        return Finding(
            time=time.time(),
            kind="non-finite",
            severity=Severity.ERROR,
            step=step,
            phase="backward",
            module=bad[-1],  # backward runs from the loss to the input: its first
            cause="the norm of a gradient is not finite",
            evidence={**evidence, "num_nonfinite_gradients": len(bad), "num_gradients": total},
            fix=FIXES["backward"],
        )


class UpdateRatio:
    """||dw|| / ||w|| of one step, over the parameters that were not all zero at the start."""

    name = "update_ratio"

    def __init__(self, model: nn.Module) -> None:
        params = [p for p in model.parameters() if is_measurable(p)]
        norms = measure_norms([p.detach() for p in params]).tolist() if params else []
        self._zero = {id(p) for p, norm in zip(params, norms, strict=True) if norm == 0}

    def before(self, look: Look) -> Mapping[str, Tensor | float]:
        """Keep what the parameters are."""
        params = [p for p in look.params if id(p) not in self._zero]
        every = max(1, math.ceil(sum(p.numel() for p in params) / SAMPLE))
        look.kept["every"], look.kept["params"] = every, params
        look.kept["old"] = [part.clone() for part in _list_parts(params, every)]
        return {}

    def after(self, look: Look) -> Mapping[str, Tensor | float]:
        """Return how far they went."""
        old = look.kept["old"]
        if not old:
            return {}
        new = _list_parts(look.kept["params"], look.kept["every"])
        moved = torch.linalg.vector_norm(measure_norms(torch._foreach_sub(new, old)))
        return {"update_ratio": moved / torch.linalg.vector_norm(measure_norms(old))}


class Watch:
    """Watches one model until it is closed.

    Args:
        model: the module that trains; compiled and wrapped ones are fine.
        optimizer: only its steps; None for every optimizer that holds the model's parameters.
        voice: gets values and findings.
        numbers: counts optimizers over all watches of a run, from 1, for the names of keys.
        causal: the model must not see the future of a sequence.
        every: steps from one look to the next; None for as many as keep the cost low.
        clock: seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: object,
        voice: Voice,
        *,
        numbers: Iterator[int],
        causal: bool = True,
        every: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = unwrap(model)
        self.causal = causal
        self.observers: list[Observer] = [
            GradNorm(voice, self),
            UpdateRatio(self.model),
        ]
        self.loss: float | None = None  # of the step under way, where it was seen
        self.postmortem: Postmortem | None = None
        self.is_explained = False  # the step under way: its gradients need no finding of their own
        self._voice = voice
        self._numbers = numbers
        self._every = every
        self._clock = clock
        self._names = {
            id(p): name.replace("_orig_mod.", "") for name, p in self.model.named_parameters()
        }
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

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._look = None

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        try:
            pace = self._paces.get(id(optimizer))
            if pace is None or pace.optimizer() is not optimizer:
                pace = self._paces[id(optimizer)] = self._make_pace(optimizer)
            began = self._clock()
            is_due = pace.is_due(began)
            if not pace.is_ours or not (is_due or self._is_bad(optimizer)):
                return
            with torch.no_grad():
                self._look = self._begin(optimizer, pace)
                if self._look is not None:
                    self._ask("before", self._look)
            self._spent_s = self._clock() - began
        except Exception as error:
            self._give_up(error)

    def _is_bad(self, optimizer: Optimizer) -> bool:
        """Return whether a look is called for though none is due, and what it finds explained."""
        return self.postmortem is not None and self._guard.sees_bad(optimizer)

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
        if self.postmortem is not None:
            self.postmortem.end_step()
        look = self._look
        if look is None or look.optimizer is not optimizer:
            return
        self._look = self.loss = None
        try:
            began = self._clock()
            with torch.no_grad():
                self._ask("after", look)
            ended = self._clock()
            pace.note(self._spent_s + ended - began, ended)
        except Exception as error:
            self._give_up(error)

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
        return Pace(optimizer, prefix, self._every, period_s)

    def _begin(self, optimizer: Optimizer, pace: Pace) -> Look | None:
        """Return what there is to see; None where nothing has a gradient."""
        names, params, grads = [], [], []
        for group in optimizer.param_groups:
            for param in group["params"]:
                name = self._names.get(id(param))
                if name is None or param.grad is None:
                    continue
                grad = param.grad.detach()
                names.append(name)
                params.append(param)
                grads.append(grad.coalesce().values() if grad.is_sparse else grad)
        if not names:
            self._voice.warn(
                "no-gradient",
                pace.prefix,
                "the optimizer stepped, but no watched parameter has a gradient",
                "call loss.backward() before optimizer.step(); look for detach() and no_grad()",
            )
            return None
        if grads[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        scale = getattr(optimizer, "grad_scale", None)
        step, loss = self._voice.step + 1, self.loss
        return Look(
            self.model, optimizer, step, names, params, grads, scale, pace.prefix, loss=loss
        )

    def _ask(self, when: str, look: Look) -> None:
        """Let every observer see; one that fails is told of and asked no more."""
        for observer in list(self.observers):
            try:
                values = getattr(observer, when)(look)
            except Exception as error:
                self.observers.remove(observer)
                self._warn(observer.name, error)
            else:
                for key, value in values.items():
                    self._voice.held[f"{look.prefix}/{key}"] = value

    def _give_up(self, error: Exception) -> None:
        """Stop watching: training goes on."""
        self.close()
        self._warn("watch", error)

    def _warn(self, name: str, error: Exception) -> None:
        cause = f"the detector {name} failed and is off: {type(error).__name__}"
        self._voice.warn("detector-failed", name, cause, "train on without it", error=error)


def measure_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of each tensor as one vector on the first one's device; in fp32 for halves.

    The sum of squares of 16-bit numbers would overflow.
    """
    wide = torch.float32 if any(t.dtype in _HALF for t in tensors) else None
    norms = torch._foreach_norm(list(tensors), 2, dtype=wide)
    return torch.stack([norm.to(norms[0].device, norms[0].dtype) for norm in norms])


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped, or the module itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def is_measurable(param: Tensor) -> bool:
    """Return whether a parameter has values: not a lazy one, nor one on the meta device."""
    return not (torch.nn.parameter.is_lazy(param) or param.is_meta)


def _list_parts(params: Sequence[Tensor], every: int) -> list[Tensor]:
    """Return every n-th element of each parameter, as flat views where that can be."""
    return [p.detach().reshape(-1)[::every] for p in params]
