"""What one attention may see, read from the call of it.

Shapes: N samples of a mask (B or 1), Q queries, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.masks.crossings import HIDDEN
from tsx.diagnostics.tracing.tape import OpSeen


@dataclass(slots=True)
class Site:
    """One attention of a call; the tensors are on its device until they are asked for.

    Attributes:
        empty_NQ: rows that see no key, in any head.
        seen_NK: keys that some row sees.
        sees_ahead, sees_behind: whether a key after, or not after, its row is seen.
        is_lowest: what is hidden has a finite score.
        is_bad: the output is not finite, for others to explain.
        shape: of queries, and `rows` of the matrix that they are a view of.
    """

    module: str
    where: str
    op: str
    empty_NQ: Tensor
    seen_NK: Tensor
    sees_ahead: Tensor
    sees_behind: Tensor
    is_lowest: Tensor
    is_bad: Tensor
    shape: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()


def find_allowed(seen: OpSeen) -> tuple[Tensor, Tensor] | None:
    """Return what a call of attention may see, [..., Q, K], and if what it hides stays finite."""
    args, kwargs = seen.args, seen.kwargs
    if seen.name == "multi_head_attention_forward":
        query, key, padded = args[0], args[1], kwargs.get("key_padding_mask")
        shape = (*query.shape[:1], *key.shape[:1])  # time first, whatever the module was given
        mask, is_causal = kwargs.get("attn_mask"), False
        allowed, is_lowest = _read_mask(mask, shape, query, is_hidden=True)
        if allowed.ndim == 3 and query.ndim == 3 and allowed.shape[0] % query.shape[1] == 0:
            allowed = torch.unflatten(allowed, 0, (query.shape[1], -1)).any(1)
        if isinstance(padded, Tensor) and padded.ndim == 2:
            keys, lowest = _read_mask(padded[:, None], shape, query, is_hidden=True)
            return allowed & keys, is_lowest & lowest
        return allowed, is_lowest
    if len(args) < 3 or not all(isinstance(arg, Tensor) for arg in args[:3]):
        return None
    query, key = args[:2]
    if query.ndim < 3 or query.is_nested or query.is_meta:
        return None
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    is_causal = bool(args[5] if len(args) > 5 else kwargs.get("is_causal", False))
    shape = (query.shape[-2], key.shape[-2])
    allowed, is_lowest = _read_mask(mask, shape, query, is_hidden=False)
    if is_causal:
        allowed = allowed & torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    return allowed, is_lowest


def _read_mask(
    mask: Any, shape: tuple[int, ...], query: Tensor, *, is_hidden: bool
) -> tuple[Tensor, Tensor]:
    """Return what a mask lets through, and whether what it hides stays finite."""
    every = torch.ones(shape, dtype=torch.bool, device=query.device)
    if not isinstance(mask, Tensor):
        return every, ~every.any()
    mask = mask.detach()
    if mask.dtype is torch.bool:
        return (~mask if is_hidden else mask) & every, ~every.any()
    return (mask > HIDDEN) & every, ~(mask == -torch.inf).any() & (mask <= HIDDEN).any()
