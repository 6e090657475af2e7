"""What a loss is a mean of, by its graph; and the condition that a line hangs on."""

from __future__ import annotations

import ast
import linecache
import math
from typing import Any

from torch import Tensor

MAX_SOURCE = 20_000  # lines of a file that is parsed
_MEAN = 1  # of torch's reductions: none, mean, sum
_LABELLED = ("NllLossBackward0", "NllLoss2DBackward0")


def is_mean(loss: Tensor) -> bool:
    """Return whether a loss is the mean that one of torch's losses, or `mean`, made."""
    node = _get_node(loss)
    if type(node).__name__ == "MeanBackward0":
        return True
    return bool(_read(node, "_saved_reduction") == _MEAN)


def count_labels(loss: Tensor) -> float | None:
    """Return how many labels the mean was taken over; None where nobody knows, or on a device."""
    node = _get_node(loss)
    name = type(node).__name__
    if not is_mean(loss):
        return None
    if name in _LABELLED:  # those that are not ignored; with weights, their sum
        total = _read(node, "_saved_total_weight")
        is_here = isinstance(total, Tensor) and total.device.type == "cpu" and total.numel() == 1
        return float(total) if is_here else None
    if name == "MeanBackward0":
        return float(math.prod(_read(node, "_saved_self_sym_sizes") or ())) or None
    given = _read(node, "_saved_self")
    return float(given.numel()) if isinstance(given, Tensor) else None


def find_condition(where: str) -> str:
    """Return the line of the innermost `if` around a line, itself where there is none."""
    path, _, number = where.rpartition(":")
    if not number.isdigit():
        return where
    lines = linecache.getlines(path)
    if not 0 < len(lines) <= MAX_SOURCE:
        return where
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError, RecursionError):
        return where
    found = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and node.body[0].lineno <= int(number) <= (node.body[-1].end_lineno or 0)
    ]
    return f"{path}:{max(found)}" if found else where


def _get_node(loss: Tensor) -> Any:
    return loss.grad_fn


def _read(node: Any, name: str) -> Any:
    """Return what a node of the graph has saved; None where it has not, or has let go of it."""
    try:
        return getattr(node, name, None)
    except RuntimeError:
        return None
