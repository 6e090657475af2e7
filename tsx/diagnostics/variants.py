"""Two ways of computing one thing, held against each other: which differs, where and how.

`compare_variants` is for anybody's modules or functions. In a traced call the detector holds the
embedded model's experts, sorted and grouped, against the loop that is written to be read.

A variant with a weight transposed, and one whose rows are those of the other times a number each
(weights that were renormalised), are recognised; anything else is only measured and placed.

Shapes: N tokens, K experts per token, D hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from registry.events import Finding, Severity
from tsx.diagnostics.detector import Detector, Kind, Scene
from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.replay import Rewinder
from tsx.diagnostics.tracing.trace import find_line
from tsx.model.experts import Experts
from tsx.model.router import Routing

KIND = Kind(
    "variant-equivalence",
    means="Two implementations that are to compute the same thing do not, with the same weights.",
    story="Batched experts gave another loss than the loop they replaced, which was put down to "
    "capacity: the einsum took each matrix transposed.",
    evidence="The largest difference, the tolerance for the dtype, the weight that is transposed "
    "or the number each row is multiplied with.",
    fix="Run compare_variants on one batch in a test, and mend the variant that is new.",
)
# Largest difference by the largest value: what another order of summation makes of thousands of
# terms, with room; what is wrong is 0.1 and more.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
TF32 = 1e-2  # of fp32 products on CUDA where torch is told to round them
PRODUCTS = frozenset(
    {"einsum", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "linear", "addmm"}
)
MAX_TRANSPOSED = 64  # parameters that are tried


@dataclass(frozen=True, slots=True)
class Difference:
    """How two variants differ.

    Attributes:
        mechanism: transposed, weights-renormalised, rows-scaled, shape, or unexplained.
        cause: one sentence.
        largest: difference, by the largest value of the first variant.
        tolerance: for the dtype.
        module: the first that differs, "" where it is the whole, or none is known.
        where: "file.py:12" of the guilty product, or "".
        evidence: figures.
    """

    mechanism: str
    cause: str
    largest: float
    tolerance: float
    module: str = ""
    where: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_finding(self, *, step: int = 0, at: float | None = None) -> Finding:
        """Return it as a finding."""
        return Finding(
            time=time.time() if at is None else at,
            kind=KIND.name,
            severity=Severity.ERROR,
            step=step,
            phase="forward",
            module=self.module,
            where=self.where,
            cause=self.cause,
            evidence=self.list_evidence(),
            fix=KIND.fix,
        )

    def list_evidence(self) -> dict[str, Any]:
        """Return mechanism and figures."""
        return {
            "mechanism": self.mechanism,
            "largest_difference": float(f"{self.largest:.4g}"),
            "tolerance": self.tolerance,
            **self.evidence,
        }


def compare_variants(
    one: Callable[..., Any],
    other: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    model: nn.Module | None = None,
    tolerance: float | None = None,
) -> Difference | None:
    """Return how the outputs of two variants differ; None where they agree.

    Nothing of a module's buffers, of the generators or of autograd is touched.

    Args:
        one: a module, or a function: the one that is trusted.
        other: likewise: the one that is doubted. Two modules are to hold the same weights.
        inputs: of both.
        model: holds the weights that `other` uses; default: `other`, or what it is a method of.
        tolerance: largest difference by the largest value; default by dtype, see `TOLERANCES`.
    """
    model = model if model is not None else _find_module(other)
    expected, seen_one = _record(one, inputs)
    found, seen_other = _record(other, inputs)
    difference = measure_difference(expected, found, tolerance)
    if difference is None:
        return None
    module = _find_first(seen_one, seen_other, tolerance)
    if difference.mechanism != "shape" and model is not None:
        for name, parameter in list(model.named_parameters())[:MAX_TRANSPOSED]:
            if _agrees_transposed(other, inputs, expected, parameter, tolerance):
                where = _find_product(other, inputs, parameter)
                return _describe_transposed(difference, name, module, where)
    return Difference(
        difference.mechanism,
        difference.cause,
        difference.largest,
        difference.tolerance,
        module,
        "",
        difference.evidence,
    )


def measure_difference(
    expected: Tensor, found: Tensor, tolerance: float | None = None
) -> Difference | None:
    """Return how one output differs from another; None where it does not.

    Args:
        expected: of the variant that is trusted.
        found: of the other.
        tolerance: as in `compare_variants`.
    """
    if expected.shape != found.shape:
        shapes = [list(expected.shape), list(found.shape)]
        cause = f"two variants give shapes {shapes[0]} and {shapes[1]}"
        return Difference("shape", cause, float("inf"), 0.0, evidence={"shapes": shapes})
    allowed = _pick_tolerance(expected, found) if tolerance is None else tolerance
    a, b = expected.detach().double(), found.detach().double()
    is_same = (a == b) | (a.isnan() & b.isnan())
    if bool(is_same.all()):
        return None
    size = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) or 1.0
    gaps = (a - b).abs().masked_fill(is_same, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    largest = float(gaps.max()) / size
    if largest <= allowed:
        return None
    scales = _find_row_scales(a, b, allowed)
    if scales is None:
        cause = "two variants of one computation give other numbers for the same weights and input"
        return Difference("unexplained", cause, largest, allowed)
    return Difference(
        "rows-scaled",
        "two variants differ by a number that each row is multiplied with: weights are normalised "
        "in one of them alone",
        largest,
        allowed,
        evidence={"row_factors": [float(f"{v:.4g}") for v in (scales.min(), scales.max())]},
    )


class Variants(Detector):
    """Holds each stack of experts against its loop, in the first traced call."""

    name = "variants"
    kinds = (KIND,)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._seen: set[str] = set()

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Run the experts that have just run once more, as a loop."""
        if not isinstance(module, Experts) or name in self._seen or len(args) != 2:
            return
        self._seen.add(name)
        x_ND, routing = args
        if not isinstance(out, Tensor) or not isinstance(routing, Routing):
            return
        difference = measure_difference(module.run_loop(x_ND, routing), out)
        if difference is None:
            return
        mechanism, cause = difference.mechanism, difference.cause
        if mechanism == "rows-scaled" and _is_renormalised(module, x_ND, routing, out):
            mechanism = "weights-renormalised"
            cause = (
                "the experts that run divide the weights of the chosen by their sum, the loop that "
                "is read does not: two answers for one set of weights"
            )
        self.scene.report(
            KIND.name,
            mechanism,
            cause,
            "compute both ways from the same routing.weights_NK",
            severity=Severity.ERROR,
            phase="forward",
            module=name,
            where=_find_end(type(module).forward),
            evidence=difference.list_evidence() | {"mechanism": mechanism},
        )


