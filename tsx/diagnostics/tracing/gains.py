"""How much larger each matrix product makes what goes through it, in one traced call.

Owns the measuring: products of a parameter with an activation, stacks of experts, fresh scores of
attention. All of it stays on the device until `Gains.pack`. Judges nothing.

Not covered: products inside recurrent layers and custom kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.tracing.tape import OpSeen
from tsx.diagnostics.tracing.trace import find_memory

CONVOLUTIONS = frozenset(f"conv{part}{d}d" for d in (1, 2, 3) for part in ("", "_transpose"))
PRODUCTS = CONVOLUTIONS | {
    *("linear", "matmul", "mm", "bmm", "einsum", "addmm", "baddbmm", "tensordot"),
    *("_grouped_mm", "grouped_mm", "grouped_linear.default"),
}
FUNCTIONS = PRODUCTS | {"to", "softmax", "scaled_dot_product_attention"}
MAX_ELEMENTS = 4_000_000  # of a tensor that is measured: its first rows
MAX_PRODUCTS = 512
MAX_CASTS_BYTES = 1 << 30  # of cast weights that are held to be known again
MIN_KEYS = 4  # of a softmax that is judged
NO_KEY = -1e4  # a score below is a mask's


@dataclass(slots=True)
class Product:
    """A parameter that was multiplied with an activation.

    Attributes:
        name: of the parameter.
        param: itself.
        where: line of the product.
        is_conv: it was a convolution.
        before, after: root mean squares of the activation.
        std, mean: of the parameter.
        spread: largest difference between two of its filters.
    """

    name: str
    param: Tensor
    where: str
    is_conv: bool
    before: float = math.nan
    after: float = math.nan
    std: float = math.nan
    mean: float = math.nan
    spread: float = math.nan

    @property
    def module(self) -> str:
        """Name of the module that owns the parameter."""
        return self.name.rpartition(".")[0]

    @property
    def gain(self) -> float:
        """Size of what comes out over the size of what goes in; NaN where nothing goes in."""
        return self.after / self.before if self.before else math.nan


@dataclass(slots=True)
class Scores:
    """Scores of an attention.

    Attributes:
        module: where they are made.
        where: line of their product.
        std: of the scores that count.
        peak: mean of the largest weight of each row.
    """

    module: str
    where: str
    std: float = math.nan
    peak: float = math.nan


@dataclass(slots=True)
class ModuleGain:
    """Sizes of what went into a module and came out."""

    name: str
    before: float = math.nan
    after: float = math.nan


@dataclass
class Gains:
    """Takes what a call shows; `pack` gives all sizes as one tensor, `unpack` sets them.

    Args:
        names: id of a parameter to its name.
    """

    names: Mapping[int, str]
    products: list[Product] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    modules: list[ModuleGain] = field(default_factory=list)
    _sizes: list[Tensor] = field(default_factory=list)
    _takers: list[Callable[[float], None]] = field(default_factory=list)
    _by_memory: dict[int, Tensor] = field(default_factory=dict)
    _casts: list[Tensor] = field(default_factory=list)
    _known: set[int] = field(default_factory=set)
    _last_scores: tuple[str, str, Tensor] | None = None

    def begin(self, model: nn.Module) -> None:
        """Note where the parameters lie."""
        self._by_memory = {find_memory(p): p for p in model.parameters() if p.ndim >= 2}
        self._by_memory.pop(0, None)

    def see(self, seen: OpSeen) -> None:
        """Take a function that has returned."""
        if seen.name == "to":
            self._note_cast(seen)
        elif seen.name == "softmax":
            self._see_softmax(seen)
        elif seen.name == "scaled_dot_product_attention":
            self._see_fused(seen)
        elif len(self.products) < MAX_PRODUCTS:
            self._see_product(seen)

    def see_module(self, name: str, args: Sequence[Any], out: Any) -> None:
        """Take a module whose experts are stacked."""
        before, after = _find_float(args), _find_float([out])
        if before is not None and after is not None:
            gain = ModuleGain(name)
            self.modules.append(gain)
            self._measure(measure_size(before), gain, "before")
            self._measure(measure_size(after), gain, "after")

    def pack(self) -> Tensor | None:
        """Return all that was measured as one vector, None where there is nothing."""
        self._casts.clear()
        self._by_memory.clear()
        self._last_scores = None
        if not self._sizes:
            return None
        first = self._sizes[0]
        return torch.stack([size.to(first.device, torch.float32) for size in self._sizes])

    def unpack(self, values: Sequence[float]) -> None:
        """Set what was packed."""
        for take, value in zip(self._takers, values, strict=True):
            take(float(value))

    def _measure(self, size: Tensor, holder: Any, attribute: str) -> None:
        self._sizes.append(size.detach())
        self._takers.append(lambda value: setattr(holder, attribute, value))

    def _note_cast(self, seen: OpSeen) -> None:
        param = self._find_param(seen.args[0]) if seen.args else None
        if param is None or not isinstance(seen.out, Tensor):
            return
        held = sum(cast.nbytes for cast in self._casts) + seen.out.nbytes
        if seen.out.numel() == param.numel() and held <= MAX_CASTS_BYTES:
            self._casts.append(seen.out)  # held: its memory must not become another's
            self._by_memory[find_memory(seen.out)] = param

    def _find_param(self, value: Any) -> Tensor | None:
        if not isinstance(value, Tensor):
            return None
        memory = find_memory(value)
        return self._by_memory.get(memory) if memory else None

    def _see_product(self, seen: OpSeen) -> None:
        tensors = list(iter_tensors((seen.args, seen.kwargs)))
        found = [(tensor, self._find_param(tensor)) for tensor in tensors[:3]]
        weight = next(((t, p) for t, p in found if p is not None and t.ndim >= 2), None)
        rest = [t for t, p in found if p is None and t.is_floating_point()]
        if not isinstance(seen.out, Tensor) or not rest:
            return
        if weight is None:
            if len(rest) > 1 and seen.out.ndim >= 3:
                self._last_scores = (seen.module, seen.where, seen.out)
            return
        param = weight[1]
        name = self.names.get(id(param)) if param is not None else None
        if param is None or name is None or id(param) in self._known:
            return
        self._known.add(id(param))
        product = Product(name, param, seen.where, seen.name in CONVOLUTIONS)
        self.products.append(product)
        flat = param.detach().reshape(len(param), -1)
        part = flat[: max(2, MAX_ELEMENTS // max(flat.shape[1], 1))].float()
        self._measure(measure_size(rest[0]), product, "before")
        self._measure(measure_size(seen.out), product, "after")
        self._measure(part.std(correction=0), product, "std")
        self._measure(part.mean(), product, "mean")
        self._measure((part - part[:1]).abs().amax(), product, "spread")

    def _see_softmax(self, seen: OpSeen) -> None:
        """Measure the weights of an attention by hand: a softmax over a product's scores."""
        made, self._last_scores = self._last_scores, None
        scores = seen.args[0] if seen.args else None
        if made is None or not isinstance(scores, Tensor) or not isinstance(seen.out, Tensor):
            return
        module, where, product = made
        if seen.module != module or scores.shape != product.shape or seen.out.ndim < 3:
            return
        if seen.out.shape != scores.shape or scores.shape[-1] < MIN_KEYS:
            return
        # Of the product too: a sharp bias of positions is no fault of the scores.
        spread = torch.minimum(_measure_spread(scores), _measure_spread(product))
        self._add_scores(module, where, spread, _measure_peak(scores, seen.out))

    def _see_fused(self, seen: OpSeen) -> None:
        """Estimate the scores of a fused call: nobody sees them."""
        given = dict(zip(("query", "key", "value"), seen.args, strict=False)) | seen.kwargs
        query, key = given.get("query"), given.get("key")
        if not isinstance(query, Tensor) or not isinstance(key, Tensor) or query.ndim < 3:
            return
        if key.shape[-2] < MIN_KEYS:
            return
        scale = given.get("scale")
        width = query.shape[-1]
        factor = (1 / math.sqrt(width) if scale is None else float(scale)) * math.sqrt(width)
        # What all keys share moves no weight: only what differs between them counts.
        part = key.detach()[:1].float()
        spread = measure_size(part - part.mean(-2, keepdim=True)) * measure_size(query) * factor
        self._add_scores(seen.module, seen.where, spread, torch.ones_like(spread))

    def _add_scores(self, module: str, where: str, std: Tensor, peak: Tensor) -> None:
        scores = Scores(module, where)
        self.scores.append(scores)
        self._measure(std, scores, "std")
        self._measure(peak, scores, "peak")


