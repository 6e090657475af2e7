"""How far one step of an optimizer moves the parameters, against their size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsx.diagnostics.detector import Detector, Kind, Look, Scene, Values

SAMPLE = 4_000_000  # elements that are kept from before a step to after it
_HALF = {torch.float16, torch.bfloat16}

WILD = 3.0  # of its own size in one step; a healthy step is about 0.001, a hot one 0.1
FEW = 16  # numbers of a bias below which it may stand near 0 by chance, and pass through it
SMALL = 0.1  # of 1 / sqrt(fan-in): what starts below that is soon many times its size
HOT = 5.0  # times the rate of the slowest group
SPREAD = 100  # steps in which one runaway weight takes others along
MAX_NAMED = 64

KIND = Kind(
    "update-ratio",
    "One step moves a parameter by several times its own size; parameters that start at 0, or at "
    "one and the same number, are left out.",
    "Short convolutions changed by 300 to 400 percent while norms stood still.",
    "The largest ratio, the rate of the parameter's group and of the others, the size that it "
    "started from.",
    "Lower the rate of that group, or start the parameter at the scale of its fan-in.",
)


class UpdateRatio(Detector):
    """||dw|| / ||w|| of one step, over the parameters that were not all zero at the start."""

    name = "update_ratio"
    kinds = (KIND,)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        params = [p for p in scene.model.parameters() if is_measurable(p) and _is_number(p)]
        norms = measure_norms([p.detach() for p in params]).tolist() if params else []
        self._zero = {id(p) for p, norm in zip(params, norms, strict=True) if norm == 0}
        self._constant = _find_constant(params)
        self._start = {id(p): norm for p, norm in zip(params, norms, strict=True)}
        self._said: set[str] = set()
        self._told_at = 0  # step of the last finding
        self._rates: dict[
            tuple[int, int], float
        ] = {}  # by group of the optimizer, at its last look

    def before_step(self, look: Look) -> Values | None:
        """Keep what the parameters are."""
        if self._sees_jump(look.optimizer):
            self._told_at = look.step  # the schedule's matter: the loss tells of it
        found = [(n, p) for n, p in zip(look.names, look.params, strict=True) if self._is_seen(p)]
        params = [param for _, param in found]
        every = max(1, math.ceil(sum(p.numel() for p in params) / SAMPLE))
        look.kept["every"], look.kept["params"] = every, params
        look.kept["names"] = [name for name, _ in found]
        look.kept["old"] = [part.clone() for part in _list_parts(params, every)]
        return {}

    def after_step(self, look: Look) -> Values | None:
        """Return how far they went."""
        old = look.kept["old"]
        if not old:
            return {}
        new = _list_parts(look.kept["params"], look.kept["every"])
        moved, sizes = measure_norms(torch._foreach_sub(new, old)), measure_norms(old)
        self.scene.voice.read_late(
            torch.stack([moved, sizes]),
            partial(self._judge, look.step, look.optimizer, look.kept["names"]),
        )
        return {"update_ratio": torch.linalg.vector_norm(moved) / torch.linalg.vector_norm(sizes)}

    def _sees_jump(self, optimizer: Optimizer) -> bool:
        """Return whether a rate is many times what it was at the last look."""
        jumps = False
        for number, group in enumerate(optimizer.param_groups):
            rate = group.get("lr")
            if isinstance(rate, int | float):
                key = id(optimizer), number
                jumps |= rate >= HOT * self._rates.get(key, rate or 1.0) > 0
                self._rates[key] = float(rate)
        return jumps

    def _is_seen(self, param: Tensor) -> bool:
        return id(param) not in self._zero

    def _is_judged(self, param: Tensor) -> bool:
        """Return whether it is known to have started at a size of its own."""
        is_few = param.ndim < 2 and param.numel() < FEW
        return id(param) in self._start and id(param) not in self._constant and not is_few

    def _judge(
        self,
        step: int,
        optimizer: Optimizer,
        names: list[str],
        rows: list[list[float]],
    ) -> None:
        """Report parameters that went too far."""
        moved, sizes = rows
        ratios = {
            name: distance / size
            for name, distance, size in zip(names, moved, sizes, strict=True)
            if size > 0 and math.isfinite(distance)
        }
        params = dict(self.scene.model.named_parameters())
        known = self._said | {n for n, p in params.items() if not self._is_judged(p)}
        wild = [name for name, ratio in ratios.items() if ratio >= WILD and name not in known]
        if wild and (not self._told_at or step >= 2 * self._told_at + SPREAD):
            self._told_at = step
            wild.sort(key=lambda name: -ratios[name])
            self._said.update(wild)
            self._report(step, optimizer, wild, ratios)

    def _report(
        self, step: int, optimizer: Optimizer, wild: list[str], ratios: dict[str, float]
    ) -> None:
        params = dict(self.scene.model.named_parameters())
        first = wild[0]
        rate, others = _find_rates(optimizer, params.get(first))
        size = self._find_start_size(params.get(first))
        if others and rate is not None and rate >= HOT * min(others):
            mechanism, why = "group-rate", "the rate of its group is far above the others'"
            fix = "lower the rate of this group"
        elif size is not None and size < SMALL:
            mechanism, why = "init-too-small", "it starts far below the scale of its fan-in"
            fix = "start it at 1 / sqrt(fan-in), or lower its rate"
        else:
            mechanism, why = "lr-too-large", "the learning rate is too large for it"
            fix = "lower the learning rate, or clip gradients"
        more = f" and {len(wild) - 1} more move" if len(wild) > 1 else " moves"
        evidence: dict[str, Any] = {
            "ratio": round(ratios[first], 3),
            "parameters": {name: round(ratios[name], 3) for name in wild[:MAX_NAMED]},
            "lr": rate,
            "lr_of_others": others,
            "start_of_fan_in": size,
        }
        self.scene.report(
            "update-ratio",
            mechanism,
            f"{first}{more} by several times the own size in one step: {why}",
            fix,
            step=step,
            phase="optimizer",
            module=first.rpartition(".")[0],
            evidence={key: value for key, value in evidence.items() if value not in (None, [])},
        )

    def _find_start_size(self, param: Tensor | None) -> float | None:
        """Return the root mean square at the start, in units of 1 / sqrt(fan-in); None of vectors.

        A kernel that is convolved channel by channel has its own few taps as fan-in.
        """
        if param is None or param.ndim < 2 or id(param) not in self._start:
            return None
        return float(
            self._start[id(param)] / math.sqrt(param.shape[0])
        )  # norm / sqrt(n) * sqrt(fan-in)


def measure_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of each tensor as one vector on the first one's device; in fp32 for halves.

    The sum of squares of 16-bit numbers would overflow.
    """
    wide = torch.float32 if any(t.dtype in _HALF for t in tensors) else None
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    norms = torch._foreach_norm(real, 2, dtype=wide)
    return torch.stack([norm.to(norms[0].device, norms[0].dtype) for norm in norms])


