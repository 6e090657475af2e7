"""What a bad call came from, and what else brings it about: the call is run again, otherwise too.

Its first bad value is looked for; then, as long as there is time, a fresh model is given the same
batch, the same model the batch before, and parts of the batch show which samples are guilty. All of
it runs eagerly, and leaves no trace in the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tsx.diagnostics.arguments import name_arguments
from tsx.diagnostics.nonfinite.held_call import (
    HeldCall,
    count_samples,
    is_comparable,
    pick_samples,
)
from tsx.diagnostics.nonfinite.origin import Origin, find_origin
from tsx.diagnostics.tracing.reachable import list_modules
from tsx.diagnostics.tracing.replay import Rewinder, run_eagerly, set_generators
from tsx.diagnostics.tracing.trace import is_bad

MAX_S = 5.0  # for the origin and what is tried beside it; no trial begins that would take longer
MAX_SAMPLES = 16  # that are named
MANY = 8  # samples of a batch among which a guilty one is found with little work
LEAST_PART = 0.5  # of a batch that shows what the whole takes
_OF_ORIGIN = {False: 0.75, True: 0.3}  # a trial of what the origin took, by whether backward ran
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Explained:
    """What is known of a step that was bad.

    Attributes:
        index: of the bad call among those of the step.
        origin: of its first bad value.
        evidence: guilty "samples" of the call's batch and "num_samples", whether a "fresh_model"
            given these, or else the batch, and the "previous_batch" ("fails" or "passes"): of each
            what there was time for and could be told.
    """

    index: int
    origin: Origin
    evidence: dict[str, Any]


def redraw(model: nn.Module, has_time: Callable[[], bool]) -> bool:
    """Draw parameters anew: torch's way, or that of many code bases; False where nobody can."""
    init = getattr(model, "_init_weights", None)
    resets = {id(module): _find_reset(module) for module in model.modules()}
    if not callable(init) and any(
        resets[id(module)] is None and any(True for _ in module.parameters(recurse=False))
        for module in model.modules()
    ):
        return False
    for reset in resets.values():
        if not has_time():
            return False
        if reset is not None:
            reset()
    if callable(init):
        model.apply(init)
    return True


def _find_reset(module: nn.Module) -> Callable[[], Any] | None:
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(module, name, None)
        if callable(reset):
            return reset  # type: ignore[no-any-return]
    return None


class Explainer:
    """Explains calls of one model.

    Args:
        model: the module that trains; its parameters and gradients are those of the bad step.
        rewinder: of the model.
        find_loss: takes the loss out of what a call returns; None where there is none.
        renew: draws parameters anew, in place, as long as there is time; False where it cannot.
            One that it leaves out is seen.
    """

    def __init__(
        self,
        model: nn.Module,
        rewinder: Rewinder,
        find_loss: Callable[[Any], Any],
        renew: Callable[[nn.Module, Callable[[], bool]], bool] = redraw,
    ) -> None:
        self.model = model
        self.rewinder = rewinder
        self._find_loss = find_loss
        self._renew = renew

    def explain(
        self,
        calls: Sequence[HeldCall],
        find_previous: Callable[[int], HeldCall | None],
        *,
        backward: bool,
    ) -> Explained | None:
        """Return what is to be said of the first call that is bad, None where none is.

        Args:
            calls: of one step.
            find_previous: the call before the one of that index, None where it is not known.
            backward: losses were finite, gradients were not.
        """
        for index, call in enumerate(calls):
            if not call.is_repeatable(next(self.model.parameters(), None)):
                continue
            began = monotonic()
            losses: list[Tensor] = []
            with self.back_to(call):
                origin = find_origin(
                    self.model,
                    lambda call=call, losses=losses: self._note_loss(call, losses),  # type: ignore[misc]
                    name_arguments(call.args, call.kwargs),
                    backward=backward,
                )
            if origin is not None and not losses[0].requires_grad:
                return Explained(index, origin, {})  # it goes backward itself, perhaps, and steps
            if origin is not None:
                clock = _Clock(monotonic() - began, backward=backward)
                trials = _Trials(self, call, _list_suspects(self.model) if backward else [], clock)
                known = self._try(trials, origin, partial(find_previous, index))
                return Explained(index, origin, known)
        return None

    def _try(
        self, trials: _Trials, origin: Origin, find_previous: Callable[[], HeldCall | None]
    ) -> dict[str, Any]:
        """Return what else is known: guilty samples, a fresh model, the batch before."""
        told: list[int] | None = origin.cause.evidence.get("samples")
        if origin.phase == "optimizer":  # fewer samples and a fresh model would tell nothing
            return _say("previous_batch", _attempt(lambda: trials.fails_for(find_previous())))

        def find_samples() -> list[int]:
            return told or _attempt(trials.find_samples) or []

        guilty = find_samples() if trials.count >= MANY else []  # in few, one is half the work
        known = _say("fresh_model", _attempt(lambda: trials.fails_fresh(guilty)))
        known |= _say("previous_batch", _attempt(lambda: trials.fails_for(find_previous())))
        guilty = guilty if trials.count >= MANY else find_samples()
        if guilty and not told:
            known |= {"samples": guilty[:MAX_SAMPLES], "num_samples": len(guilty)}
        return known

    def get_loss(self, call: HeldCall) -> Tensor:
        """Return the loss of a call that is made again."""
        loss = self._find_loss(call.make())
        if not isinstance(loss, Tensor):
            raise TypeError("the call returned no loss this time")
        return loss

    @contextmanager
    def back_to(self, call: HeldCall) -> Iterator[None]:
        """Be where a call was made; what it does to any module it knows of is lost."""
        with ExitStack() as stack:
            known = _list_ids(self.model)
            for module in list_modules(call.fn):
                if not _list_ids(module) <= known:
                    other = Rewinder(module)
                    stack.enter_context(other.back_to(other.take(whole=True)))
            stack.enter_context(self.rewinder.back_to(call.moment))
            yield

    def _note_loss(self, call: HeldCall, losses: list[Tensor]) -> Tensor:
        losses.append(self.get_loss(call))
        return losses[-1]

    def renew(self, has_time: Callable[[], bool]) -> bool:
        """Draw all parameters anew, whose copies are in place; return whether none was left out."""
        for param in self.model.parameters():
            param.detach().fill_(torch.nan if _can_be_nan(param) else 0)
        is_drawn = self._renew(self.model, has_time)
        return is_drawn and not any(bool(p.detach().isnan().any()) for p in self.model.parameters())


