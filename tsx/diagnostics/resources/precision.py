"""Dtypes that cost speed and are not meant: mixed norms, products that leave autocast, fp64.

Seen are the functions of traced calls, ahead of autograd and autocast, and the state of autocast
around each. torch's own warnings are not needed for it: they come once a process, name no module,
and to turn them all on would change what the program does with them.

Not covered: recurrent layers, custom kernels, captured graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.routing.routes import CHOICES
from tsx.diagnostics.tracing.gains import CONVOLUTIONS, PRODUCTS
from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.tape import OpSeen, Tape
from tsx.diagnostics.tracing.trace import find_line, is_user_line

MISMATCH = Kind(
    "dtype-mismatch",
    means="A norm is given two dtypes, and no fused kernel takes them.",
    story="bf16 was slower than fp32, and casts were suspected everywhere: an fp32 norm weight "
    "beside a bf16 input leaves the fused kernel, in each of 49 norms.",
    evidence="The dtypes of input and weight, and how many norms have them.",
    fix="Cast the weight to the input's dtype in the call: weight.to(x.dtype).",
)
UPCAST = Kind(
    "upcast",
    means="Products run in fp32 beside autocast, or in fp64 without anybody's wish.",
    story="Half the speed for no reason: a table made in numpy was fp64, and so was all that came "
    "after it. Mixed precision brought no speed: autocast stood around the loss, not the model.",
    evidence="Share of the arithmetic that ran in the wider dtype, its modules and lines.",
    fix="Put autocast around the model's forward; cast what comes from numpy to float32.",
)
MIN_SHARE = 0.05  # of a call's arithmetic: a router or a head of one point may be fp32
NEARLY_ALL = 0.9
_HALVES = (torch.float16, torch.bfloat16)
_LOSSES = frozenset(
    {"cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
    | {"binary_cross_entropy_with_logits", "kl_div", "softmax", "log_softmax"}
)
_JOINING = frozenset({"add", "mul", "sub", "div", "where", "cat", "stack", "addcmul", "lerp"})


class _Product(NamedTuple):
    """A product of a traced call."""

    module: str
    where: str
    dtype: torch.dtype
    is_autocast: bool  # around it
    work: int  # multiply-adds
    columns: int  # of what came out
    is_inside: bool  # the model's forward


class Precision(Detector):
    """Looks at the dtypes of each traced call."""

    name = "precision"
    kinds = (MISMATCH, UPCAST)
    functions = PRODUCTS | CHOICES | _LOSSES | _JOINING | {"rms_norm"}

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._told: set[str] = set()
        self._autocast_at = ""  # line that first ran under autocast
        self._model_at = ""  # line that called the model
        self._begin()

    def before_call(self, call: Call) -> None:
        """A call begins."""
        if self._products or self._norms or self._joins:
            self._begin()

    def saw_function(self, seen: OpSeen) -> None:
        """Note dtypes, and whether autocast is around."""
        if not isinstance(seen.out, Tensor):
            if seen.name in CHOICES:
                self._note_choice(seen)
            return
        is_autocast = is_autocast_on(seen.out.device.type)
        if is_autocast and not self._autocast_at:
            self._autocast_at = seen.where
        if seen.name in PRODUCTS:
            self._note_product(seen, is_autocast)
        elif seen.name == "rms_norm":
            self._note_norm(seen)
        elif seen.name in _JOINING and seen.out.dtype is torch.float64:
            self._note_join(seen)
        elif seen.name in CHOICES:
            self._note_choice(seen)

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Note whether autocast is around a module, seen as it returns."""
        first = next(iter_tensors(out), None)
        if first is not None:
            self._around.setdefault(name, is_autocast_on(first.device.type))

    def after_trace(self, tape: Tape) -> None:
        """Judge the call."""
        if self._norms:
            self._tell_norms()
        total = sum(product.work for product in self._products)
        if total:
            self._judge_autocast(total)
            self._judge_double(total)
        self._begin()

    def _begin(self) -> None:
        self._products: list[_Product] = []
        self._norms: list[OpSeen] = []
        self._joins: list[tuple[str, str]] = []  # module and line that first made fp64 of fp32
        self._choices: set[tuple[str, int]] = set()  # module of a router and its experts
        self._around: dict[str, bool] = {}
        self._autocast_at = ""
        self._model_at = ""

    def _note_product(self, seen: OpSeen, is_autocast: bool) -> None:
        work = count_work(seen)
        if work and seen.out.is_floating_point():
            columns = seen.out.shape[-1] if seen.out.ndim else 1
            if not self._products:
                self._model_at = _find_call_of(self.scene.model)
            is_wide = seen.out.dtype is torch.float32 and not is_autocast
            where = (_find_leaving_line() if is_wide else "") or seen.where
            is_inside = bool(seen.module) or not is_wide or bool(_find_call_of(self.scene.model))
            made = (seen.module, where, seen.out.dtype, is_autocast, work, columns, is_inside)
            self._products.append(_Product(*made))

    def _note_norm(self, seen: OpSeen) -> None:
        """Note a norm whose weight is wider than its input, and stays so in the kernel."""
        given = dict(zip(("input", "shape", "weight"), seen.args, strict=False)) | seen.kwargs
        x, weight = given.get("input"), given.get("weight")
        if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
            return
        # Where autocast makes both fp32, so is the result: another cost, and a rule of autocast.
        if x.dtype in _HALVES and weight.dtype is torch.float32 and seen.out.dtype is x.dtype:
            self._norms.append(seen)

    def _note_join(self, seen: OpSeen) -> None:
        """Note where fp64 comes in: beside fp32 activations that are trained through."""
        given = [t for t in iter_tensors(seen.args) if t.ndim and t.is_floating_point()]
        dtypes = {t.dtype for t in given}
        if len(dtypes) > 1 and torch.float64 in dtypes and seen.out.requires_grad:
            self._joins.append((seen.module, seen.where))

    def _note_choice(self, seen: OpSeen) -> None:
        scores = seen.args[0] if seen.args else None
        if isinstance(scores, Tensor) and scores.ndim > 1:
            self._choices.add((seen.module, scores.shape[-1]))

    def _tell_norms(self) -> None:
        first = self._norms[0]
        x, weight = first.args[0], next(t for t in iter_tensors((first.args[1:], first.kwargs)))
        modules = list(dict.fromkeys(seen.module for seen in self._norms))
        self._report(
            MISMATCH.name,
            "fp32-weight-bf16-input" if x.dtype is torch.bfloat16 else "fp32-weight-fp16-input",
            "an fp32 norm weight beside a 16-bit input leaves the fused kernel: the norm runs as "
            "a row of small operations in fp32",
            MISMATCH.fix,
            (first.module, first.where),
            {
                "input": str(x.dtype).removeprefix("torch."),
                "weight": str(weight.dtype).removeprefix("torch."),
                "norms": len(self._norms),
                "modules": modules[:8],
                "device": x.device.type,
            },
        )

    def _judge_autocast(self, total: int) -> None:
        wide = [p for p in self._products if p.dtype is torch.float32 and not p.is_autocast]
        work = sum(product.work for product in wide)
        if self._autocast_at and work >= NEARLY_ALL * total:
            self._report(
                UPCAST.name,
                "autocast-misplaced",
                "autocast is on, but around none of the model's products: they run in fp32",
                "put autocast around the model's forward",
                ("", self._model_at or wide[0].where),
                {"fp32_share": work / total, "autocast_at": self._autocast_at},
            )
            return
        left = [p for p in wide if p.is_inside and self._find_leaver(p.module) is not None]
        left = [p for p in left if (p.module, p.columns) not in self._choices]
        work = sum(product.work for product in left)
        if work < MIN_SHARE * total:
            return
        self._report(
            UPCAST.name,
            "autocast-left",
            "a module leaves autocast and takes its products with it: they run in fp32",
            "leave autocast for the softmax or the sum alone, not for the products around it",
            (self._find_leaver(left[0].module) or "", left[0].where),
            {
                "fp32_share": work / total,
                "modules": list(dict.fromkeys(product.module for product in left))[:8],
            },
        )

    def _find_leaver(self, module: str) -> str | None:
        """Return the module that a product in fp32 is in, with autocast around it."""
        while True:
            if self._around.get(module):
                return module
            if not module:
                return None
            module = module.rpartition(".")[0]

    def _judge_double(self, total: int) -> None:
        params = [p.dtype for p in self.scene.model.parameters() if p.is_floating_point()]
        is_meant = 2 * params.count(torch.float64) > len(params)
        work = sum(p.work for p in self._products if p.dtype is torch.float64)
        if is_meant or not self._joins or not (work or self._joins[0][0]):
            return
        module, where = self._joins[0]
        self._report(
            UPCAST.name,
            "fp64-from-numpy",
            "an fp64 tensor, as numpy and torch.float64 make them, turns all that comes after it "
            "into fp64",
            "cast it to float32 where it is made",
            (module, where),
            {"fp64_share": work / total},
        )

    def _report(
        self,
        kind: str,
        mechanism: str,
        cause: str,
        fix: str,
        place: tuple[str, str],
        evidence: dict[str, Any],
    ) -> None:
        if mechanism in self._told:
            return
        self._told.add(mechanism)
        self.scene.report(
            kind,
            mechanism,
            cause,
            fix,
            phase="forward",
            module=place[0],
            where=place[1],
            evidence=evidence,
        )


def is_autocast_on(device_type: str) -> bool:
    """Return whether autocast is on for a type of device, right here."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _find_leaving_line() -> str:
    """Return the innermost line of a function that speaks of autocast, "" where none does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if is_user_line(code.co_filename) and any("autocast" in name for name in code.co_names):
            return shorten(f"{code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    return ""


def _find_call_of(model: nn.Module) -> str:
    """Return the line that called a model whose forward is under way, "" where none is."""
    code = getattr(type(model).forward, "__code__", None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return shorten(find_line(frame.f_back)) if frame is not None and frame.f_back else ""


def count_work(seen: OpSeen) -> int:
    """Return the multiply-adds of a product, about; 0 where its shapes do not tell."""
    tensors: Sequence[Tensor] = [t for t in iter_tensors((seen.args, seen.kwargs)) if t.ndim]
    if len(tensors) < 2:
        return 0
    if seen.name in CONVOLUTIONS:
        size = seen.out.numel() * tensors[1][0].numel()
        return int(size) if "transpose" not in seen.name else int(tensors[0].numel() * size)
    first = tensors[1] if seen.name in ("addmm", "baddbmm") else tensors[0]
    return int(seen.out.numel() * first.shape[-1])
