"""Why something crossed that must not have: the true cause, told from the operation that let it.

What is told is a mechanism; a leak whose mechanism nobody can name keeps its place and says so.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from tsx.diagnostics.masks.crossings import MASKING, REDUCTIONS, Cover, Op, Recording, iter_back

ALL = 0.999  # a share of places that is all of them
_VIEWS = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "transpose", "t"),
        *("permute", "alias", "detach", "slice", "select", "clone", "_to_copy", "contiguous"),
        *("as_strided", "unbind", "split", "repeat", "lift_fresh", "copy_"),
    }
)
_CONNECTIVES = frozenset({"bitwise_not", "logical_not", "bitwise_and", "logical_and", *MASKING})
_NORMS = ("batch_norm", "group_norm", "layer_norm", "instance_norm", "rms_norm")
_CHOICES = frozenset({"topk", "sort", "argsort", "argmax", "cumsum", "kthvalue", "nonzero"})
_ARITHMETIC = frozenset({"sub", "sub_", "div", "div_", "mul", "mul_", "rsub"})
_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "mv", "dot"})


class Cause(NamedTuple):
    """Why, and where that is."""

    kind: str
    mechanism: str
    op: Op


def explain_future(
    recording: Recording, op: Op, module: nn.Module | None, samples: int, steps: int
) -> Cause:
    """Return why steps before a change moved with it.

    Args:
        recording: of the run before the change.
        op: that let it across.
        module: it ran in.
        samples: of the recording; no other axis is as long.
        steps: as samples.
    """
    if "softmax" in op.name:
        return _explain_softmax(recording, op, steps)
    if "dot_product" in op.name:
        if op.shapes[0][-1] == steps != op.shapes[0][-2]:
            return Cause("attention-axis", "wrong-axis", op)
        return _explain_cover(recording, op, op)
    if op.name in _PRODUCTS and op.shapes[0][-2:] == (steps, steps):  # weights times values
        return _explain_softmax(recording, find_softmax(recording, op) or op, steps)
    sizes = steps, samples * steps
    carriers = list(iter_back(recording, op, sizes))
    for carrier in carriers:
        if "softmax" in carrier.name and _is_product_over(recording, carrier, sizes):
            return Cause("attention-axis", "wrong-axis", carrier)
    if any("fft" in other.name for other in (op, *carriers)):
        return Cause("future-leak", "circular-convolution", op)
    if op.name == "roll":
        return Cause("future-leak", "roll-wraps", op)
    if isinstance(module, nn.RNNBase) and module.bidirectional:
        return Cause("future-leak", "bidirectional", op)
    chosen = next((other for other in (op, *carriers) if other.name in _CHOICES), None)
    if chosen is not None:
        return Cause("future-leak", "capacity-leak", chosen)
    if "conv" in op.name:
        return Cause("future-leak", "symmetric-padding", op)
    return _explain_statistic(op, carriers, steps)


def explain_batch(
    recording: Recording, op: Op, module: nn.Module | None, size: int, steps: int
) -> Cause | None:
    """Return why other samples moved with one; None where they are compared on purpose.

    Args:
        recording: of the run before the change.
        op: that let it across.
        module: it ran in.
        size: of the batch of the recording; no other axis is as long.
        steps: of the recording.
    """
    carriers = list(iter_back(recording, op, (size, size * steps)))
    near = [op, *carriers]
    if any((size, size) in (*other.shapes, *other.out_shapes) for other in near):
        return None  # every sample against every other: a table of similarities
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention) or "dot_product" in op.name:
        return Cause("batch-leak", "wrong-axis", op)
    if "softmax" in op.name or op.name in _VIEWS or op.name in _PRODUCTS:
        return Cause("batch-leak", "wrong-axis", op)
    chosen = next((other for other in near if other.name in _CHOICES), None)
    if chosen is not None:
        return Cause("batch-leak", "capacity-leak", chosen)
    if any(name in op.name for name in _NORMS):
        return Cause("batch-leak", "batch-statistics", op)
    if op.name in _ARITHMETIC and any(other.name in REDUCTIONS for other in carriers):
        return Cause("batch-leak", "batch-statistics", op)
    return Cause("batch-leak", "mixes-samples", op)


def _explain_softmax(recording: Recording, op: Op, steps: int) -> Cause:
    """Return why a softmax sees ahead."""
    shape = op.shapes[0]
    dim = next((arg for arg in op.plain if isinstance(arg, int)), -1) % max(1, len(shape))
    if shape[-2:] != (steps, steps):
        return Cause("future-leak", "no-causal-mask", op)
    is_causal = op.cover is not None and op.cover.ahead > ALL and op.cover.behind < ALL
    if dim == len(shape) - 2 and is_causal:
        return Cause("attention-axis", "wrong-axis", op)
    masking = find_masking(recording, op)
    if masking is None or masking.cover is None:
        return Cause("future-leak", "no-causal-mask", op)
    return _explain_cover(recording, op, masking)


def _explain_cover(recording: Recording, op: Op, masking: Op) -> Cause:
    """Return why a mask lets the future through."""
    cover = masking.cover
    if cover is None:
        return Cause("future-leak", "no-causal-mask", op)
    if cover.ahead > ALL and masking is not op:
        is_product = masking.name in ("mul", "mul_")
        return Cause(
            "future-leak", "multiplied-mask" if is_product else "mask-value-too-small", masking
        )
    origin = find_origin(recording, masking)
    if cover.ahead < ALL and cover.behind > ALL:
        return Cause("future-leak", "inverted-mask", masking)
    if _is_off_by_one(cover):
        return Cause("future-leak", "off-by-one-mask", origin)
    return Cause("future-leak", "no-causal-mask", origin)


def _is_off_by_one(cover: Cover) -> bool:
    """Return whether the next step alone is seen: all further ones are hidden."""
    return cover.next < 1 - ALL < cover.ahead and cover.behind < 1 - ALL and cover.ahead > 0.5


def find_origin(recording: Recording, masking: Op) -> Op:
    """Return the operation that made a mask's pattern; the masking one for a mask from outside."""
    number, found = masking.cover.source if masking.cover is not None else -1, masking
    while number >= 0:
        found = recording.ops[number]
        if found.name not in _VIEWS and found.name not in _CONNECTIVES:
            break
        number = next((source for source in found.sources if source >= 0), -1)
    return found