def _is_renormalised(module: Experts, x_ND: Tensor, routing: Routing, out: Tensor) -> bool:
    """Return whether the loop gives `out` with weights that add up to 1."""
    weights = routing.weights_NK / routing.weights_NK.sum(-1, keepdim=True)
    loop = module.run_loop(x_ND, routing._replace(weights_NK=weights))
    return measure_difference(loop, out) is None


def _find_row_scales(a: Tensor, b: Tensor, allowed: float) -> Tensor | None:
    """Return the number that each row of a is multiplied with to give b; None where none does."""
    if a.ndim < 2 or a.shape[-1] < 2 or not (a.isfinite().all() and b.isfinite().all()):
        return None
    a, b = a.flatten(0, -2), b.flatten(0, -2)
    squares = a.square().sum(-1)
    is_used = squares > 0
    if not is_used.any():
        return None
    scales = (a * b).sum(-1)[is_used] / squares[is_used]
    left = (a[is_used] * scales[:, None] - b[is_used]).abs().max()
    return scales if float(left) <= allowed * float(b.abs().max()) else None


def _pick_tolerance(*tensors: Tensor) -> float:
    """Return what the coarsest dtype asks for."""
    found = max(TOLERANCES.get(tensor.dtype, 0.0) for tensor in tensors)
    is_rounded = torch.backends.cuda.matmul.allow_tf32 and tensors[0].is_cuda
    return max(found, TF32) if is_rounded else found


