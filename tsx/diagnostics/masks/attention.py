"""What attention may see: masks that say the opposite, rows that see nothing, axes that are wrong.

Attention is seen in traced calls: torch's fused call, nn.MultiheadAttention, and each softmax over
weights of steps against steps. Of every mask it is noted which rows see no key and which keys no
row sees; the rest follows from what the batch says of its padding. A row of -inf by hand is NaN and
no business of this file. Not covered: masks inside compiled kernels such as flex_attention.

Shapes: B batch, N samples of a mask (B or 1), T time, Q queries, K keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from registry.events import Severity
from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.masks.attention_sites import Site, find_allowed
from tsx.diagnostics.masks.crossings import HIDDEN, Kept, Recording, find_crossing
from tsx.diagnostics.masks.layout import Layout, find_layout
from tsx.diagnostics.masks.leak_causes import find_masking, find_origin, find_softmax
from tsx.diagnostics.masks.leak_trial import Trial, cut
from tsx.diagnostics.masks.padding import Padding, find_padding
from tsx.diagnostics.masks.probes import (
    Autocast,
    Probe,
    Unprobed,
    change,
    is_distributed,
    iter_seen,
    measure_move,
)
from tsx.diagnostics.tracing.tape import OpSeen, Tape

MAX_SITES = 16  # of attention in one traced call; deeper ones repeat them
LEAST_MOVE = 1e-6  # of an output that padding reaches, as a share of its size

AUDIT = Kind(
    "mask-audit",
    means="A mask of attention says the opposite of what is meant, or leaves a row without a key.",
    story="NaN at step 80 was taken for a missing causal mask; it was a boolean mask that is True "
    "on padding, where torch reads True as attend. Through the fused call the same mask is silent: "
    "rows that see nothing are zeros, and training goes on.",
    evidence="Rows without a key, samples, and the line of the mask.",
    fix="Give the fused call a mask that is True where a key may be seen, and each row a key.",
)
AXIS = Kind(
    "attention-axis",
    means="Attention runs along another axis than time: over the features of a head, over the "
    "heads, or with a softmax over the queries.",
    story="Training saturates and greedy decoding is degenerate: the product ran over time, so "
    "features attended to features.",
    evidence="The shapes of queries and keys, and the line of the product.",
    fix="Bring heads before time: [B, T, H, A].transpose(1, 2), and take the softmax over keys.",
)
# No other row sees these either: they are padding, and harmless where their labels are left out.
_HARMLESS = {"fully-masked-row", "uniform-row"}
_TEXTS = {
    "inverted-mask": (
        "the mask hides what may be seen and shows what may not: it is inverted",
        "negate it: for scaled_dot_product_attention True is attend, for masked_fill True is hide, "
        "for key_padding_mask True is padding",
    ),
    "fully-masked-row": (
        "rows of attention see no key at all, and give zeros in silence",
        "pad on the right under a causal mask, or let such rows see themselves",
    ),
    "uniform-row": (
        "rows whose scores all are the lowest number attend to every key alike, future ones too",
        "pad on the right under a causal mask, or let such rows see themselves",
    ),
    "mask-dropped": (
        "the model is given a padding mask, and attention sees padding all the same",
        "hand the mask on to attention",
    ),
    "multiplied-mask": (
        "the padding mask is multiplied into the scores: a score of 0 is no mask",
        "fill masked scores with -inf before the softmax",
    ),
    "missing-transpose": (
        "heads attend to heads: time is not the last axis but one, so no step sees another",
        "transpose to [B, H, T, A] before the call",
    ),
}


class AttentionAudit(Detector):
    """Audits the masks of traced calls, and the axes of fused attention."""

    name = "attention"
    kinds = (AUDIT, AXIS)
    functions = frozenset(
        {"scaled_dot_product_attention", "multi_head_attention_forward", "softmax"}
    )

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._call: Call | None = None
        self._sizes: set[int] = set()
        self._sites: list[Site] = []
        self._told: set[tuple[str, str]] = set()
        self._autocast: Autocast | None = None

    def before_call(self, call: Call) -> None:
        """Keep what is given until the call is over."""
        self._call = call
        self._sizes.clear()

    def after_call(self, call: Call) -> None:
        """Let go of it."""
        self._call = None

    def raised(self, call: Call, error: BaseException) -> None:
        """Let go of all of it."""
        self._call, self._sites = None, []

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Note the autocast that the model ran under."""
        if not name:
            device = next((p.device.type for p in module.parameters()), "cpu")
            self._autocast = Autocast.find(device)

    def saw_function(self, seen: OpSeen) -> None:
        """Note what an attention may see."""
        if len(self._sites) >= MAX_SITES or not isinstance(seen.out, Tensor | tuple):
            return
        if seen.name == "softmax":
            scores = seen.args[0] if seen.args else seen.kwargs.get("input")
            dim = seen.args[1] if len(seen.args) > 1 else seen.kwargs.get("dim")
            if isinstance(scores, Tensor) and self._is_attention(scores, dim):
                self._note(seen, scores > HIDDEN, ~scores.isinf().any())
            return
        allowed = find_allowed(seen)
        if allowed is not None:
            mask, is_lowest = allowed
            self._note(seen, mask, is_lowest)

    def after_trace(self, tape: Tape) -> None:
        """Judge what was seen."""
        call, sites = self._call, self._sites
        self._call, self._sites = None, []
        if call is None or not tape.root_calls or not sites:
            return
        given = list(iter_tensors((call.args, dict(call.kwargs))))
        probe = Probe(tape, tape.root_calls[0], self._autocast)
        declared = self.scene.declared.causal
        layout = find_layout(probe.leaves, given, tape.model, is_causal=declared is not None)
        padding = find_padding(probe.leaves, given)
        is_causal = layout is not None and declared is not False
        is_causal = is_causal and (declared is True or (layout is not None and layout.is_shifted))
        for site in sites:
            mechanism = judge(site, padding)
            if mechanism:
                self._report(AUDIT.name, mechanism, site)
            elif is_causal and layout is not None and swaps_heads(site, layout):
                self._report(AXIS.name, "missing-transpose", site)
        if tape.number == 1 and padding is not None and layout is not None and not is_causal:
            self._judge_padding(probe, layout, padding, sites)

    def _is_attention(self, scores: Tensor, dim: Any) -> bool:
        """Return whether a softmax is one of steps against steps."""
        if not self._sizes and self._call is not None:
            given = iter_tensors((self._call.args, dict(self._call.kwargs)))
            self._sizes = {size for tensor in given for size in tensor.shape[:2]}
        if scores.ndim < 3 or not scores.is_floating_point() or scores.is_meta:
            return False
        is_last = dim in (-1, scores.ndim - 1)
        return is_last and scores.shape[-1] == scores.shape[-2] and scores.shape[-1] in self._sizes

    def _note(self, seen: OpSeen, allowed: Tensor, is_lowest: Tensor) -> None:
        """Keep what is needed of a mask [..., Q, K]."""
        queries, keys = allowed.shape[-2:]
        allowed = allowed.reshape(1, queries, keys) if allowed.ndim == 2 else allowed
        any_NQK = allowed if allowed.ndim == 3 else allowed.flatten(1, -3).any(1)
        ahead = torch.ones(queries, keys, dtype=torch.bool, device=allowed.device).triu(1)
        out = seen.out[0] if isinstance(seen.out, tuple) else seen.out
        query = seen.args[0] if seen.args and seen.name != "softmax" else None
        base = (
            None
            if query is None
            else next(
                (
                    arg._base
                    for arg in seen.args[:3]
                    if isinstance(arg, Tensor) and arg._base is not None
                ),
                None,
            )
        )
        self._sites.append(
            Site(
                seen.module,
                seen.where,
                seen.name,
                ~any_NQK.any(-1),
                any_NQK.any(-2),
                (any_NQK & ahead).any(),
                (any_NQK & ~ahead).any(),
                is_lowest,
                ~out.detach().isfinite().all(),
                () if query is None else tuple(query.shape),
                () if base is None else tuple(base.shape),
            )
        )

    def _judge_padding(
        self, probe: Probe, layout: Layout, padding: Padding, sites: list[Site]
    ) -> None:
        """Report padding that attention sees although the model was given a mask of it."""
        site = next((site for site in sites if sees_padding(site, padding)), None)
        if site is None or not padding.is_given or layout.batch != 0 or self._told:
            return
        if is_distributed():
            return
        x, pad_BT = probe.leaves[layout.leaf], padding.pad_BT
        if x.shape[:2] != pad_BT.shape:
            return
        layout = replace(layout, time=1, num_steps=pad_BT.shape[1])
        other = change(x, (slice(None),))
        if other is None:
            return
        where = pad_BT.reshape(*pad_BT.shape, *[1] * (x.ndim - 2)).expand_as(x)
        changed = [*probe.leaves]
        changed[layout.leaf] = torch.where(where, other, x)
        try:
            plain, moved = probe.run(probe.leaves), probe.run(changed)
            if not reaches_kept(plain, moved, layout, pad_BT):
                return
            samples, steps = Trial(probe, layout, self.scene.modules).find_sizes(0)
            kept = Kept(~pad_BT[:samples, :steps], False, True)
            runs = []
            for leaves in (probe.leaves, changed):
                runs.append(Recording(kept, self.scene.modules))
                probe.run(cut(layout, leaves, samples, steps), watching=runs[-1])
        except Unprobed:
            return
        mechanism, where_at = explain_padding(runs[0], runs[1], site)
        site.where = where_at
        self._report(AUDIT.name, mechanism, site)

    def _report(self, kind: str, mechanism: str, site: Site) -> None:
        """Report the first site of a line."""
        if (mechanism, site.where) in self._told:
            return
        self._told.add((mechanism, site.where))
        cause, fix = _TEXTS[mechanism]
        evidence: dict[str, Any] = {"empty_rows": int(site.empty_NQ.sum())}
        evidence["rows"] = site.empty_NQ.numel()
        if site.shape:
            evidence["queries"] = list(site.shape)
        self.scene.report(
            kind,
            mechanism,
            cause,
            fix,
            severity=Severity.INFO if mechanism in _HARMLESS else Severity.ERROR,
            phase="forward",
            module=site.module,
            op=site.op,
            where=site.where,
            evidence=evidence,
        )