class _Trials:
    """Makes one bad call again, otherwise than it was made, as long as there is time.

    What a trial returns is None where there is no time for it.
    """

    def __init__(
        self, explainer: Explainer, call: HeldCall, suspects: list[str], clock: _Clock
    ) -> None:
        self._explainer = explainer
        self._call = call
        self._suspects = suspects  # parameters whose gradients show whether a call fails
        self._clock = clock
        self.count = count_samples(call)

    def find_samples(self) -> list[int] | None:
        """Return the samples that bring it about; None where nobody can tell.

        Raises:
            TimeoutError: there was no time to find them all.
        """
        if self.count < 2:
            return None
        probes = {0, self.count // 2, self.count - 1}
        if all(self._fails_with([sample]) for sample in probes):
            return None  # it is no matter of samples
        guilty = self._search(list(range(self.count)), is_failing=True)
        well = next((sample for sample in range(self.count) if sample not in guilty), None)
        if well is None or len(guilty) > MAX_SAMPLES:
            return guilty
        # Some are bad only by themselves, as the mean over labels of which they have none.
        return [sample for sample in guilty if self._fails_with([sample, well])]

    def _search(self, some: list[int], *, is_failing: bool) -> list[int]:
        """Return the guilty ones of some samples; `is_failing` says that they are known to fail."""
        if not is_failing and not self._fails_with(some):
            return []
        if len(some) == 1:
            return some
        first, second = some[: len(some) // 2], some[len(some) // 2 :]
        guilty = self._search(first, is_failing=False)
        # What fails, and not for its first half, does for the second; one alone is always tried.
        return guilty + self._search(second, is_failing=not guilty and len(second) > 1)

    def _fails_with(self, samples: list[int]) -> bool:
        found = self._fails(pick_samples(self._call, samples), len(samples) / self.count)
        if found is None:
            raise TimeoutError
        return found

    def fails_fresh(self, samples: list[int]) -> bool | None:
        """Return whether a fresh model fails on the guilty samples, or else on the batch."""
        explainer, call, part = self._explainer, self._call, 1.0
        if samples and self.count:
            call, part = pick_samples(call, samples), len(samples) / self.count
        if not self._clock.has_time(part):
            return None
        with explainer.back_to(call), run_eagerly():
            has_time = partial(self._clock.has_time, part)
            if not explainer.renew(has_time) or not has_time():
                return None
            set_generators(call.moment)
            return self._look(call)

    def fails_for(self, call: HeldCall | None) -> bool | None:
        """Return whether another call fails, if it is one of the same function and as it was."""
        if call is None or not is_comparable(call, self._call):
            return None
        return self._fails(call)

    def _fails(self, call: HeldCall, part: float = 1.0) -> bool | None:
        """Return whether a call gives a bad loss, or bad gradients of the suspects."""
        if not self._clock.has_time(part):
            return None
        with self._clock.timing(part), self._explainer.back_to(call), run_eagerly():
            return self._look(call)

    def _look(self, call: HeldCall) -> bool:
        loss = self._explainer.get_loss(call)
        if is_bad(loss.detach()) or not self._suspects:
            return bool(is_bad(loss.detach()))
        params = dict(self._explainer.model.named_parameters())
        some = [params[name] for name in self._suspects]
        grads = torch.autograd.grad(loss, some, allow_unused=True)
        return any(grad is not None and is_bad(grad) for grad in grads)


class _Clock:
    """Says whether there is time for one more trial."""

    def __init__(self, origin_s: float, *, backward: bool) -> None:
        # Who has waited longer for the origin alone may wait as long again.
        self._until = monotonic() + (MAX_S - origin_s if origin_s < MAX_S else origin_s)
        self._trial_s = _OF_ORIGIN[backward] * origin_s

    def has_time(self, part: float = 1.0) -> bool:
        """Return whether a trial with that part of a batch would be over in time."""
        return monotonic() + part * self._trial_s <= self._until

    @contextmanager
    def timing(self, part: float) -> Iterator[None]:
        """Learn what a trial takes from one that is made inside."""
        began = monotonic()
        yield
        if part >= LEAST_PART:  # a smaller one takes what any call takes
            self._trial_s = max(self._trial_s, (monotonic() - began) / part)


def _attempt(trial: Callable[[], T | None]) -> T | None:
    """Return what a trial tells; None where it fails: what is known already is worth more."""
    try:
        return trial()
    except Exception:  # a batch of another size is refused, there is no memory for a fresh model
        return None


def _say(key: str, is_failing: bool | None) -> dict[str, Any]:
    return {} if is_failing is None else {key: "fails" if is_failing else "passes"}


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


def _can_be_nan(param: Tensor) -> bool:
    return param.is_floating_point() or param.is_complex()


def _list_ids(module: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