def _describe_transposed(difference: Difference, name: str, module: str, where: str) -> Difference:
    owner = name.rpartition(".")[0]
    return Difference(
        "transposed",
        f"two variants agree once {name} is transposed in one of them: its product takes the other "
        "axis",
        difference.largest,
        difference.tolerance,
        module or owner,
        where,
        {"parameter": name},
    )


def _record(call: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output of a variant, and of each module in it, in the order in which they ran."""
    seen: dict[str, Tensor] = {}
    handles = []
    if isinstance(call, nn.Module):
        for name, module in call.named_modules():
            if name:

                def keep(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                    if isinstance(out, Tensor):
                        seen.setdefault(name, out.detach().clone())

                handles.append(module.register_forward_hook(keep))
    try:
        with _kept(call):
            out = call(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    first = out[0] if isinstance(out, tuple | list) else out
    if not isinstance(first, Tensor):
        raise TypeError(f"a variant returned {type(first).__name__}; expected a tensor")
    return first, seen


def _find_first(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float | None
) -> str:
    """Return the first module of both whose outputs differ, "" where there is none."""
    shared = (name for name in other if name in one)
    return next((n for n in shared if measure_difference(one[n], other[n], tolerance)), "")


def _agrees_transposed(
    call: Callable[..., Any],
    inputs: Sequence[Any],
    expected: Tensor,
    parameter: nn.Parameter,
    tolerance: float | None,
) -> bool:
    """Return whether a variant gives what is expected with one square parameter transposed."""
    if parameter.ndim < 2 or parameter.shape[-1] != parameter.shape[-2] or parameter.shape[-1] < 2:
        return False
    held = parameter.detach()
    kept = held.clone()
    try:
        held.copy_(kept.transpose(-1, -2))
        return measure_difference(expected, _record(call, inputs)[0], tolerance) is None
    finally:
        held.copy_(kept)


class _Follower(TorchFunctionMode):
    """Follows a parameter through indexing and views to the first product that takes it."""

    def __init__(self, parameter: Tensor) -> None:
        super().__init__()
        self.where = ""
        self._held: list[Tensor] = [parameter]  # kept alive: an id is another's afterwards

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        given = [arg for arg in args if isinstance(arg, Tensor)]
        if not self.where and any(arg is held for arg in given for held in self._held):
            if name in PRODUCTS:
                self.where = shorten(find_line())
            elif isinstance(out, Tensor):
                self._held.append(out)
        return out


def _find_product(call: Callable[..., Any], inputs: Sequence[Any], parameter: Tensor) -> str:
    """Return the line of the first product that takes a parameter, "" where none is seen."""
    follower = _Follower(parameter)
    with _kept(call), follower:
        call(*inputs)
    return follower.where


def _find_module(call: Any) -> nn.Module | None:
    """Return the module that a variant is, or is a method of."""
    owner = call if isinstance(call, nn.Module) else getattr(call, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _find_end(function: Callable[..., Any]) -> str:
    """Return "file.py:12" of the last line of a function."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    last = max((line for *_, line in code.co_lines() if line), default=code.co_firstlineno)
    return shorten(f"{code.co_filename}:{last}")


@contextmanager
def _kept(call: Any) -> Iterator[None]:
    """Run without autograd; generators and buffers are as they were afterwards.

    Two variants start from the same generators, so that dropout is no difference.
    """
    module = _find_module(call)
    rewinder = Rewinder(module if module is not None else nn.Identity())
    with rewinder.back_to(rewinder.take()), torch.no_grad():
        yield