def measure_size(tensor: Tensor) -> Tensor:
    """Return the root mean square of a tensor, or of its first rows where it is large; 0-d."""
    flat = tensor.detach()
    if flat.numel() > MAX_ELEMENTS and flat.ndim > 1:
        flat = flat[: max(1, MAX_ELEMENTS * len(flat) // flat.numel())]
    wide = None if flat.dtype is torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(flat, dtype=wide)
    return norm / math.sqrt(max(flat.numel(), 1))


def _take_rows(scores: Tensor) -> Tensor:
    """Return the last rows of the first samples: those that see most keys."""
    return scores.detach().flatten(0, -3)[:8, -32:].float()


def _measure_spread(scores: Tensor) -> Tensor:
    """Return the standard deviation of the scores that are not masked, row by row, in the mean."""
    rows = _take_rows(scores)
    counts = rows > NO_KEY
    number = counts.sum(-1, keepdim=True).clamp(min=1)
    mean = rows.where(counts, 0.0).sum(-1, keepdim=True) / number
    square = (rows - mean).where(counts, 0.0).square().sum(-1, keepdim=True) / number
    return square.mean().sqrt()


def _measure_peak(scores: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of the largest weight, over rows that see enough keys."""
    is_wide = (_take_rows(scores) > NO_KEY).sum(-1) >= MIN_KEYS
    peak = _take_rows(weights).amax(-1)
    return peak.where(is_wide, 0.0).sum() / is_wide.sum().clamp(min=1)


def _find_float(values: Sequence[Any]) -> Tensor | None:
    """Return the first float tensor among values, or inside the first tuple."""
    return next((t for t in iter_tensors(tuple(values)) if t.is_floating_point()), None)
