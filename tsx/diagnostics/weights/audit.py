"""What two states of a model say of its training: what stands still, what ran away, what is broken.

Owns the measuring, tensor by tensor (one of each state is in memory at a time), and the rows by
class. What follows from them is said by `tsx.diagnostics.weights.findings`. Knows no files.

Elements are compared in the coarser of two dtypes: an fp32 draw that was cast to bf16 and not
touched since is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from tsx.diagnostics.weights.roles import EMBEDDING, STATISTICS, Part, iter_parts

LOW_PRECISION = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class AdamFacts:
    """What a checkpoint's AdamW was set to; the rates of its last step and its highest."""

    lr: float
    peak_lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float  # of tensors of two axes and more


class Weights(Protocol):
    """One state of a model.

    Attributes:
        label: what to call it.
        step: optimizer steps it has seen; None is unknown.
        shapes: name to shape of its tensors of floating-point numbers.
        adam: settings of the optimizer whose state is beside it; None where there is none.
    """

    label: str
    step: int | None
    shapes: Mapping[str, tuple[int, ...]]
    adam: AdamFacts | None

    def get(self, name: str) -> Tensor:
        """Return a tensor, on the host."""

    def find_moment(self, slot: str, name: str) -> Tensor | None:
        """Return `step`, `exp_avg` or `exp_avg_sq` of a tensor; None where there is none."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One part, beside what it was.

    Attributes:
        part: which.
        dtype: it is stored in.
        other_dtype: of what it was; None where there is nothing to compare with, as below.
        elements: how many.
        changed: elements that are another number than they were.
        change: ||w - w0|| / ||w0||; NaN where w0 is all zero.
        growth: ||w|| / ||w0||; NaN likewise.
        nonfinite: elements that are NaN or infinite.
        constant: the number that every element is; None where they differ.
        scale: root mean square times sqrt(fan-in), near 1 for a matrix that keeps the size of what
            goes through it; None for vectors, embeddings and statistics.
        other_scale: what it was.
    """

    part: Part
    dtype: torch.dtype
    elements: int
    nonfinite: int
    constant: float | None
    scale: float | None
    other_dtype: torch.dtype | None = None
    changed: int | None = None
    change: float = math.nan
    growth: float = math.nan
    other_scale: float | None = None

    @property
    def is_frozen(self) -> bool:
        """Return whether no element moved."""
        return self.changed == 0 and self.elements > 0

    @property
    def is_low(self) -> bool:
        """Return whether it is stored in sixteen bits."""
        return self.dtype in LOW_PRECISION


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of parameters; shares and changes are None where nothing was compared."""

    name: str
    tensors: int  # experts of a stack and q, k, v of a joint matrix count one each
    elements: int
    dtype: str
    unchanged: int | None
    changed_share: float | None  # of the elements
    median_change: float | None  # relative, of the tensors that were not all zero
    largest_change: float | None
    scale: float | None  # median of rms * sqrt(fan-in)
    nonfinite: int


def measure(weights: Weights, other: Weights | None) -> list[Measured]:
    """Return every part of `weights`, beside the same part of `other` where both have it."""
    found: list[Measured] = []
    held, tensor, before = "", torch.empty(0), None
    for part in iter_parts(weights.shapes):
        if part.tensor != held:
            held, tensor = part.tensor, weights.get(part.tensor).detach()
            shape = None if other is None else other.shapes.get(held)
            is_same = shape == tuple(tensor.shape)
            before = other.get(held).detach() if other is not None and is_same else None
        found.append(
            _measure_part(part, part.take(tensor), None if before is None else part.take(before))
        )
    return found


def summarise(measured: Iterable[Measured]) -> list[ClassRow]:
    """Return a row per class, in the order in which the model has them."""
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        groups.setdefault(one.part.role, []).append(one)
    return [_make_row(name, members) for name, members in groups.items()]


def name_dtype(dtype: torch.dtype) -> str:
    """Return a dtype's short name."""
    return str(dtype).removeprefix("torch.")


def _measure_part(part: Part, now: Tensor, before: Tensor | None) -> Measured:
    first = float(now.flatten()[0]) if now.numel() else math.nan
    plain = Measured(
        part=part,
        dtype=now.dtype,
        elements=now.numel(),
        nonfinite=now.numel() - int(now.isfinite().sum()),
        constant=first if now.numel() and bool((now == now.flatten()[0]).all()) else None,
        scale=_measure_scale(part, now),
    )
    if before is None:
        return plain
    coarse = now.dtype if now.element_size() <= before.element_size() else before.dtype
    mine, theirs = now.to(coarse), before.to(coarse)
    is_same = (mine == theirs) | (mine.isnan() & theirs.isnan())
    base = float(torch.linalg.vector_norm(before, dtype=torch.float64))
    moved = float(torch.linalg.vector_norm(now.float() - before.float(), dtype=torch.float64))
    size = float(torch.linalg.vector_norm(now, dtype=torch.float64))
    return Measured(
        part=part,
        dtype=plain.dtype,
        elements=plain.elements,
        nonfinite=plain.nonfinite,
        constant=plain.constant,
        scale=plain.scale,
        other_dtype=before.dtype,
        changed=plain.elements - int(is_same.sum()),
        change=moved / base if base else math.nan,
        growth=size / base if base else math.nan,
        other_scale=_measure_scale(part, before),
    )


def _measure_scale(part: Part, tensor: Tensor) -> float | None:
    """Return rms * sqrt(fan-in); of a stack's piece the axis that is kinder, for its order varies.

    A table that is looked up has no fan-in.
    """
    is_table = part.role.startswith((EMBEDDING, STATISTICS))
    if tensor.ndim < 2 or is_table or not tensor.numel():
        return None
    norm = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    rms = norm / math.sqrt(tensor.numel())
    fans = [math.prod(tensor.shape[1:])] + ([tensor.shape[0]] if part.is_expert else [])
    scales = [rms * math.sqrt(fan) for fan in fans]
    return min(scales, key=lambda scale: abs(math.log(scale))) if rms and rms < math.inf else rms


def _make_row(name: str, members: list[Measured]) -> ClassRow:
    compared = [one for one in members if one.changed is not None]
    changes = [one.change for one in compared if math.isfinite(one.change)]
    elements = sum(one.elements for one in compared)
    scales = [one.scale for one in members if one.scale is not None]
    return ClassRow(
        name=name,
        tensors=len(members),
        elements=sum(one.elements for one in members),
        dtype=", ".join(sorted({name_dtype(one.dtype) for one in members})),
        unchanged=sum(one.is_frozen for one in compared) if compared else None,
        changed_share=sum(one.changed or 0 for one in compared) / elements if elements else None,
        median_change=median(changes) if changes else None,
        largest_change=max(changes) if changes else None,
        scale=median(scales) if scales else None,
        nonfinite=sum(one.nonfinite for one in members),
    )