def judge(site: Site, padding: Padding | None) -> str:
    """Return what is wrong with a mask, "" for nothing."""
    if bool(site.is_bad):
        return ""
    if not bool(site.empty_NQ.any() | ~site.sees_behind):
        return "inverted-mask" if _sees_padding_alone(site, padding) else ""
    empty_NQ, seen_NK = site.empty_NQ, site.seen_NK
    is_ahead = bool(site.sees_ahead)
    is_self = empty_NQ.shape[-1] == seen_NK.shape[-1] > 1
    if is_self and not bool(seen_NK.any() & site.sees_behind):
        return "inverted-mask"  # nothing is seen, or the future alone
    if _sees_padding_alone(site, padding):
        return "inverted-mask"
    if is_ahead:
        may_see_NQ = seen_NK.any(-1, keepdim=True).expand_as(empty_NQ)
    elif is_self:
        may_see_NQ = seen_NK.cumsum(-1) > 0
    else:
        return ""
    # A row that is empty beside keys it might see was emptied on purpose: its query is padding. So
    # was a whole sample, unless it is known to hold more than padding.
    lost_NQ = empty_NQ & ~may_see_NQ
    is_whole = empty_NQ.all(-1, keepdim=True)
    if padding is not None and padding.pad_BT.shape == empty_NQ.shape:
        is_whole = is_whole & padding.pad_BT.to(is_whole.device).all(-1, keepdim=True)
    if not bool((lost_NQ & ~is_whole).any()):
        return ""
    if bool(site.is_lowest):
        return "" if is_ahead else "uniform-row"
    return "fully-masked-row"