def find_softmax(recording: Recording, op: Op) -> Op | None:
    """Return the softmax that made the weights of a product."""
    number = op.sources[0] if op.sources else -1
    for _ in range(8):
        if number < 0:
            return None
        source = recording.ops[number]
        if "softmax" in source.name:
            return source
        number = source.sources[0] if source.sources else -1
    return None


def find_masking(recording: Recording, op: Op) -> Op | None:
    """Return the operation that masked the scores of a softmax."""
    number = op.sources[0] if op.sources else -1
    for _ in range(8):
        if number < 0:
            return None
        source = recording.ops[number]
        if source.name in MASKING and source.cover is not None:
            return source
        if source.name in _PRODUCTS:
            return None
        number = source.sources[0] if source.sources else -1
    return None


def _is_product_over(recording: Recording, softmax: Op, sizes: tuple[int, int]) -> bool:
    """Return whether the scores of a softmax are a product over time."""
    for source in iter_back(recording, softmax, sizes, limit=8):
        if source.name in _PRODUCTS:
            return source.shapes[0][-1] == sizes[0]
    return False


def _explain_statistic(op: Op, carriers: list[Op], steps: int) -> Cause:
    """Return the cause of a leak through something that was computed over time."""
    for other in carriers:
        if other.name in _PRODUCTS and other.shapes[0][-1] == steps:
            return Cause("future-leak", "no-causal-mask", other)  # keys summed over all of time
    if any(name in op.name for name in _NORMS):
        return Cause("future-leak", "scaling-leak", op)
    statistic = next((other for other in carriers if other.name in REDUCTIONS), None)
    if statistic is not None:
        is_whole = any(steps in shape for shape in statistic.shapes)
        if not is_whole:
            return Cause("future-leak", "block-summary", statistic)
        if op.name in _ARITHMETIC:
            return Cause("future-leak", "scaling-leak", op)
    return Cause("future-leak", "mixes-time", op)
