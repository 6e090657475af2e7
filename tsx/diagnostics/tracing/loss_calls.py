"""torch's loss functions as they are called: input, target and options by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.tracing.tape import OpSeen

KIND = "loss-contract"  # what is found wrong with them
_DISTANCE = ("input", "target", "size_average", "reduce", "reduction")
_CLASSES = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction")
_BINARY = ("input", "target", "weight", "size_average", "reduce", "reduction")
SIGNATURES: dict[str, tuple[str, ...]] = {
    "mse_loss": _DISTANCE,
    "l1_loss": _DISTANCE,
    "smooth_l1_loss": _DISTANCE,
    "huber_loss": ("input", "target", "reduction"),
    "cross_entropy": _CLASSES,
    "nll_loss": _CLASSES,
    "binary_cross_entropy": _BINARY,
    "binary_cross_entropy_with_logits": _BINARY,
    "kl_div": (*_DISTANCE, "log_target"),
}
DISTANCES = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
CLASSIFIES = frozenset({"cross_entropy", "nll_loss"})
IGNORED = -100  # torch's default


@dataclass(frozen=True, slots=True)
class LossCall:
    """One call of a loss function.

    Attributes:
        name: of the function.
        input, target: what it compares.
        options: the rest, as far as it was given.
        module: name of the innermost module under way.
        where: "file.py:12".
    """

    name: str
    input: Tensor
    target: Tensor
    options: Mapping[str, Any]
    module: str
    where: str

    @property
    def ignored(self) -> int:
        """The label that does not count."""
        given = self.options.get("ignore_index", IGNORED)
        return given if isinstance(given, int) else IGNORED

    @property
    def is_reduced(self) -> bool:
        """Whether all of it counts: nothing is left to be masked afterwards."""
        return self.options.get("reduction", "mean") != "none" and self.options.get("reduce") in (
            None,
            True,
        )

    @property
    def is_by_class(self) -> bool:
        """Whether targets are numbers of classes."""
        return self.name in CLASSIFIES and not self.target.is_floating_point()


def read_loss(seen: OpSeen) -> LossCall | None:
    """Return what a loss function was given; None for anything else."""
    names = SIGNATURES.get(seen.name)
    if names is None:
        return None
    given = dict(zip(names, seen.args, strict=False)) | seen.kwargs
    one, two = given.pop("input", None), given.pop("target", None)
    if not (_is_plain(one) and _is_plain(two)):
        return None
    return LossCall(seen.name, one, two, given, seen.module, seen.where)


def _is_plain(value: Any) -> bool:
    """Return whether a value is a dense tensor that holds something."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        return False
    return not (value.is_quantized or value.is_nested or value.is_complex()) and value.numel() > 0
