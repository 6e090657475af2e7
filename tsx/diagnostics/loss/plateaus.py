"""A training loss that stands: nothing moves, nothing can be learned, or nothing gets through.

Judged once the loss is known to stand (`tsx.curves.levels.find_plateau`), at 40 losses and each
time their number has doubled. Which cause it is, the parameters tell: they have not moved, though
gradients would move them (a rate too small), or have none to follow (an output at its end); or they
have moved, and the loss is what labels cost without looking at the inputs.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from registry.events import Severity
from tsx.curves.levels import Change, find_plateau, measure_change
from tsx.diagnostics.detector import Detector, Kind, Look, Scene, Values
from tsx.diagnostics.loop import schedules
from tsx.diagnostics.loop.updates import is_measurable
from tsx.diagnostics.tracing.tape import OpSeen

_FIRST = 40  # losses before anything is said
_MAX_LOSSES = 8192  # kept; of more, every second one
_SAMPLE = 512  # elements kept of each parameter, to see whether it has moved
_UNMOVED = 1e-3  # of their size, in all steps together: a model learns with hundredths
_SATURATED = 0.95  # of the elements of an output at its ends
_NEAR_END = 1e-6  # fp32 cannot tell tanh from 1 closer than that
_SURE = 2.0  # standard errors by which a loss has fallen that does not stand altogether
_SAME_COST = 0.1  # share by which a loss may differ from that of a constant guess
_RANGES = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "hardtanh": (-1.0, 1.0)}
_ENTROPIES = frozenset({"cross_entropy", "nll_loss"})
_ERRORS = frozenset({"mse_loss"})

PLATEAU = Kind(
    "plateau",
    "The loss has not fallen by a twentieth since the run began, beyond its noise.",
    "A classifier stood at the logarithm of its classes for days: labels had been shuffled apart "
    "from their pictures.",
    "The loss of the first and the last quarter, how far parameters `moved` in all, the loss of a "
    "`constant_guess`, the `saturated_share` of an output.",
    "Raise the rate; look at a batch with its labels side by side; take the squashing away.",
)


class Plateau(Detector):
    """Keeps the losses, a sample of the first parameters, and what outputs and labels look like."""

    name = "plateau"
    is_constant = True
    kinds = (PLATEAU,)
    functions = frozenset({*_RANGES, *_ENTROPIES, *_ERRORS})

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._losses = array("d")
        self._count = 0
        self._due = _FIRST
        self._ends: dict[tuple[str, str, str], float] = {}  # op, module, where: share at an end
        self._labels: Counter[int] = Counter()
        self._variance: list[float] = []  # of the targets of each traced call
        self._start = {
            name: _take_sample(param)
            for name, param in scene.model.named_parameters()
            if param.requires_grad and is_measurable(param) and param.numel()
        }
        self._has_gradient = True
        self._rate: float | None = None  # half way to where the losses are judged

    def saw_function(self, seen: OpSeen) -> None:
        """See how much of an output is at its ends, and what the labels are."""
        if not isinstance(seen.out, Tensor) or not seen.out.requires_grad:
            return
        if seen.name in _RANGES:
            low, high = _RANGES[seen.name]
            out = seen.out.detach().float()
            at_end = (out <= low + _NEAR_END) | (out >= high - _NEAR_END)
            self._ends[seen.name, seen.module, seen.where] = float(at_end.float().mean())
        elif len(seen.args) > 1 and isinstance(seen.args[1], Tensor):
            target = seen.args[1].detach()
            if seen.name in _ERRORS:
                self._variance.append(float(target.float().var(correction=0)))
            elif not target.is_floating_point():
                ignored = seen.kwargs.get("ignore_index", -100)
                self._labels.update(target[target != ignored].reshape(-1).tolist())

    def before_step(self, look: Look) -> Values | None:
        """Note whether there is any gradient to follow."""
        if self._count + 1 >= self._due:
            norms = torch._foreach_norm(look.grads)
            self._has_gradient = bool(torch.stack([norm.float() for norm in norms]).any())
        return None

    def saw_loss(self, loss: float, step: int) -> None:
        """Keep a loss."""
        if not self.scene.trains or not math.isfinite(loss):
            return
        self._count += 1
        every = 1 + (self._count - 1) // _MAX_LOSSES
        if self._count % every == 0:
            self._losses.append(loss)
        if len(self._losses) > 2 * _MAX_LOSSES:
            self._losses = self._losses[::2]

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Judge the losses when there are twice as many as the last time."""
        if self._rate is None and 2 * self._count >= self._due:
            self._rate = schedules.find_rate(optimizer) or 0.0
        if self._count < self._due:
            return
        self._due = 2 * self._count
        before, self._rate = self._rate or 0.0, None
        if (schedules.find_rate(optimizer) or 0.0) > before:
            return  # a warm-up is to stand at first
        change = find_plateau(self._losses)
        if change is not None and not self.scene.declared.fixed_batch:
            self._explain(change)

    def _explain(self, change: Change) -> None:
        """Report a loss that stands, by what the parameters tell."""
        moved = self._measure_move()
        evidence: dict[str, Any] = {
            "first_quarter": change.before,
            "last_quarter": change.after,
            "losses": self._count,
            "moved": moved,
        }
        guess = self._find_guess()
        # A thousand classes, or a rate for fine-tuning, take longer than this: it falls, slowly.
        is_still = not self._goes_on()
        if moved < _UNMOVED and self._blame_saturation(evidence):
            return
        if moved < _UNMOVED and self._has_gradient and is_still:
            rates = [float(g["lr"]) for o in self.scene.optimizers for g in o.param_groups]
            self._report(
                "lr-too-small",
                "the loss stands, and parameters hardly move although they have gradients: the "
                "learning rate is too small",
                "raise the learning rate by factors of ten until the loss falls",
                {**evidence, "lr": max(rates, default=0.0)},
            )
        elif moved >= _UNMOVED and is_still and self._costs_a_guess(change, guess):
            self._report(
                "labels-independent",
                "the loss stands at what a constant guess costs, while parameters move: the labels "
                "do not depend on what the model sees",
                "look at some samples beside their labels: are both in the same order, and does "
                "the input reach the model",
                {**evidence, "constant_guess": guess},
            )
        elif not self._blame_saturation(evidence):
            self._report(
                "unexplained",
                "the loss stands, and neither rate nor labels nor a squashed output explains it",
                "try to learn one batch by heart: tsx run overfit, or fixed_batch=True",
                evidence,
                # What has been learned before stands too, and so does what is slow to begin.
                severity=Severity.INFO,
            )

    def _blame_saturation(self, evidence: dict[str, Any]) -> bool:
        """Report an output that is at its ends nearly everywhere, if there is one."""
        full = [(share, place) for place, share in self._ends.items() if share >= _SATURATED]
        if not full:
            return False
        share, (name, module, where) = max(full)
        self._report(
            "saturated",
            f"the loss stands because {name} is at its end nearly everywhere: no gradient leads "
            "away from there",
            "start with smaller outputs, or take the squashing away and let the loss do it",
            {**evidence, "saturated_share": share},
            module=module,
            where=where,
            op=name,
        )
        return True

    def _report(
        self,
        mechanism: str,
        cause: str,
        fix: str,
        evidence: dict[str, Any],
        *,
        module: str = "",
        where: str = "",
        op: str = "",
        severity: Severity = Severity.WARNING,
    ) -> None:
        self.scene.report(
            "plateau",
            mechanism,
            cause,
            fix,
            severity=severity,
            phase="optimizer",
            module=module,
            where=where,
            op=op,
            evidence=evidence,
        )

    def _measure_move(self) -> float:
        """Return how far the parameters are from where they began, against their size."""
        moved = size = 0.0
        for name, param in self.scene.model.named_parameters():
            start = self._start.get(name)
            now = _take_sample(param)
            if start is None or start.shape != now.shape:
                continue
            moved += float((now - start).square().sum())
            size += float(start.square().sum())
        return math.sqrt(moved / size) if size else math.inf

    def _goes_on(self) -> bool:
        """Return whether the loss falls beyond doubt, behind the first steps' settling."""
        quarter = len(self._losses) // 4
        late = measure_change(self._losses[quarter : 2 * quarter], self._losses[-quarter:])
        return late.before - late.after > _SURE * late.error

    def _costs_a_guess(self, change: Change, guess: float) -> bool:
        """Return whether the loss is that of a constant guess, and not below it."""
        if not guess or abs(change.after / guess - 1) >= _SAME_COST:
            return False
        return change.after >= guess - _SURE * change.error

    def _find_guess(self) -> float:
        """Return the loss of the best guess that looks at no input, 0 where nobody knows it."""
        total = sum(self._labels.values())
        if total:
            return -sum(n / total * math.log(n / total) for n in self._labels.values())
        return sum(self._variance) / len(self._variance) if self._variance else 0.0


def _take_sample(param: Tensor) -> Tensor:
    """Return the first elements of a parameter as they are now, on the host."""
    real = torch.view_as_real(param.detach()) if param.is_complex() else param.detach()
    return real.reshape(-1)[:_SAMPLE].float().cpu().clone()
