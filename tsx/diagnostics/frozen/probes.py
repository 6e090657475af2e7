"""What is measured of suspects: gradients after the backward pass and at the step, the shadow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsx.diagnostics.detector import Voice
from tsx.diagnostics.frozen.shadow import cast_shadow
from tsx.diagnostics.frozen.tracks import Track

MAX_SUSPECTS = 128  # that are measured in one step
MAX_HOOKED = 32  # parameters whose gradient is measured as it comes


class Probes:
    """Measures suspects over one step.

    Args:
        voice: numbers are read through it.
    """

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._hooks: list[Any] = []
        self._seen: dict[int, Tensor] = {}  # by parameter: norm right after the backward pass
        self._factor: Tensor | None = None  # that a scaler multiplies the loss with
        self._numbers: list[tuple[Track, list[Tensor]]] = []
        self._kept: list[tuple[Track, Tensor, Tensor]] = []
        self._rates: dict[tuple[int, int], float] = {}

    def begin(self, suspects: Sequence[Track]) -> None:
        """Measure the gradients of these parameters as they come."""
        self.end()
        params = {id(track.unit.param): track.unit.param for track in suspects}
        for param in list(params.values())[:MAX_HOOKED]:
            if param.requires_grad and param.is_leaf:
                self._hooks.append(param.register_post_accumulate_grad_hook(self._saw_gradient))  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Measure no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen, self._factor = [], {}, None

    def follow(self, loss: Tensor) -> None:
        """See what the gradient of a loss is multiplied with."""
        if self._hooks and loss.requires_grad:
            loss.register_hook(self._saw_factor)  # type: ignore[no-untyped-call]

    def before_step(
        self, optimizer: Optimizer, suspects: Sequence[Track], grads: dict[int, Tensor]
    ) -> None:
        """Measure suspects that an optimizer is about to move.

        Args:
            optimizer: about to step.
            suspects: of any optimizer.
            grads: by the id of their parameters.
        """
        self._numbers, self._kept = [], []
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for track in suspects[:MAX_SUSPECTS]:
            key = id(track.unit.param)
            if key not in groups:
                continue
            grad = grads.get(key)
            seen = self._seen.get(key)
            if grad is not None and grad.shape == track.unit.param.shape:
                self._measure(track, optimizer, groups[key], grad, seen)
            elif grad is None and seen is not None:
                self._voice.read_late(seen, partial(_note_seen, track))

    def note_rates(self, optimizer: Optimizer, suspects: Sequence[Track]) -> None:
        """Note the rate of each suspect's group, and whether it rises."""
        rates: dict[int, tuple[float, bool]] = {}
        for number, group in enumerate(optimizer.param_groups):
            rate = group.get("lr")
            if isinstance(rate, Tensor):
                rate = rate.item() if rate.device.type == "cpu" else None
            if not isinstance(rate, int | float):
                continue
            before = self._rates.get((id(optimizer), number), rate)
            self._rates[id(optimizer), number] = rate
            rates |= {id(p): (float(rate), rate > before) for p in group["params"]}
        for track in suspects:
            found = rates.get(id(track.unit.param))
            if found is not None:
                track.facts.lr, track.facts.is_lr_rising = found
                track.facts.has_other_rate = any(self._rates.values())

    def after_step(self) -> None:
        """Hand on what was measured, as soon as it can be read."""
        for (track, numbers), (_, at, old) in zip(self._numbers, self._kept, strict=True):
            now = track.unit.take(track.unit.param).detach().reshape(-1)[at]
            numbers.append((now != old).float())
            device = numbers[0].device
            values = torch.stack([number.to(device, torch.float32) for number in numbers])
            self._voice.read_late(values, partial(_note, track))
        self._numbers, self._kept = [], []

    def _saw_gradient(self, param: Tensor) -> None:
        grad = param.grad
        if grad is not None and not grad.is_sparse:
            self._seen[id(param)] = grad.detach().float().norm()

    def _saw_factor(self, grad: Tensor) -> None:
        self._factor = grad.detach().float().norm()

    def _measure(
        self,
        track: Track,
        optimizer: Optimizer,
        group: dict[str, Any],
        grad: Tensor,
        seen: Tensor | None,
    ) -> None:
        unit = track.unit
        piece = unit.take(grad).detach().float()
        unknown = torch.tensor(math.nan)
        numbers = [piece.norm(), grad.detach().float().norm()]
        numbers.append(unknown if seen is None else seen)
        numbers.append(unknown if self._factor is None else self._factor)
        shadow = cast_shadow(optimizer, group, unit, grad)
        numbers += [unknown] * 3 if shadow is None else list(shadow)
        at = piece.abs().reshape(-1).argmax()
        self._numbers.append((track, numbers))
        old = unit.take(unit.param).detach().reshape(-1)[at].clone()
        self._kept.append((track, at, old))


def _note_seen(track: Track, norm: float) -> None:
    track.facts.seen_grad = norm


def _note(track: Track, numbers: list[float]) -> None:
    """Turn what was measured into facts."""
    piece, whole, seen, factor, lost, update, half_ulp, moved = numbers
    facts = track.facts
    facts.grad = piece
    unscaled = seen / factor if factor else math.nan
    facts.seen_grad = unscaled if math.isfinite(unscaled) else None
    facts.left = whole / unscaled if facts.seen_grad else None
    facts.is_lost = None if math.isnan(lost) else bool(lost)
    facts.update, facts.half_ulp = update, half_ulp
    if track.still and moved and not facts.is_lost and piece:
        track.is_sparse = True
