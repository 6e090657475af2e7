"""Work that a call does for nothing: piles of equal indices, tiny operations, padding, rebuilding.

All of it is told as a remark: what it costs depends on the device. Operations are seen in traced
calls only; arguments and buffers on steps that are looked at.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from registry.events import Severity
from tsx.diagnostics.detector import Call, Detector, Kind
from tsx.diagnostics.module_names import find_enclosing
from tsx.diagnostics.resources.compiled_lines import find_assignment
from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.tape import OpSeen, Tape

THROUGHPUT = Kind(
    "throughput",
    "Time is lost: the step waits for data, works on padding, runs thousands of tiny operations, "
    "reads numbers to the host, or gets slower from step to step.",
    "An efficient mixture ran at half the speed: padded routes all went to row 0, and the backward "
    "pass takes equal indices one by one.",
    "Which share of the time or of the elements is lost, and the line.",
    "The finding's own; `perf.profile` shows the operations of one step.",
)
MIN_OPS = 60  # of one line in one call, before they are called many
SMALL = 4096  # elements of an operation that is mostly overhead: some microseconds on any device
MIN_INDICES = 16
MIN_PILE = 0.4  # share of an index that is one value, the others being (nearly) distinct
MAX_VALID = 0.5  # share of a mask, above which padding is no matter
MIN_CALLS = 3  # in a row, before arguments or buffers are judged
_SUMS = frozenset({"index_add", "index_add_", "scatter_add", "scatter_add_", "_index_put_impl_"})
_FREE = frozenset(  # views and the like: no kernel runs
    {
        *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "unsqueeze"),
        *("squeeze", "select", "slice", "split", "split_with_sizes", "unbind", "detach", "alias"),
        *("as_strided", "lift_fresh", "_reshape_alias", "unfold", "chunk", "narrow"),
    }
)


class TracedWaste(Detector):
    """Counts operations by line, and looks at what indices are summed over."""

    name = "traced-waste"
    kinds = (THROUGHPUT,)
    ops = frozenset({"*"})

    def __init__(self, scene: Any) -> None:
        super().__init__(scene)
        self._lines: Counter[tuple[str, str]] = Counter()
        self._total = 0
        self._recurrent = {  # one operation of torch, whatever it is made of
            name for name, m in scene.model.named_modules() if isinstance(m, nn.RNNBase)
        }

    def saw_op(self, seen: OpSeen) -> None:
        """Count an operation, if it is small, and look at an index."""
        if seen.name in _SUMS:
            self._look_at_index(seen)
        if seen.name in _FREE or not isinstance(seen.out, Tensor):
            return
        if seen.module in self._recurrent:
            return
        self._total += 1
        if seen.out.numel() <= SMALL:
            self._lines[(seen.where, seen.module)] += 1

    def after_trace(self, tape: Tape) -> None:
        """Report a line that runs very many tiny operations."""
        lines, total = self._lines, self._total
        self._lines, self._total = Counter(), 0
        by_line: Counter[str] = Counter()
        for (where, _), count in lines.items():
            by_line[where] += count
        if not by_line:
            return
        (where, count), *_ = by_line.most_common(1)
        if not where or count < MIN_OPS or count < total / 2:
            return
        names = [module for at, module in lines if at == where]
        self.scene.report(
            "throughput",
            "tiny-kernels",
            "most operations of a step are tiny and come from one line, which runs unit by unit",
            "write it as one operation over the whole tensor; torch.compile helps where that is "
            "not possible",
            severity=Severity.INFO,
            phase="forward",
            module=find_enclosing(names),
            where=where,
            evidence={"operations": count, "of": total, "at_most_elements": SMALL},
        )

    def _look_at_index(self, seen: OpSeen) -> None:
        """Report an index of which one value is most, and the others are nearly distinct."""
        index = next(
            (a for a in (*seen.args, *seen.kwargs.values()) if _is_index(a)),
            None,
        )
        if index is None or index.numel() < MIN_INDICES or index.device.type == "meta":
            return
        counts = torch.bincount(index.flatten().clamp(min=0))
        largest = int(counts.max())
        others = counts[counts > 0]
        rest = (index.numel() - largest) / max(len(others) - 1, 1)
        if largest < MIN_PILE * index.numel() or len(others) < 3 or rest > 2:
            return
        self.scene.report(
            "throughput",
            "duplicate-index",
            "indices of padding all name one row: their gradients are added one by one",
            "send padding to a row of its own for each, or gather instead of adding",
            severity=Severity.INFO,
            phase="forward",
            module=seen.module,
            op=seen.name,
            where=seen.where,
            evidence={"indices": index.numel(), "of_one_row": largest},
        )


class PaddingWaste(Detector):
    """Looks at masks among the arguments of calls."""

    name = "padding-waste"
    kinds = (THROUGHPUT,)

    def __init__(self, scene: Any) -> None:
        super().__init__(scene)
        self._valid: list[float] = []

    def after_call(self, call: Call) -> None:
        """Report padding that is most of what several calls are given."""
        if not (call.is_looked and call.is_training and call.is_grad):
            return
        shares = [
            share
            for tensor in call.name_tensors().values()
            if (share := read_valid_share(tensor)) is not None
        ]
        self._valid = [*self._valid[-MIN_CALLS:], min(shares)] if shares else []
        if len(self._valid) < MIN_CALLS or max(self._valid) > MAX_VALID:
            return
        self.scene.report(
            "throughput",
            "padding-waste",
            "most of each batch is padding: it is computed and thrown away",
            "sort windows by length into batches, or pack several into one",
            severity=Severity.INFO,
            phase="data",
            evidence={"valid_frac": round(self._valid[-1], 4)},
        )


class RebuiltTables(Detector):
    """Notices buffers that each call makes anew, of the same values."""

    name = "rebuilt-tables"
    kinds = (THROUGHPUT,)

    def __init__(self, scene: Any) -> None:
        super().__init__(scene)
        self._held: dict[str, Tensor] = {}
        self._times: Counter[str] = Counter()

    def after_call(self, call: Call) -> None:
        """Report a buffer that was another tensor of the same shape after each of some calls."""
        if not (call.is_looked and call.is_training):
            return
        buffers = dict(self.scene.model.named_buffers())
        for name, buffer in buffers.items():
            before = self._held.get(name, buffer)
            is_new = before is not buffer and before.shape == buffer.shape
            self._times[name] = self._times[name] + 1 if is_new else 0
            if self._times[name] == MIN_CALLS - 1:
                self._tell(name)
        self._held = buffers

    def _tell(self, name: str) -> None:
        path, _, own = name.rpartition(".")
        module = self.scene.model.get_submodule(path)
        self.scene.report(
            "throughput",
            "rebuilt-in-forward",
            "a table is made again in each forward pass, though nothing in it changes",
            "make it once in __init__ and slice it; tables of positions depend on the length alone",
            severity=Severity.INFO,
            phase="forward",
            module=path,
            where=find_rebuilding(module, own),
            evidence={"buffer": name},
        )


def read_valid_share(tensor: Tensor) -> float | None:
    """Return which share of a mask of right or left padding is valid; None for what is no mask.

    Args:
        tensor: [B, T, ...] of 0 and 1 or of truth values; B and T at least 2.
    """
    if tensor.ndim < 2 or tensor.is_sparse or tensor.is_meta or tensor.is_complex():
        return None
    rows = tensor.detach().flatten(2)[..., 0] if tensor.ndim > 2 else tensor.detach()
    if min(rows.shape) < 2 or rows.numel() > 1 << 22 or tensor.device.type != "cpu":
        return None
    valid = rows.bool()
    if tensor.dtype is not torch.bool and not torch.equal(valid.to(rows.dtype), rows):
        return None
    steps = valid[:, 1:].int() - valid[:, :-1].int()
    is_padding = bool((steps <= 0).all() or (steps >= 0).all())
    share = float(valid.float().mean())
    return share if is_padding and 0.0 < share < 1.0 else None


def find_rebuilding(module: nn.Module, name: str) -> str:
    """Return the line of a forward pass that leads to another buffer, "" where none is found."""
    direct = find_assignment(module, name)
    if not direct:
        return ""
    source = inspect.getsourcefile(type(module))
    try:
        lines, first = inspect.getsourcelines(type(module).forward)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return direct
    path, _, number = direct.rpartition(":")
    is_here = source is not None and path == shorten(f"{source}:1").rpartition(":")[0]
    if is_here and first <= int(number) < first + len(lines):
        return direct
    for node in ast.walk(tree):  # a method of its own that forward calls
        if isinstance(node, ast.Call) and _is_own_method(node.func, module):
            return shorten(f"{source}:{first + node.lineno - 1}")
    return direct


def _is_own_method(called: ast.expr, module: nn.Module) -> bool:
    """Return whether `self.name(...)` calls a method of the module, and no module in it."""
    return (
        isinstance(called, ast.Attribute)
        and isinstance(called.value, ast.Name)
        and called.value.id == "self"
        and inspect.ismethod(getattr(module, called.attr, None))
    )


def _is_index(value: Any) -> bool:
    return (
        isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32) and value.ndim > 0
    )
