"""Learning rates that do not fit: never reached, spent too early, or of another family.

Sees every step's rates and every step of a scheduler; judges a family by what its update does to a
matrix, and a schedule by where it ends up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from registry.events import Severity
from tsx.curves.levels import find_median
from tsx.diagnostics.detector import Detector, Kind, Scene
from tsx.diagnostics.loop import schedules
from tsx.diagnostics.loop.updates import is_measurable

_MIN_STEPS = 5  # of a run: a line through fewer rates is no warm-up
_EVEN = 1.05  # largest over smallest rise of a straight warm-up
_UNREACHED = 0.1  # of the rate that the optimizer was made with
_SPENT = 0.01  # of the highest rate: nothing is learned at less
_MICRO_STEPS = 3  # steps in a row with several steps of the schedule
_ADAPTIVE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Lion")
_ADAPTIVE_TOO_HIGH = 0.1  # their update is the rate itself in each element; SGD's usual rate
_MUON_TOO_LOW = 2e-3  # its update has singular values of 1 and a usual rate of 0.02, AdamW 1e-3
_MUON_TOO_HIGH = 2e-2  # where its update has the size of AdamW's, a rate of AdamW's is meant
_SAMPLE = 4096  # elements that tell the size of a parameter

RATE = Kind(
    "lr",
    "The learning rate never arrives, is spent before the run is, or is of another optimizer's "
    "size.",
    "A run of 80 steps had a warm-up of 10,000: the rate never arrived, and nothing was learned.",
    "`highest_lr` and the one that was asked for; steps of the schedule to those of the optimizer; "
    "Muon's `adjust_lr_fn` and the share of a matrix that one update moves.",
    "Shorten the warm-up; step the schedule once an optimizer step; use a rate of the family.",
)


@dataclass(slots=True)
class _Course:
    """How the rate of one optimizer went."""

    optimizer: Optimizer
    steps: int = 0
    first: float = 0.0
    last: float = 0.0
    highest: float = 0.0
    smallest_rise: float = math.inf
    largest_rise: float = -math.inf
    scheduled: int = 0  # steps of its scheduler
    since_step: int = 0  # of these, since the optimizer's last
    in_a_row: int = 0  # optimizer steps with several of the scheduler's
    per_step: int = 0  # how many
    where: str = ""  # that line steps the scheduler
    is_judged: bool = False

    def add(self, rate: float) -> None:
        """Take the rate of one more step."""
        if self.steps:
            rise = rate - self.last
            if not self.smallest_rise <= rise <= self.largest_rise:
                self.smallest_rise = min(self.smallest_rise, rise)
                self.largest_rise = max(self.largest_rise, rise)
        else:
            self.first = rate
        self.steps += 1
        self.last, self.highest = rate, max(self.highest, rate)
        self.in_a_row = self.in_a_row + 1 if self.since_step > 1 else 0
        self.per_step, self.since_step = max(self.since_step, 1), 0

    @property
    def rises(self) -> bool:
        """Whether the rate has risen with each step, as in a warm-up that is not over."""
        is_even = 0 < self.largest_rise <= _EVEN * self.smallest_rise
        return self.steps >= _MIN_STEPS and is_even and self.first <= _EVEN * self.largest_rise

    @property
    def wanted(self) -> float:
        """The rate that its schedule was given to scale, 0 where nobody knows."""
        return max(
            (float(g.get("initial_lr", 0.0)) for g in self.optimizer.param_groups), default=0
        )


class Rates(Detector):
    """Follows the rates of each optimizer."""

    name = "rates"
    is_constant = True
    kinds = (RATE,)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._courses: dict[int, _Course] = {}
        self._sizes = {  # before the first step: a rate too high has soon changed them
            id(p): _measure_size(p)
            for p in scene.model.parameters()
            if is_measurable(p) and p.ndim >= 2 and p.numel()
        }
        schedules.listen(self._saw_schedule)

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Take the rate of a step; judge the optimizer once its rate no longer rises."""
        rate = schedules.find_rate(optimizer)
        if rate is None:
            return
        course = self._courses.get(id(optimizer))
        if course is None:
            course = self._courses[id(optimizer)] = _Course(optimizer)
        before = course.last
        course.add(rate)
        is_at_top = course.steps > 1 and course.last <= before
        # A rate far too high is told in the very step that it spoils.
        is_known = is_at_top or course.wanted > 0 or course.last >= _ADAPTIVE_TOO_HIGH
        if is_known and not course.is_judged:
            self._judge(course)
        if course.in_a_row >= _MICRO_STEPS:
            self._judge_spent(course)

    def close(self, *, is_whole: bool) -> None:
        """Judge warm-ups that the run did not outlast."""
        schedules.stop(self._saw_schedule)
        for course in self._courses.values():
            if not course.is_judged:
                self._judge(course)
        if is_whole and self.scene.config is None:  # of a recipe's run the config lint has told
            for course in self._courses.values():
                self._judge_warm_up(course)

    def _saw_schedule(self, scheduler: Any, where: str) -> None:
        course = self._courses.get(id(scheduler.optimizer))
        if course is not None:
            course.scheduled += 1
            course.since_step += 1
            course.where = where

    def _judge(self, course: _Course) -> None:
        """Judge an optimizer's settings, at a rate that does not rise any more."""
        course.is_judged = True
        self._judge_family(course.optimizer)
        self._judge_decay(course.optimizer)

    def _judge_spent(self, course: _Course) -> None:
        """Report a schedule that micro-batches have used up."""
        if course.last > _SPENT * course.highest:
            return
        course.in_a_row = 0
        self.scene.report(
            "lr",
            "scheduler-per-micro-batch",
            "the schedule is stepped several times for each step of the optimizer: its rate is "
            "spent before the run is over",
            "step the schedule once after each optimizer.step()",
            phase="optimizer",
            where=course.where,
            evidence={"schedule_steps_per_step": course.per_step, "lr": course.last}
            | {"highest_lr": course.highest},
        )

    def _judge_warm_up(self, course: _Course) -> None:
        """Report a rate that was still on its way when the run ended."""
        is_sparse = 0 < 2 * course.scheduled <= course.steps
        evidence = {
            "steps": course.steps,
            "highest_lr": course.highest,
            "lr": course.wanted or None,
        }
        if is_sparse and course.steps >= _MIN_STEPS and course.last >= course.highest:
            if course.wanted and course.highest < _UNREACHED * course.wanted:
                self.scene.report(
                    "lr",
                    "scheduler-per-epoch",
                    "the schedule was stepped once in many steps of the optimizer, and the rate "
                    "never arrived: a warm-up in steps is stepped by epochs",
                    "step the schedule after each optimizer.step(), or count its warm-up in epochs",
                    phase="optimizer",
                    where=course.where,
                    evidence={**evidence, "schedule_steps": course.scheduled},
                )
        elif course.rises and course.highest < 0.5 * (course.wanted or math.inf):
            self.scene.report(
                "lr",
                "warm-up-longer-than-run",
                "the learning rate rose with each step to the very last: the warm-up is longer "
                "than the run, and the rate never arrived",
                "make the warm-up a tenth of the run or shorter",
                phase="optimizer",
                evidence=evidence,
            )

    def _judge_family(self, optimizer: Optimizer) -> None:
        """Report a rate of another family's size."""
        kind = type(optimizer).__name__
        rates = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups if g["params"]]
        if not rates:
            return
        if kind == "Muon":
            self._judge_muon(optimizer, max(rates))
        elif kind in _ADAPTIVE and min(rates) >= _ADAPTIVE_TOO_HIGH:
            found = [self._sizes.get(id(p)) for p in _iter_matrices(optimizer)]
            sizes = [size for size in found if size is not None]
            if not sizes or find_median(sizes) > min(rates):
                return
            self.scene.report(
                "lr",
                "family-mismatch",
                f"{kind} has a rate of SGD's size: it moves each weight by the rate itself, more "
                "than the usual weight is",
                "use 1e-4 to 1e-2, and warm up",
                phase="optimizer",
                module=self._find_module(optimizer),
                evidence={"optimizer": kind, "lr": min(rates), "weight_rms": find_median(sizes)},
            )

    def _judge_muon(self, optimizer: Optimizer, rate: float) -> None:
        """Judge Muon's rate with its `adjust_lr_fn`."""
        adjust = optimizer.param_groups[0].get("adjust_lr_fn") or "original"
        is_matched = adjust == "match_rms_adamw"
        if (is_matched and rate <= _MUON_TOO_HIGH) or (not is_matched and rate >= _MUON_TOO_LOW):
            return
        shares = [_measure_muon(p, rate, is_matched=is_matched) for p in _iter_matrices(optimizer)]
        size = (
            "a rate of Muon's own size where AdamW's is meant"
            if is_matched
            else ("a rate of AdamW's size, without the adjustment that it takes for granted")
        )
        self.scene.report(
            "lr",
            "family-mismatch",
            f"Muon (adjust_lr_fn={adjust}) has {size}",
            "use about 0.02 with adjust_lr_fn='original', or AdamW's rate with 'match_rms_adamw'",
            phase="optimizer",
            module=self._find_module(optimizer),
            evidence={"optimizer": "Muon", "lr": rate, "adjust_lr_fn": adjust}
            | ({"share_moved_per_step": find_median(shares)} if shares else {}),
        )

    def _judge_decay(self, optimizer: Optimizer) -> None:
        """Tell of norms that weight decay pulls to 0."""
        decayed = {
            id(param): float(group["weight_decay"])
            for group in optimizer.param_groups
            if group.get("weight_decay")
            for param in group["params"]
        }
        norms = [
            (name, decayed[id(param)])
            for name, module in self.scene.model.named_modules()
            if "norm" in type(module).__name__.lower()
            for param in module.parameters(recurse=False)
            if id(param) in decayed and param.ndim <= 1
        ]
        if norms:
            self.scene.report(
                "lr",
                "weight-decay-on-norms",
                "weight decay acts on norms too, and pulls their scale to 0",
                "give matrices a group with weight decay, norms and biases one without",
                severity=Severity.INFO,
                phase="optimizer",
                module=norms[0][0],
                evidence={"weight_decay": norms[0][1], "parameters": len(norms)},
            )

    def _find_module(self, optimizer: Optimizer) -> str:
        """Return the innermost module that holds all parameters of an optimizer."""
        names = [
            self.scene.names[id(param)].split(".")[:-1]
            for group in optimizer.param_groups
            for param in group["params"]
            if id(param) in self.scene.names
        ]
        shared: list[str] = []
        for parts in zip(*names, strict=False):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        return ".".join(shared)


def _iter_matrices(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield the parameters of an optimizer with two axes or more."""
    for group in optimizer.param_groups:
        yield from (p for p in group["params"] if p.ndim >= 2 and p.numel())


def _measure_size(param: Tensor) -> float:
    """Return the root mean square of a parameter, by its first elements."""
    some = param.detach().reshape(-1)[:_SAMPLE]
    some = some if some.is_complex() else some.float()
    return float(torch.linalg.vector_norm(some)) / math.sqrt(some.numel())


def _measure_muon(param: Tensor, rate: float, *, is_matched: bool) -> float:
    """Return the share of a matrix [A, B] that one orthogonal update of Muon moves.

    torch.optim.Muon: rate * sqrt(max(1, A / B)), or rate * 0.2 * sqrt(max(A, B)), times a matrix
    whose min(A, B) singular values are 1.
    """
    rows, columns = param.shape[0], param.numel() // param.shape[0]
    factor = (
        0.2 * math.sqrt(max(rows, columns)) if is_matched else math.sqrt(max(1, rows / columns))
    )
    norm = float(torch.linalg.vector_norm(param.detach().float()))
    return rate * factor * math.sqrt(min(rows, columns)) / norm if norm else math.inf