def is_measurable(param: Tensor) -> bool:
    """Return whether a parameter has values: not a lazy one, nor one on the meta device."""
    return not (torch.nn.parameter.is_lazy(param) or param.is_meta)


def _is_number(param: Tensor) -> bool:
    return param.is_floating_point() or param.is_complex()


def _find_constant(params: Sequence[Tensor]) -> set[int]:
    """Return ids of vectors that start as one and the same number: a scale, small on purpose."""
    vectors = [p.detach().reshape(-1) for p in params if p.ndim < 2 and p.numel()]
    if not vectors:
        return set()
    flags = [(vector == vector[0]).all() for vector in vectors]
    held = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    kept = [p for p in params if p.ndim < 2 and p.numel()]
    return {id(p) for p, is_constant in zip(kept, held, strict=True) if is_constant}


def _find_rates(optimizer: Optimizer, param: Tensor | None) -> tuple[float | None, list[float]]:
    """Return the rate of a parameter's group, and those of the other groups."""
    own: float | None = None
    others: list[float] = []
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if not isinstance(rate, int | float) or not rate:
            continue
        if any(other is param for other in group["params"]):
            own = float(rate)
        else:
            others.append(float(rate))
    return own, others[:16]


def _list_parts(params: Sequence[Tensor], every: int) -> list[Tensor]:
    """Return every n-th element of each parameter, as flat views where that can be."""
    return [p.detach().reshape(-1)[::every] for p in params]
