"""The probes of one model: what moves with a change that it must not see, and where that crossed.

A leak that shows at the outputs is looked for between them: two recorded runs at a length of time
and a size of batch that no other axis has, so that every tensor tells its axes by their sizes.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsx.diagnostics.masks.crossings import Kept, Op, Recording, find_crossing
from tsx.diagnostics.masks.layout import Layout
from tsx.diagnostics.masks.leak_causes import Cause, explain_batch, explain_future
from tsx.diagnostics.masks.probes import (
    Probe,
    Unprobed,
    change,
    choose_step,
    count_settled,
    iter_seen,
    measure_move,
)

# An output that moves by less, as a share of its size, has not moved: kernels that are given other
# rows round in another order. What is left above it is held against a second run of one input.
LEAST_MOVE = 1e-6
NOISE_FACTOR = 10.0
UNPLACED_MOVE = 1e-3  # that no operation explains: rounding, amplified, would be less
MAX_SAMPLES = 6  # of a batch, where the model takes fewer: memory is for training
LEAST_STEPS = 4  # of a window whose future is judged
LEAST_SHARE = 0.75  # of time and batch that a cut leaves
# Of a leak in train mode alone: statistics of the batch are meant to be there.
TRAINED = frozenset(
    {"no-causal-mask", "off-by-one-mask", "mask-value-too-small", "multiplied-mask"}
)


@dataclass(frozen=True, slots=True)
class Leak:
    """A leak, its cause and its place; no operation where nobody can tell the place."""

    kind: str
    mechanism: str
    op: Op | None
    evidence: dict[str, Any] = field(default_factory=dict)


class _Change(NamedTuple):
    """What is changed: a sample from a step on, or the samples before one."""

    sample: int
    step: int
    is_batch: bool  # to look at the other samples


class Trial:
    """The probes of one model.

    Args:
        probe: runs the model.
        layout: of the input that is changed.
        names: id of a module to its name.
    """

    def __init__(self, probe: Probe, layout: Layout, names: dict[int, str]) -> None:
        self._probe = probe
        self._layout = layout
        self._names = names

    def find_leaks(self, *, is_causal: bool) -> list[Leak]:
        """Return what leaks.

        Args:
            is_causal: earlier steps must not move with later ones.
        """
        self._take_few()
        layout = self._layout
        found: list[Leak] = []
        plain = self._probe.run(self._probe.leaves)
        if is_causal and layout.time is not None and layout.num_steps >= LEAST_STEPS:
            if all(time is None for _, _, time in iter_seen(plain, layout)):
                self._probe.takes_last = True
                plain = self._probe.run(self._probe.leaves)
            late = _Change(self._find_lively(), choose_step(layout.num_steps), False)
            leak = self._judge(plain, late, training=False)
            if leak is None:
                trained = self._probe.run(self._probe.leaves, training=True)
                leak = self._judge(trained, late, training=True)
                leak = leak if leak is not None and leak.mechanism in TRAINED else None
            found += [] if leak is None else [leak]
        is_known = layout.batch is not None and (layout.is_sure or not layout.is_shifted)
        if (
            is_known
            and layout.num_samples > 1
            and not has_indices(self._probe.leaves, self._layout.num_samples)
        ):
            # Where few samples are served, first come, a large change changes nothing behind it.
            for count in dict.fromkeys((layout.num_samples // 2, math.isqrt(layout.num_samples))):
                leak = self._judge(plain, _Change(count, 0, True), training=False)
                if leak is not None:
                    found += [leak] if self._is_no_design(leak) else []
                    break
        return found

    def _take_few(self) -> None:
        """Go on with a part of a large batch, if the model takes it: the rest tells no more."""
        layout, whole = self._layout, self._probe.leaves
        if (
            layout.batch is None
            or layout.num_samples <= MAX_SAMPLES
            or has_indices(self._probe.leaves, self._layout.num_samples)
        ):
            return
        try:
            self._probe.leaves = cut(layout, whole, MAX_SAMPLES, layout.num_steps)
            self._probe.run(self._probe.leaves)
        except Unprobed:
            self._probe.leaves = whole
            return
        counted = layout.counted_BT
        counted = None if counted is None else counted[:MAX_SAMPLES]
        self._layout = replace(layout, num_samples=MAX_SAMPLES, counted_BT=counted)

    def _judge(self, plain: Sequence[Tensor], what: _Change, *, training: bool) -> Leak | None:
        """Return the leak that a change shows."""
        layout, leaves = self._layout, self._probe.leaves
        changed = _apply(layout, leaves, what)
        if changed is None:
            return None
        moves = _measure(plain, self._probe.run(changed, training=training), layout, what)
        if max(moves.values(), default=0.0) < LEAST_MOVE:
            return None
        noise = _measure(plain, self._probe.run(leaves, training=training), layout, what)
        moves = {
            index: move
            for index, move in moves.items()
            if move > max(LEAST_MOVE, NOISE_FACTOR * noise.get(index, 0.0))
        }
        if not moves or (what.is_batch and not self._takes_fewer(moves)):
            return None
        index, move = max(moves.items(), key=lambda item: item[1])
        length = plain[index].shape
        evidence = {"moved": move, "mode": "train, without dropout" if training else "eval"}
        if what.is_batch:
            evidence |= {"changed_samples": what.sample, "samples": layout.num_samples}
        else:
            evidence |= {"changed_sample": what.sample, "changed_from_step": what.step}
            evidence |= {"steps": layout.num_steps}
        cause = self._find_cause(what, _find_length(length, layout), training=training)
        if cause is not None:
            return Leak(cause.kind, cause.mechanism, cause.op, evidence)
        if what.is_batch or training or move < UNPLACED_MOVE or not _is_fine(plain[index]):
            return None
        return Leak("future-leak", "mixes-time", None, evidence)

    def _find_cause(self, what: _Change, length: int, *, training: bool) -> Cause | None:
        """Return where a leak crossed, at sizes that tell the axes if the model takes them."""
        layout = self._layout
        full = layout.num_samples, layout.num_steps
        for samples, steps in dict.fromkeys([self.find_sizes(length, training=training), full]):
            try:
                cause = self._record(what, samples, steps, length, training=training)
            except Unprobed:
                continue
            if cause is not None:
                return cause
        return None

    def _record(
        self, what: _Change, samples: int, steps: int, length: int, *, training: bool
    ) -> Cause | None:
        """Return where a leak crossed in recorded runs of so many samples and steps."""
        layout = self._layout
        patch = max(1, layout.num_steps // length) if length else 1
        tokens = steps // patch if patch > 1 else steps
        if what.is_batch:
            what = what._replace(sample=min(what.sample, samples - 1))
        else:
            what = what._replace(sample=min(what.sample, samples - 1), step=choose_step(steps))
        leaves = cut(layout, self._probe.leaves, samples, steps)
        changed = _apply(layout, leaves, what)
        if changed is None:
            return None
        device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
        kept_BT = torch.ones(samples, max(1, tokens), dtype=torch.bool, device=device)
        if what.is_batch:
            kept_BT[: what.sample] = False
        else:
            kept_BT[what.sample, what.step // patch :] = False
        kept = Kept(kept_BT, layout.batch == 1, not what.is_batch)
        runs = []
        for given in (leaves, changed):
            recording = Recording(kept, self._names)
            self._probe.run(given, training=training, watching=recording)
            runs.append(recording)
        op = find_crossing(*runs)
        if op is None:
            return None
        module = self._probe.find_module(op.module)
        if what.is_batch:
            return explain_batch(runs[0], op, module, samples, max(1, tokens))
        return explain_future(runs[0], op, module, samples, tokens)

    def find_sizes(self, length: int, *, training: bool = False) -> tuple[int, int]:
        """Return the largest batch and time that no axis in between has.

        Args:
            length: of the output, where its steps are patches of the input's; else 0.
            training: as the model trains.
        """
        layout = self._layout
        nothing = Kept(torch.ones(1, 1, dtype=torch.bool), False, True)
        recording = Recording(nothing, self._names)
        self._probe.run(self._probe.leaves, training=training, watching=recording)
        used = {
            size for op in recording.ops for shape in (*op.shapes, *op.out_shapes) for size in shape
        }
        patch = max(1, layout.num_steps // length) if length else 1
        steps = _find_free(layout.num_steps, used, patch) if layout.num_steps else 0
        samples = _find_free(layout.num_samples, used | {steps, steps // patch}, 1)
        return samples, steps

    def _takes_fewer(self, moves: dict[int, float]) -> bool:
        """Return whether the model takes a smaller batch, and what moved has that axis then."""
        layout, fewer = self._layout, self._layout.num_samples - 1
        try:
            outputs = self._probe.run(cut(layout, self._probe.leaves, fewer, layout.num_steps))
        except Unprobed:
            return False
        return all(
            index < len(outputs) and outputs[index].shape.count(fewer) == 1 for index in moves
        )

    def _is_no_design(self, leak: Leak) -> bool:
        """Return whether a leak can be no design: rows of a set are mixed on purpose."""
        if self._layout.is_shifted:
            return True
        x = self._probe.leaves[self._layout.leaf]
        if x.ndim >= 4:
            return leak.mechanism in ("batch-statistics", "capacity-leak")
        if not self._layout.is_sure:
            is_norm = leak.op is not None and "norm" in leak.op.name
            return leak.mechanism == "capacity-leak" or is_norm
        return leak.mechanism != "mixes-samples"

    def _is_indexed(self) -> bool:
        return has_indices(self._probe.leaves, self._layout.num_samples)

    def _find_lively(self) -> int:
        """Return the sample that changes most often along time: the one with least padding."""
        layout, x = self._layout, self._probe.leaves[self._layout.leaf]
        assert layout.time is not None
        moves = x.diff(dim=layout.time) != 0
        others = [axis for axis in range(x.ndim) if axis != layout.batch]
        return int(moves.sum(others).argmax().item())


def _apply(layout: Layout, leaves: Sequence[Any], what: _Change) -> list[Any] | None:
    """Return the arguments with a change; None where nothing else is to be had."""
    index, x = layout.leaf, leaves[layout.leaf]
    spot: list[slice | int] = [slice(None)] * x.ndim
    spot[layout.batch or 0] = slice(0, what.sample) if what.is_batch else what.sample
    if layout.time is not None:
        spot[layout.time] = slice(what.step, None)
    other = change(x, tuple(spot))
    return None if other is None else [*leaves[:index], other, *leaves[index + 1 :]]


def _measure(
    plain: Sequence[Tensor], other: Sequence[Tensor], layout: Layout, what: _Change
) -> dict[int, float]:
    """Return how far each output moved where it must not, by its number."""
    moves = {}
    for index, batch, time in iter_seen(plain, layout):
        if index >= len(other) or plain[index].shape != other[index].shape:
            continue
        one, two = plain[index], other[index]
        if what.is_batch:
            if batch is None or (one.shape.count(layout.num_samples) > 1 and time is None):
                continue
            rest = layout.num_samples - what.sample
            one, two = (part.narrow(batch, what.sample, rest) for part in (one, two))
        else:
            if time is None or batch is None:
                continue
            settled = count_settled(one.shape[time], layout.num_steps, what.step)
            counted = layout.counted_BT
            one, two = (part.movedim((batch, time), (0, 1))[what.sample] for part in (one, two))
            one, two = one[:settled], two[:settled]
            if counted is not None and layout.num_steps == plain[index].shape[time]:
                rows = counted[what.sample, :settled].to(one.device)
                one, two = one[rows], two[rows]
        moves[index] = measure_move(one, two)
    return moves


def cut(layout: Layout, leaves: Sequence[Any], samples: int, steps: int) -> list[Any]:
    """Return the arguments with fewer samples and steps, each along the axes of that size."""
    cut = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            for axis, size in enumerate(leaf.shape):
                if size == layout.num_steps != layout.num_samples and steps:
                    leaf = leaf.narrow(axis, 0, steps)
                elif size == layout.num_samples and axis == min(layout.batch or 0, leaf.ndim - 1):
                    leaf = leaf.narrow(axis, 0, samples)
        cut.append(leaf)
    return cut


def _find_free(size: int, used: set[int], step: int) -> int:
    """Return the largest size below one that is not in use; the size itself if all are."""
    least = max(2, LEAST_STEPS if step > 1 else 2, int(LEAST_SHARE * size) - step)
    for smaller in range(size - step, least - 1, -step):
        if smaller not in used and smaller // step not in used:
            return smaller
    return size


def _find_length(shape: Sequence[int], layout: Layout) -> int:
    """Return how many steps an output has, where its steps are patches of the input's."""
    if layout.time is None or layout.time >= len(shape):
        return 0
    length = shape[layout.time]
    return length if length < layout.num_steps and layout.num_steps % length == 0 else 0


def _is_fine(out: Tensor) -> bool:
    """Return whether a dtype is fine enough that no rounding looks like a leak."""
    return torch.finfo(out.dtype).eps < 1e-6


def has_indices(leaves: Sequence[Any], num_samples: int) -> bool:
    """Return whether there are integers that may point at samples: the edges of a graph."""
    return any(
        isinstance(leaf, Tensor)
        and leaf.dtype in (torch.int32, torch.int64)
        and leaf.ndim > 1
        and num_samples not in leaf.shape[:2]
        and 1 not in leaf.shape[:2]
        for leaf in leaves
    )
