"""How far one step of an optimizer moves the parameters, against their size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tsx.diagnostics.detector import Detector, Look, Scene, Values

SAMPLE = 4_000_000  # elements that are kept from before a step to after it
_HALF = {torch.float16, torch.bfloat16}


class UpdateRatio(Detector):
    """||dw|| / ||w|| of one step, over the parameters that were not all zero at the start."""

    name = "update_ratio"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        params = [p for p in scene.model.parameters() if is_measurable(p)]
        norms = measure_norms([p.detach() for p in params]).tolist() if params else []
        self._zero = {id(p) for p, norm in zip(params, norms, strict=True) if norm == 0}

    def before_step(self, look: Look) -> Values | None:
        """Keep what the parameters are."""
        params = [p for p in look.params if id(p) not in self._zero]
        every = max(1, math.ceil(sum(p.numel() for p in params) / SAMPLE))
        look.kept["every"], look.kept["params"] = every, params
        look.kept["old"] = [part.clone() for part in _list_parts(params, every)]
        return {}

    def after_step(self, look: Look) -> Values | None:
        """Return how far they went."""
        old = look.kept["old"]
        if not old:
            return {}
        new = _list_parts(look.kept["params"], look.kept["every"])
        moved = torch.linalg.vector_norm(measure_norms(torch._foreach_sub(new, old)))
        return {"update_ratio": moved / torch.linalg.vector_norm(measure_norms(old))}


def measure_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of each tensor as one vector on the first one's device; in fp32 for halves.

    The sum of squares of 16-bit numbers would overflow.
    """
    wide = torch.float32 if any(t.dtype in _HALF for t in tensors) else None
    norms = torch._foreach_norm(list(tensors), 2, dtype=wide)
    return torch.stack([norm.to(norms[0].device, norms[0].dtype) for norm in norms])


def is_measurable(param: Tensor) -> bool:
    """Return whether a parameter has values: not a lazy one, nor one on the meta device."""
    return not (torch.nn.parameter.is_lazy(param) or param.is_meta)


def _list_parts(params: Sequence[Tensor], every: int) -> list[Tensor]:
    """Return every n-th element of each parameter, as flat views where that can be."""
    return [p.detach().reshape(-1)[::every] for p in params]
