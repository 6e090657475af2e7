"""Why attention made a bad value: a mask that hides all keys of a row, or scores too large."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.nonfinite.cause import SHORT, Cause, explain_overflow
from tsx.diagnostics.tracing.trace import Birth

MOST = 0.5  # of all keys: what a mask hides that is inverted, where windows are mostly values
LEAST_AXES = 3  # of scores of attention: samples, queries, keys


def explain_softmax(birth: Birth, scores: Tensor | None) -> Cause:
    """Return why a softmax over scores, -inf where a mask hides a key, gave a bad value."""
    dim = next((value for value in birth.args if type(value) is int), -1)
    if scores is not None and scores.ndim:
        hidden = scores.detach() == -torch.inf
        full = hidden.all(dim)
        if bool(full.any()):
            evidence: dict[str, Any] = {"fully_masked_rows": int(full.sum()), "rows": full.numel()}
            evidence["hidden_frac"] = round(float(hidden.double().mean()), 4)
            if scores.ndim < LEAST_AXES:
                return Cause(
                    "fully-masked-row",
                    "a row of scores is nothing but -inf: its softmax is NaN",
                    "leave each row one score that counts, or leave such rows out",
                    evidence,
                )
            return explain_mask(evidence, is_inverted=_seems_inverted(hidden, dim))
        if bool((scores == torch.inf).any()):
            return Cause("overflow", "a score is +infinite before the softmax", "scale the scores")
    return explain_overflow(birth)


def explain_attention(birth: Birth) -> Cause:
    """Return why a fused kernel gave a bad value: its mask, if it was given one, or its scores."""
    given = [*birth.args[3:], birth.kwargs.get("attn_mask"), birth.kwargs.get("attn_bias")]
    mask = next((value for value in given if isinstance(value, Tensor) and value.ndim >= 2), None)
    if mask is not None:
        hidden = ~mask if mask.dtype is torch.bool else mask.detach() == -torch.inf
        full = hidden.all(-1)
        if bool(full.any()):
            evidence = {"fully_masked_rows": int(full.sum()), "rows": full.numel()}
            return explain_mask(evidence, is_inverted=_seems_inverted(hidden, -1))
    found = explain_overflow(replace(birth, op="scaled_dot_product_attention", args=()))
    if found.mechanism == "exploding-weights":
        return found
    q, k = birth.args[1:3] if birth.phase == "backward" else birth.args[:2]
    return _scores_cause(q.detach(), k.detach(), is_backward=birth.phase == "backward")


def _scores_cause(q: Tensor, k: Tensor, *, is_backward: bool) -> Cause:
    """Return what scores of queries and keys, both [B, H, T, A], do to a fused kernel."""
    lengths = [float(x.double().norm(dim=-1).max()) for x in (q, k)]
    scores, dtype = lengths[0] * lengths[1] / q.shape[-1] ** 0.5, q.dtype
    named = str(dtype).removeprefix("torch.")
    what = f"attention scores of up to {scores:.3g} overflow {named} in the fused kernel"
    if is_backward and scores < torch.finfo(dtype).max:
        what = (
            f"attention scores of up to {scores:.3g} are too coarse in {named}: the fused kernel's "
            "backward pass computes them again, and exp overflows by what they were rounded"
        )
    return Cause(
        f"overflow-{SHORT.get(dtype, named)}",
        what,
        "normalize queries and keys, or go on from an earlier checkpoint with a lower learning "
        "rate",
        {"largest_score": scores, "longest_query": lengths[0], "longest_key": lengths[1]},
    )


def _seems_inverted(hidden: Tensor, dim: int) -> bool:
    """Return whether the opposite of a mask would make sense: no row of it would be empty.

    A causal mask and one of padding leave every query a key; a mask that hides most keys, and all
    of them from some query, while its opposite hides all from none was meant the other way round.
    One that hides all that is to come is the right way round, whatever else it hides.
    """
    if hidden.ndim < 2 or bool((~hidden).all(dim).any()):
        return False
    rows, keys = hidden.shape[-2:]
    is_causal = rows == keys > 1 and bool(
        hidden[..., torch.ones(rows, keys, dtype=torch.bool, device=hidden.device).triu(1)].all()
    )
    if is_causal or float(hidden.double().mean()) <= MOST:
        return False
    ends = hidden.movedim(dim, -1)[..., [0, -1]]
    shown_first = int((~ends[..., 0] & ends[..., 1]).sum())  # padding behind the values is hidden
    return shown_first <= int((ends[..., 0] & ~ends[..., 1]).sum())


def explain_mask(evidence: dict[str, Any], *, is_inverted: bool = False) -> Cause:
    """Return the cause of a mask that hides every key of some row, inverted or not."""
    if is_inverted:
        return Cause(
            "inverted-mask",
            "the attention mask is inverted: it hides what may be attended and shows what may not, "
            "so some rows hide every key and their softmax is NaN",
            "negate the mask: True means 'attend' in scaled_dot_product_attention, "
            "and 'hide' in masked_fill and nn.MultiheadAttention",
            evidence,
        )
    return Cause(
        "fully-masked-row",
        "rows of the attention mask hide every key: the softmax of nothing but -inf is NaN",
        "let each query see at least one key, or zero the output of rows that see none; "
        "in a boolean mask of scaled_dot_product_attention True means 'attend'",
        evidence,
    )