def _sees_padding_alone(site: Site, padding: Padding | None) -> bool:
    """Return whether padding is all that is seen."""
    if padding is None or site.seen_NK.shape != padding.pad_BT.shape:
        return False
    seen, pad = site.seen_NK, padding.pad_BT.to(site.seen_NK.device)
    return bool(seen.any() & ~(seen & ~pad).any())


def sees_padding(site: Site, padding: Padding) -> bool:
    """Return whether keys that are padding are seen by rows before and after them."""
    size = padding.pad_BT.shape[1]
    if site.empty_NQ.shape[-1] != size or site.seen_NK.shape[-1] != size:
        return False
    if not bool(site.sees_ahead) or not bool(site.sees_behind) or bool(site.is_bad):
        return False
    pad = padding.pad_BT.to(site.seen_NK.device)
    return bool((site.seen_NK & pad).any(0).any()) and bool((site.seen_NK | ~pad).all())


def swaps_heads(site: Site, layout: Layout) -> bool:
    """Return whether heads attend to heads: [B, T, H, A] was never transposed.

    The queries have to be cut from one matrix of a row per step; features of a step that attend to
    each other on purpose have a row each.
    """
    if site.op != "scaled_dot_product_attention" or len(site.shape) != 4 or not site.rows:
        return False
    samples, steps, heads, width = site.shape
    if (samples, steps) != (layout.num_samples, layout.num_steps) or heads in (1, steps):
        return False
    rows = site.rows[0] if len(site.rows) == 2 else site.rows[0] * site.rows[1]
    return rows == samples * steps and site.rows[-1] % (heads * width) == 0


def reaches_kept(plain: list[Tensor], moved: list[Tensor], layout: Layout, pad_BT: Tensor) -> bool:
    """Return whether outputs at steps that are no padding moved with padding."""
    for index, batch, time in iter_seen(plain, layout):
        if batch is None or index >= len(moved) or plain[index].shape != moved[index].shape:
            continue
        one, two = plain[index].movedim(batch, 0), moved[index].movedim(batch, 0)
        if time is not None and plain[index].shape[time] == pad_BT.shape[1]:
            keep = ~pad_BT.to(one.device)
            one, two = (part.movedim(time, 1)[keep] for part in (one, two))
        if measure_move(one, two) > LEAST_MOVE:
            return True
    return False


def explain_padding(one: Recording, two: Recording, site: Site) -> tuple[str, str]:
    """Return why padding is seen, and the line."""
    op = find_crossing(one, two)
    if op is None or op.module != site.module:
        return "mask-dropped", site.where
    softmax = op if "softmax" in op.name else find_softmax(one, op)
    masking = None if softmax is None else find_masking(one, softmax)
    if masking is None:
        return "mask-dropped", site.where
    if masking.name in ("mul", "mul_") and masking.plain:
        return "multiplied-mask", masking.where
    return "mask-dropped", find_origin(one, masking).where
