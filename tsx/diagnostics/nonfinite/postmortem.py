"""What to say of a step whose loss or gradient is not finite, found by running it again.

Holds on to the calls of the step under way and the last one of the step before (their arguments
stay in memory), and explains them: the origin of the first bad value, the samples that bring it
about, whether a fresh model fails on the same batch, whether the batch before passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from registry.events import Finding, Severity
from tsx.diagnostics.arguments import name_arguments
from tsx.diagnostics.nonfinite.origin import Origin, describe_origin, find_origin
from tsx.diagnostics.tracing.replay import Moment, Rewinder, swapped
from tsx.diagnostics.tracing.trace import is_bad

MAX_CALLS = 8  # of one step: micro-batches
MAX_S = 5.0  # for the origin and what is tried beside it; no trial begins that would take longer
_OF_ORIGIN = 0.4  # a trial takes about so much of what the origin took
MAX_SAMPLES = 16  # that are named


@dataclass(slots=True)
class HeldCall:
    """One call that gave a loss, and what it depended on."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    moment: Moment


class Postmortem:
    """Explains steps of one model.

    Args:
        model: the module that trains.
        find_loss: takes the loss out of what a call returns; None where there is none.
    """

    def __init__(self, model: nn.Module, find_loss: Callable[[Any], Any]) -> None:
        self._model = model
        self._find_loss = find_loss
        self._rewinder = Rewinder(model)
        self.keep: Callable[..., Mapping[str, Any]] | None = None  # see tsx.recording.dumping
        self._calls: deque[HeldCall] = deque(maxlen=MAX_CALLS)
        self._previous: HeldCall | None = None
        self._suspects: list[str] = []  # parameters whose gradients trials look at
        self._until = self._trial_s = 0.0  # when trials are to be over, and what one may take
        self._param: Tensor | None = None  # the first one: where the model is

    def begin_call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Remember a call that is about to be made, where its loss can be judged at once.

        On an accelerator it is read later, and arguments that are held on to would take its memory.
        """
        if self._param is None or self._param.device.type != "cpu":
            self._param = next(self._model.parameters(), None)  # it may have been moved
            if self._param is None or self._param.device.type != "cpu":
                return
        self._calls.append(HeldCall(fn, args, kwargs, self._rewinder.take()))

    def end_step(self) -> None:
        """The optimizer has stepped: what was called before it cannot be run again any more."""
        if self._calls:
            self._previous = self._calls[-1]
        self._calls.clear()

    def explain_loss(
        self, *, step: int, time: float, evidence: Mapping[str, Any] | None = None
    ) -> Finding | None:
        """Return what is to be said of the last call, whose loss is not finite."""
        return self._explain(list(self._calls)[-1:], False, step, time, evidence)

    def explain_gradients(
        self, *, step: int, time: float, evidence: Mapping[str, Any] | None = None
    ) -> Finding | None:
        """Return what is to be said of a step whose losses are finite and gradients are not."""
        return self._explain(list(self._calls), True, step, time, evidence)

    def _explain(
        self,
        calls: list[HeldCall],
        backward: bool,
        step: int,
        time: float,
        evidence: Mapping[str, Any] | None,
    ) -> Finding | None:
        began = monotonic()
        for call in calls:
            with self._rewinder.back_to(call.moment):
                origin = find_origin(
                    self._model,
                    lambda call=call: self._get_loss(call),  # type: ignore[misc]
                    name_arguments(call.args, call.kwargs),
                    backward=backward,
                )
            if origin is not None:
                self._suspects = _list_suspects(self._model)
                self._until, self._trial_s = began + MAX_S, _OF_ORIGIN * (monotonic() - began)
                tried = self._try_more(call, origin, backward)
                known = {**tried, **(evidence or {})}
                if self.keep is not None:
                    known |= self.keep(call, self._model, step, known)
                return describe_origin(
                    origin, step=step, time=time, severity=Severity.ERROR, evidence=known
                )
        return None

    def _try_more(self, call: HeldCall, origin: Origin, backward: bool) -> dict[str, Any]:
        """Return what else is known: guilty samples, a fresh model, the batch before."""
        known: dict[str, Any] = {}
        if origin.phase != "optimizer" and self._has_time():
            with swapped(self._model, "_parameters", _clone_parameter):
                if _reset(self._model):
                    known["fresh_model"] = _say(self._fails(call, call.args, backward))
        if self._previous is not None and self._has_time():
            before = self._previous
            known["previous_batch"] = _say(self._fails(before, before.args, backward))
        samples = self._find_samples(call, backward)
        if samples is not None and "samples" not in origin.cause.evidence:
            known |= {"samples": samples, "num_samples": len(samples)}
        return known

    def _has_time(self, part: float = 1.0) -> bool:
        """Return whether there is time for one more trial, with that part of a batch."""
        return monotonic() + part * self._trial_s <= self._until

    def _find_samples(self, call: HeldCall, backward: bool) -> list[int] | None:
        """Return the samples that bring it about on their own; None where nobody can tell."""
        tensors = [value for value in call.args if isinstance(value, Tensor) and value.ndim]
        if not tensors or len({len(value) for value in tensors}) > 1 or len(tensors[0]) < 2:
            return None
        guilty: list[int] = []
        pending = [list(range(len(tensors[0])))]
        while pending and len(guilty) < MAX_SAMPLES:
            some = pending.pop()
            if not self._has_time(len(some) / len(tensors[0])):
                return None
            part = tuple(
                value[some] if isinstance(value, Tensor) and value.ndim else value
                for value in call.args
            )
            try:
                fails = self._fails(call, part, backward)
            except Exception:  # a batch of another size is refused: nobody can tell
                return None
            if fails and len(some) == 1:
                guilty += some
            elif fails:
                half = len(some) // 2
                pending += [some[half:], some[:half]]
        is_any = len(guilty) == len(tensors[0])  # it is no matter of samples
        return None if is_any or not guilty else sorted(guilty)

    def _fails(self, call: HeldCall, args: tuple[Any, ...], backward: bool) -> bool:
        """Return whether a call with these arguments gives a bad loss, or bad gradients."""
        with self._rewinder.back_to(call.moment):
            loss = self._find_loss(call.fn(*args, **call.kwargs))
            if is_bad(loss.detach()) or not backward:
                return bool(is_bad(loss.detach()))
            params = dict(self._model.named_parameters())  # a fresh model's, perhaps
            some = [params[name] for name in self._suspects]
            grads = torch.autograd.grad(loss, some, allow_unused=True)
            return any(grad is not None and is_bad(grad) for grad in grads)

    def _get_loss(self, call: HeldCall) -> Tensor:
        loss = self._find_loss(call.fn(*call.args, **call.kwargs))
        if not isinstance(loss, Tensor):
            raise TypeError("the call returned no loss this time")
        return loss


def _list_suspects(model: nn.Module) -> list[str]:
    """Return the parameters whose gradients are to show whether another call fails too.

    Of those that are bad now the biases and norms of the block nearest to the loss: there the
    backward pass ends, and no time goes into the gradients of matrices.
    """
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    held = {name: param.grad for name, param in params.items() if param.grad is not None}
    bad = [name for name, grad in held.items() if grad.is_sparse or is_bad(grad)]
    small = [name for name in bad if params[name].ndim < 2]
    near = [name for name in small if name.split(".")[:2] == small[-1].split(".")[:2]]
    return near or bad or list(params)


def _clone_parameter(name: str, param: Tensor) -> Tensor:
    return nn.Parameter(param.detach().clone(), requires_grad=param.requires_grad)


def _reset(model: nn.Module) -> bool:
    """Draw all parameters anew; return whether every module that has some could."""
    for module in model.modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset):
            return False
        reset()
    return True


def _say(fails: bool) -> str:
    return "fails" if fails else "passes"
