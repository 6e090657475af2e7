"""Which kernel `scaled_dot_product_attention` ran in, against the one that a plain call would have.

Seen are the operations below each call: a fused kernel is one operation, the formula by hand a
dozen. torch itself says which kernel it would take without the mask or the dropout. A kernel that
this device would not have anyway is a remark.

Not covered: captured graphs; calls inside vmap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from registry.events import Severity
from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.tracing.tape import OpSeen, Tape

KIND = Kind(
    "attention-backend",
    means="Attention ran in another kernel than the fused one that was expected.",
    story="Flash attention was turned on and never used: a mask that was not None silently chose "
    "another kernel.",
    evidence="The kernel that ran, the one a plain call would take, and what made the difference.",
    fix="Say is_causal=True instead of handing a mask over; keep dropout out of the call where no "
    "kernel has it.",
)
FUSED = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_flash_attention_for_cpu": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_fused_attention_overrideable": "fused",
}
_CHOICES = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "fused"}
_MATH = "math"
_WEIGHTS = "weights-asked"
MAX_CAUSAL = 1 << 24  # elements of a mask that is held against a triangle


class AttentionBackend(Detector):
    """Looks at the fused calls of each traced call."""

    name = "backends"
    kinds = (KIND,)
    functions = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
    ops = frozenset(FUSED)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._ran = ""
        self._calls: dict[tuple[str, str], list[OpSeen]] = {}  # by mechanism and kernel
        self._told: set[tuple[str, str]] = set()

    def before_call(self, call: Call) -> None:
        """A call begins."""
        self._ran = ""
        self._calls.clear()

    def saw_op(self, seen: OpSeen) -> None:
        """Note a fused kernel: its function returns right after it."""
        self._ran = FUSED[seen.name]

    def saw_function(self, seen: OpSeen) -> None:
        """Hold the kernel that ran against that of a plain call."""
        if seen.name == "multi_head_attention_forward":
            if seen.kwargs.get("need_weights") and not any(m == _WEIGHTS for m, _ in self._told):
                self._calls.setdefault((_WEIGHTS, _MATH), []).append(seen)
            return
        ran, self._ran = self._ran or _MATH, ""
        given = _name_arguments(seen)
        if given is None:
            return
        plain = predict(given, mask=None, dropout=0.0)
        if plain in (ran, _MATH, ""):
            return
        mechanism = _find_reason(given, ran)
        if mechanism and (mechanism, ran) not in self._told:
            self._calls.setdefault((mechanism, ran), []).append(seen)

    def after_trace(self, tape: Tape) -> None:
        """Report each reason once, at its first place."""
        for (mechanism, ran), calls in self._calls.items():
            self._told.add((mechanism, ran))
            self._report(mechanism, ran, calls)
        self._calls.clear()

    def _report(self, mechanism: str, ran: str, calls: list[OpSeen]) -> None:
        first = calls[0]
        given = _name_arguments(first) or {}
        expected = predict(given, mask=None, dropout=0.0) if given else ""
        out = next(iter_tensors(first.out))
        evidence = {
            "ran": ran,
            "expected": expected,
            "node": out.grad_fn.name() if out.grad_fn is not None else "",
            "device": out.device.type,
            "dtype": str(out.dtype).removeprefix("torch."),
            "modules": list(dict.fromkeys(seen.module for seen in calls))[:8],
        }
        step = self.scene.step
        causal = measure_causal(given["attn_mask"]) if mechanism == "mask-not-null" else None
        if causal is None:
            self._tell(first, mechanism, evidence, step)
            return

        def take(is_causal: Any) -> None:
            self._tell(first, "mask-is-causal" if is_causal else mechanism, evidence, step)

        self.scene.voice.read_late(causal, take)

    def _tell(self, first: OpSeen, mechanism: str, evidence: dict[str, Any], step: int) -> None:
        cause, fix = _WORDS[mechanism]
        # What an accelerator had to give, for the asking; on a host nothing much is lost.
        is_lost = evidence["device"] != "cpu" and mechanism != _WEIGHTS
        is_lost = is_lost and (evidence["ran"] == _MATH or mechanism == "mask-is-causal")
        self.scene.report(
            KIND.name,
            mechanism,
            cause,
            fix,
            severity=Severity.WARNING if is_lost else Severity.INFO,
            step=step,
            phase="forward",
            module=first.module,
            op="scaled_dot_product_attention",
            where=first.where,
            evidence=evidence,
        )


_WORDS = {
    "mask-wants-gradient": (
        "a mask that wants a gradient is handed to the fused call, which takes another kernel",
        "use flex_attention, or a bias without gradient, where the fused kernel matters",
    ),
    "mask-is-causal": (
        "a causal mask is handed to the fused call as a tensor, which takes another kernel",
        "pass is_causal=True and no mask",
    ),
    "mask-not-null": (
        "a mask is handed to the fused call, which silently takes another kernel",
        "pass is_causal=True where the mask is causal; none is needed for padding on the right",
    ),
    "dropout-not-fused": (
        "the fused call is given a dropout, which no fused kernel of this device has",
        "drop elsewhere: after the attention, or not at all",
    ),
    _WEIGHTS: (
        "nn.MultiheadAttention is asked for its weights, so it runs the formula by hand",
        "pass need_weights=False where nobody reads them",
    ),
}


def predict(given: dict[str, Any], *, mask: Tensor | None, dropout: float) -> str:
    """Return the kernel that torch would take, "" where it does not say."""
    query, key, value = given["query"], given["key"], given["value"]
    is_causal = bool(given.get("is_causal")) and mask is None
    try:
        choice = torch._fused_sdp_choice(
            query,
            key,
            value,
            mask,
            dropout,
            is_causal,
            scale=given.get("scale"),
            enable_gqa=bool(given.get("enable_gqa", False)),
        )
    except (RuntimeError, TypeError, NotImplementedError):
        return ""
    return _CHOICES.get(int(choice), "")


def _name_arguments(seen: OpSeen) -> dict[str, Any] | None:
    """Return the arguments by name, None where there are no tensors."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, seen.args, strict=False)) | seen.kwargs
    is_whole = all(isinstance(given.get(name), Tensor) for name in names[:3])
    return given if is_whole and isinstance(seen.out, Tensor) else None


def _find_reason(given: dict[str, Any], ran: str) -> str:
    """Return which argument keeps the fused kernel away, "" where it is neither."""
    mask, dropout = given.get("attn_mask"), float(given.get("dropout_p") or 0.0)
    if mask is None:
        return (
            "dropout-not-fused"
            if dropout and predict(given, mask=None, dropout=dropout) == ran
            else ""
        )
    if dropout and predict(given, mask=mask, dropout=0.0) != ran:
        return "dropout-not-fused"
    if mask.requires_grad and predict(given, mask=mask.detach(), dropout=dropout) != ran:
        return "mask-wants-gradient"
    return "mask-not-null"


def measure_causal(mask: Tensor) -> Tensor | None:
    """Return whether a mask says what is_causal=True says, 0-d; None where its shape says no."""
    if mask.ndim < 2 or mask.numel() > MAX_CAUSAL or mask.shape[-1] != mask.shape[-2]:
        return None
    if mask.numel() != mask.shape[-1] ** 2:
        return None
    square = mask.detach().reshape(mask.shape[-2:])
    seen = square if square.dtype is torch.bool else square == 0
    return (seen == torch.ones_like(seen).tril()).all()
