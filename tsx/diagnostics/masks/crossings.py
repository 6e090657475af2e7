"""Records two runs of a model, operation by operation, and finds where something first crossed.

What must not move (steps before a change, other samples) is a part of nearly every tensor in
between. Each operation leaves a print of that part of its inputs and outputs; the first operation
at which the prints of two runs differ is the one that let something across. A tensor without an
axis of time or batch has no such part: a mean over time is no fault, its use at each step is.

Of weights of steps against steps an element must not move if neither of its two steps did.

Shapes: B batch, T time; n rows of a print.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.trace import find_line

# A print differs by more than this many roundings, or it does not: other rows beside a row may
# change the order of a sum, never more.
ROUNDINGS = 8.0
HIDDEN = -1e4  # scores below this weigh nothing, whatever number stands for masked
HUGE = 1e30  # beyond it a number stands for infinity, and would drown what is added to it
REDUCTIONS = frozenset(
    {
        *("mean", "sum", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min"),
        *("linalg_vector_norm", "norm", "logsumexp", "median", "aminmax", "prod"),
    }
)
MASKING = frozenset({"masked_fill", "masked_fill_", "where", "mul", "mul_", "add", "add_", "sub"})


@dataclass(frozen=True, slots=True)
class Kept:
    """What must not move.

    Attributes:
        kept_BT: bool; T is 1 where there is no time.
        is_time_first: the input is [T, B, ...].
        is_future: steps must stay, so that a tensor without time has nothing that must.
    """

    kept_BT: Tensor
    is_time_first: bool
    is_future: bool

    def mask(
        self, shape: Sequence[int], *, is_time_first: bool, is_weight: bool = False
    ) -> tuple[Tensor, int] | None:
        """Return what of a tensor must not move, to be multiplied with it, and its main axis.

        Args:
            shape: of the tensor.
            is_time_first: where samples and steps are one axis, steps are the outer part.
            is_weight: of steps against steps: no weight of a step that stays may move.
        """
        B, T = self.kept_BT.shape
        times = [axis for axis, size in enumerate(shape) if size == T and T > 1]
        flat = [axis for axis, size in enumerate(shape) if size == B * T and min(B, T) > 1]
        if flat:
            kept = self.kept_BT.T if is_time_first else self.kept_BT
            return _spread(kept.flatten(), flat[0], len(shape)), flat[0]
        samples = [axis for axis, size in enumerate(shape) if size == B > 1 and axis not in times]
        kept = self.kept_BT
        if not samples and len(shape) >= 3 and shape[0] % B == 0 and 0 not in times and B > 1:
            kept, samples = kept.repeat_interleave(shape[0] // B, 0), [0]
        if not times:
            if self.is_future or not samples or not bool(kept.all(1).any()):
                return None
            return _spread(kept.all(1), samples[0], len(shape)), samples[0]
        if is_weight and len(times) > 1:
            times = times[-2:-1]
        return self._mask_times(kept, times, samples[:1], len(shape))

    def find_order(self, shape: Sequence[int]) -> bool | None:
        """Return whether time is outside the batch; None for a tensor that has not both."""
        B, T = self.kept_BT.shape
        for left, right in pairwise(shape):
            if (left, right) in ((B, T), (T, B)) and B != T:
                return left == T
        return None

    def _mask_times(
        self, kept: Tensor, times: list[int], samples: list[int], ndim: int
    ) -> tuple[Tensor, int] | None:
        """Return the mask of a tensor with an axis of time, or two of them."""
        if not samples and not bool(kept.all(0).any()):
            return None
        mask: Tensor | None = None
        for axis in times[-2:]:
            if samples:
                shape = [1] * ndim
                shape[samples[0]], shape[axis] = kept.shape
                part = (kept if samples[0] < axis else kept.T).reshape(shape)
            else:
                part = _spread(kept.all(0), axis, ndim)
            mask = part if mask is None else mask & part
        assert mask is not None
        return mask, times[-2:][0]


@dataclass(frozen=True, slots=True)
class Print:
    """Of the part of a tensor that must not move: projections and sizes, [n] each."""

    value: Tensor
    size: Tensor
    rounding: float

    def measure(self, other: Print) -> float:
        """Return by how many roundings another one differs."""
        if self.value.shape != other.value.shape or not self.value.numel():
            return 0.0
        gap = (self.value - other.value).abs() / (self.size * self.rounding).clamp(min=1e-30)
        return float(gap.max().item())


@dataclass(slots=True)
class Cover:
    """What a mask of steps against steps hides: shares of all places of each kind."""

    ahead: float  # of the places ahead of the diagonal
    next: float  # of those right beside it
    behind: float  # of the diagonal and behind
    source: int = -1  # number of the operation that made the mask


@dataclass(slots=True)
class Op:
    """An operation of a recording.

    Attributes:
        sources: numbers of the operations that made its tensors, -1 for what came from outside.
        plain: its arguments, with None for tensors.
        shapes, out_shapes: of its tensors.
        cover: of the mask among its tensors.
    """

    number: int
    name: str
    module: str
    where: str
    sources: list[int]
    plain: tuple[Any, ...]
    shapes: list[tuple[int, ...]]
    out_shapes: list[tuple[int, ...]] = field(default_factory=list)
    before: list[Print | None] = field(default_factory=list)
    after: list[Print | None] = field(default_factory=list)
    cover: Cover | None = None


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations of one run.

    Args:
        kept: what must not move.
        names: id of a module to its name.
    """

    def __init__(self, kept: Kept, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self._kept = kept
        self._names = names
        self._makers: dict[int, tuple[weakref.ref[Tensor], int, bool]] = {}
        self._stack: list[str] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Recording:
        hooks = torch.nn.modules.module
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", None)
        given = list(iter_tensors((args, kwargs or {})))
        op = Op(
            len(self.ops),
            packet.__name__ if packet else str(func),
            self._stack[-1] if self._stack else "",
            shorten(find_line()),
            [self._find_maker(tensor)[0] for tensor in given],
            tuple(None if isinstance(arg, Tensor) else arg for arg in args),
            [tuple(tensor.shape) for tensor in given],
            before=[self._print(tensor, self._find_maker(tensor)[1]) for tensor in given],
        )
        if op.name in MASKING or "softmax" in op.name or "dot_product" in op.name:
            op.cover = self._find_cover(op, given)
        out = func(*args, **(kwargs or {}))
        made = list(iter_tensors(out))
        op.out_shapes = [tuple(tensor.shape) for tensor in made]
        order = self._find_order(given)
        is_weight = "softmax" in op.name
        if op.name.startswith(("empty", "new_empty")):  # memory as it was found: no two runs agree
            for tensor in made:
                tensor.zero_()
        op.after = [self._print(tensor, order, is_weight=is_weight) for tensor in made]
        for tensor in made:
            self._makers[id(tensor)] = weakref.ref(tensor), op.number, order
        self.ops.append(op)
        return out

    def _find_maker(self, tensor: Tensor) -> tuple[int, bool]:
        """Return the number of the operation that made a tensor, and if time is outside in it."""
        ref, number, order = self._makers.get(id(tensor), (None, -1, self._kept.is_time_first))
        return (number, order) if ref is not None and ref() is tensor else (-1, order)

    def _find_order(self, given: list[Tensor]) -> bool:
        """Return whether time is outside the batch in what is made of these."""
        for tensor in given:
            order = self._kept.find_order(tensor.shape)
            if order is not None:
                return order
        known = [self._find_maker(tensor) for tensor in given]
        made = [order for number, order in known if number >= 0]
        return any(made) if made else self._kept.is_time_first

    def _print(self, tensor: Tensor, order: bool, *, is_weight: bool = False) -> Print | None:
        """Return the print of a tensor; None where no part of it has to stay."""
        if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
            return None
        found = self._kept.mask(tensor.shape, is_time_first=order, is_weight=is_weight)
        if found is None:
            return None
        mask, axis = found
        rounding = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 1e-7
        wide = tensor.detach()
        if wide.is_complex():
            wide = wide.real + 0.7 * wide.imag
        wide = wide if wide.dtype is torch.float64 else wide.float()
        wide = wide.nan_to_num(0.0, 0.0, 0.0)
        rows = (wide * (mask & (wide.abs() < HUGE))).movedim(axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        number = torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype)
        value = rows @ (1.3 * number + 0.2).cos()
        scale = ROUNDINGS * rounding / max(1, rows.shape[1]) ** 0.5
        return Print(value, rows.abs().sum(1), scale)

    def _find_cover(self, op: Op, given: list[Tensor]) -> Cover | None:
        """Return what the mask of an operation on scores hides."""
        T = self._kept.kept_BT.shape[1]
        for index, tensor in enumerate(given):
            if T < 2 or tensor.ndim < 2 or tensor.shape[-1] != T or tensor.shape[-2] not in (1, T):
                continue
            hidden = _find_hidden(op.name, index, tensor)
            if op.name == "where" and hidden is not None and given[1].ndim == 0:
                hidden = ~hidden  # where(hidden, number, scores)
            if hidden is None:
                continue
            hidden = hidden.expand(*hidden.shape[:-2], T, T).reshape(-1, T, T).float().mean(0)
            ahead = hidden.new_ones(T, T).triu(1)
            return Cover(
                float((hidden * ahead).sum() / ahead.sum()),
                float(hidden.diagonal(1).mean()),
                float((hidden * (1 - ahead)).sum() / (1 - ahead).sum()),
                op.sources[index],
            )
        return None

    def _enter(self, module: Any, args: Any) -> None:
        outer = self._stack[-1] if self._stack else ""
        self._stack.append(self._names.get(id(module), outer))

    def _leave(self, module: Any, args: Any, out: Any) -> None:
        if self._stack:
            self._stack.pop()


def find_crossing(one: Recording, two: Recording) -> Op | None:
    """Return the operation at which something crossed that must not; None where nothing did.

    It is the first at which something moved of all those that the last such one was made of: what
    ends in a statistic over all samples or steps has not crossed there, but where that is used.
    Operations are compared for as long as the two runs do the same.
    """
    moved: list[Op] = []
    for left, right in zip(one.ops, two.ops, strict=False):
        if left.name != right.name:
            break
        pairs = zip([*left.before, *left.after], [*right.before, *right.after], strict=False)
        if any(a is not None and b is not None and a.measure(b) > 1.0 for a, b in pairs):
            moved.append(left)
    if not moved:
        return None
    within, waiting = {moved[-1].number}, [moved[-1]]
    while waiting:
        op = waiting.pop()
        is_statistic = not any(op.after) and op.name in REDUCTIONS
        for number in op.sources if not is_statistic else ():
            if number >= 0 and number not in within:
                within.add(number)
                waiting.append(one.ops[number])
    return next((op for op in moved if op.number in within and any(op.after)), moved[-1])


def iter_back(
    recording: Recording, op: Op, sizes: Collection[int], limit: int = 40
) -> Iterator[Op]:
    """Yield what an operation was made of, nearest first.

    Args:
        recording: it is in.
        op: where to start; not yielded.
        sizes: of axes; what has one of them is not gone back through.
        limit: operations to yield at most.
    """
    waiting = [number for number in op.sources if number >= 0]
    seen: set[int] = set()
    while waiting and len(seen) < limit:
        number = max(waiting)
        waiting.remove(number)
        source = recording.ops[number]
        if number in seen or any(size in sizes for shape in source.out_shapes for size in shape):
            continue
        seen.add(number)
        yield source
        waiting += [other for other in source.sources if other >= 0]


def _find_hidden(name: str, index: int, tensor: Tensor) -> Tensor | None:
    """Return what a mask hides, bool; None for a tensor that is no mask."""
    if "softmax" in name:
        return tensor <= HIDDEN if index == 0 else None
    if "dot_product" in name:
        if index < 3:
            return None
        return ~tensor if tensor.dtype is torch.bool else tensor <= HIDDEN
    if tensor.dtype is torch.bool:
        return ~tensor if name in ("mul", "mul_", "where") else tensor
    if name in ("mul", "mul_") and bool(((tensor == 0) | (tensor == 1)).all()):
        return tensor == 0
    if name in ("add", "add_", "sub") and index == 1:
        values = tensor if name != "sub" else -tensor
        is_mask = bool(((values == 0) | (values <= -1)).all()) and bool((values < 0).any())
        return values < 0 if is_mask else None
    return None


def _spread(kept: Tensor, axis: int, ndim: int) -> Tensor:
    shape = [1] * ndim
    shape[axis] = kept.shape[0]
    return kept.view(shape)
