"""Which parameters stand still, look after look.

Owns the counting: a unit is suspected once it has not moved in a step, once its step was undone
before the next, or once it had no gradient. What the few numbers of a sample do not show is made
up for by the number with the largest gradient, which a suspect has to keep too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tsx.diagnostics.detector import Voice
from tsx.diagnostics.frozen.causes import Facts
from tsx.diagnostics.frozen.samples import Sampler, Unit


@dataclass(slots=True)
class Track:
    """What is known of one unit over the looks."""

    facts: Facts
    still: int = 0  # looks in a row at which it stood still
    undone: int = 0  # looks in a row at which its last step had been undone
    gradless: int = 0  # looks in a row without a gradient, or with one of zero
    step: int = 0  # of the last look
    has_moved: bool = False  # in the last step that was looked at
    is_said: bool = False
    is_sparse: bool = False  # moves, though its few numbers do not show it

    @property
    def unit(self) -> Unit:
        """What is tracked."""
        return self.facts.unit

    @property
    def looks(self) -> int:
        """How many looks in a row it has been suspected."""
        return max(self.still, self.undone, self.gradless)

    @property
    def is_suspect(self) -> bool:
        """Whether it is to be looked into."""
        return self.looks > 0 and not (self.is_said or self.is_sparse)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of one optimizer: whose it is, and what had a gradient."""

    optimizer: Optimizer
    number: int
    held: frozenset[int]
    with_grad: frozenset[int]
    wanting: frozenset[int]

    @classmethod
    def see(cls, optimizer: Optimizer, number: int, units: Sequence[Unit]) -> Step:
        """Return the step that an optimizer is about to take, or has taken."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        return cls(
            optimizer,
            number,
            frozenset(map(id, params)),
            frozenset(id(p) for p in params if p.grad is not None),
            frozenset(id(u.param) for u in units if u.param.requires_grad),
        )


class Tracks:
    """Follows the parameters of one model.

    Args:
        model: whose parameters, also when it gets others later.
        voice: comparisons are read through it.
    """

    def __init__(self, model: nn.Module, voice: Voice) -> None:
        self._model = model
        self._voice = voice
        self._by_name: dict[str, Track] = {}
        self._old: dict[int, Tensor] = {}  # by optimizer: the numbers before its last look
        self._sampler = Sampler({})
        self._first = torch.zeros(0)
        self.refresh()

    def __iter__(self) -> Iterator[Track]:
        """Yield all tracks, in the order of the parameters."""
        return iter(self._by_name.values())

    def is_any_in(self, step: Step) -> bool:
        """Return whether the optimizer of a step holds one of the parameters."""
        return not step.held.isdisjoint(self._sampler.ids)

    def list_suspects(self) -> list[Track]:
        """Return what is to be looked into."""
        return [track for track in self._by_name.values() if track.is_suspect]

    def refresh(self) -> None:
        """Follow a model whose parameters were replaced."""
        named = dict(self._model.named_parameters())
        if self._by_name and self._sampler.fits(named):
            return
        self._sampler = Sampler(named)
        self._first, self._old = self._sampler.take(), {}
        tracks, self._by_name = self._by_name, {}
        for unit in self._sampler.units:
            known = tracks.get(unit.part.name)
            if known is None or known.unit.param is not unit.param:
                known = Track(Facts(unit, wanted_grad=unit.param.requires_grad))
            self._by_name[unit.part.name] = known

    def see(self, optimizer: Optimizer, number: int) -> Step:
        """Return a step of an optimizer."""
        return Step.see(optimizer, number, self._sampler.units)

    def take(self) -> Tensor:
        """Return the numbers of all units now."""
        return self._sampler.take()

    def compare(
        self, step: Step, before: Tensor, params: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> None:
        """Judge all units after a step, as soon as the comparison can be read.

        Args:
            step: that was taken.
            before: the numbers before it.
            params: that had a gradient.
            grads: of each.
        """
        sampler = self._sampler
        after = sampler.take()
        old = self._old.get(id(step.optimizer), self._first)
        self._old[id(step.optimizer)] = before
        rows = [sampler.find_changed(after, before), sampler.find_changed(before, old)]
        rows.append(sampler.find_nonzero(params, grads))
        tracks = list(self._by_name.values())
        self._voice.read_late(torch.stack(rows), partial(self._judge, step, tracks))

    def _judge(self, step: Step, tracks: Sequence[Track], rows: list[list[float]]) -> None:
        """Count what stood still."""
        share = _get_moving_share(step, tracks, rows[0])
        for track, in_step, since, nonzero in zip(tracks, *rows, strict=True):
            key = id(track.unit.param)
            facts = track.facts
            if key in step.held:
                facts.is_held = True
            elif facts.is_held and track.step:
                continue  # another optimizer's, and judged in its steps
            else:
                facts.is_held = False
                if track.step == step.number:
                    continue
            is_first, track.step = not track.step, step.number
            facts.wants_grad = key in step.wanting
            if is_first:  # what is frozen after it was handed to run.watch is frozen on purpose too
                facts.wanted_grad &= facts.wants_grad
            facts.has_grad = key in step.with_grad
            facts.has_any_grad = bool(step.with_grad)
            facts.others_move = share
            facts.is_low_precision = track.unit.param.dtype in (torch.float16, torch.bfloat16)
            is_seen = bool(nonzero) or bool(facts.has_grad and facts.grad)
            if facts.is_held and not is_seen:
                track.gradless += 1
            else:
                track.gradless = 0
            if in_step and is_seen:
                facts.was_moved = True
            track.still = 0 if in_step or since else track.still + 1
            track.undone = track.undone + 1 if track.has_moved and not since else 0
            track.has_moved = bool(in_step)
            facts.is_undone = track.undone > 0


def _get_moving_share(step: Step, tracks: Sequence[Track], moved: Sequence[float]) -> float:
    """Return the share of what an optimizer holds that its step has moved."""
    flags = [
        bool(flag)
        for track, flag in zip(tracks, moved, strict=True)
        if id(track.unit.param) in step.held
    ]
    return sum(flags) / len(flags) if flags else 1.0
