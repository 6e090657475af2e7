"""A few numbers of every parameter, and whether they are still the same.

A stack of experts counts as one unit an expert, a joint matrix of queries, keys and values as one
unit each. A sample says that a unit moves; that one stands still is only suspected, for the rows
that move may not be among the few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tsx.diagnostics.loop.updates import is_measurable
from tsx.diagnostics.weights.roles import Part, iter_parts

SAMPLE = 256  # numbers of each unit: the smallest norm is taken whole, a stack costs little


@dataclass(frozen=True, slots=True)
class Unit:
    """What moves or stands still as one.

    Attributes:
        part: name and class.
        param: it belongs to.
    """

    part: Part
    param: Tensor

    @property
    def module(self) -> str:
        """Name of the module that holds it."""
        return self.part.tensor.rpartition(".")[0]

    def take(self, tensor: Tensor) -> Tensor:
        """Return the unit's piece of the parameter, or of a tensor of the same shape."""
        return self.part.take(get_local(tensor))


class Sampler:
    """Takes the same few numbers of the same tensors, again and again.

    Attributes:
        units: in the order of `model.named_parameters()`.
    """

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        kept = {name: param for name, param in named.items() if _has_numbers(param)}
        parts: dict[str, list[Part]] = {}
        for part in iter_parts({name: tuple(p.shape) for name, p in kept.items()}):
            parts.setdefault(part.tensor, []).append(part)
        self._params = list(kept.values())
        self._counts = [len(parts[name]) for name in kept]
        self.units = [Unit(part, kept[name]) for name in kept for part in parts[name]]
        self._ids = {id(param): index for index, param in enumerate(self._params)}
        self._segments: Tensor | None = None

    @property
    def ids(self) -> frozenset[int]:
        """Ids of the parameters."""
        return frozenset(self._ids)

    def fits(self, named: Mapping[str, nn.Parameter]) -> bool:
        """Return whether these are the parameters it samples."""
        kept = [param for param in named.values() if _has_numbers(param)]
        return len(kept) == len(self._params) and all(
            one is other for one, other in zip(kept, self._params, strict=True)
        )

    def take(self) -> Tensor:
        """Return the numbers of all units, one after the other."""
        return self._join([p.detach() for p in self._params])

    def find_changed(self, new: Tensor, old: Tensor) -> Tensor:
        """Return 1 for each unit of which a number has changed, else 0."""
        return self._any_of(new != old)

    def find_nonzero(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
        """Return 1 for each unit that has a gradient of which a number is not 0, else 0.

        Args:
            params: that have a gradient.
            grads: of each, or the values of a sparse one, of which any may stand for all.
        """
        found: list[Tensor | None] = [None] * len(self._params)
        for param, grad in zip(params, grads, strict=True):
            index = self._ids.get(id(param))
            if index is None:
                continue
            if grad.shape == param.shape:
                found[index] = grad
            else:  # the rows of a sparse one
                found[index] = torch.ones_like(param) if grad.numel() else None
        zeros = [
            torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape) for p in self._params
        ]
        return self._any_of(
            self._join([f if f is not None else z for f, z in zip(found, zeros, strict=True)]) != 0
        )

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        pieces = [
            _thin(get_local(tensor), count)
            for tensor, count in zip(tensors, self._counts, strict=True)
        ]
        if self._segments is None:
            sizes = [
                len(piece) // count
                for piece, count in zip(pieces, self._counts, strict=True)
                for _ in range(count)
            ]
            counts = torch.tensor(sizes, dtype=torch.int64)  # a lazy model has none yet
            segments = torch.repeat_interleave(torch.arange(len(sizes)), counts)
            self._segments = segments.to(_pick_device(pieces))
        device = self._segments.device
        return torch.cat([piece.to(device) for piece in pieces]) if pieces else torch.zeros(0)

    def _any_of(self, flags: Tensor) -> Tensor:
        if self._segments is None or not self.units:
            return torch.zeros(0)
        counts = torch.zeros(len(self.units), device=flags.device)
        counts.index_add_(0, self._segments, flags.float())
        return (counts > 0).float()


def get_local(tensor: Tensor) -> Tensor:
    """Return the part of a distributed tensor that lies here, or the tensor itself."""
    take = getattr(tensor, "to_local", None)
    return take() if callable(take) else tensor


def _has_numbers(param: Tensor) -> bool:
    if not is_measurable(param) or param.layout is not torch.strided or not param.numel():
        return False
    is_wrapper: Callable[[object], bool] = is_traceable_wrapper_subclass
    if is_wrapper(param) and not hasattr(param, "to_local"):
        return False
    return param.is_floating_point() and param.dtype.itemsize > 1


def _thin(tensor: Tensor, count: int) -> Tensor:
    """Return the same few numbers of each of `count` equal parts, one after the other."""
    rows = tensor.reshape(count, -1)
    every = max(1, rows.shape[1] // SAMPLE)
    return rows[:, ::every][:, : 2 * SAMPLE].reshape(-1)


def _pick_device(pieces: Sequence[Tensor]) -> torch.device:
    """Return the device to compare on: an accelerator where there is one, nothing waits then."""
    devices = [piece.device for piece in pieces]
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
