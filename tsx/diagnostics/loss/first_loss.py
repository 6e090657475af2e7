"""The loss of the very first call against what a model that knows nothing should have.

A classifier that prefers nothing has the log of the number of classes, one with logits log 2, a
regression the loss of predicting 0. A first loss far above says that the head shouts, or that the
targets lie where a fresh head cannot reach. Models that start from trained weights are not judged.

Not covered: losses written by hand; losses below the expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.tracing.gains import measure_size
from tsx.diagnostics.tracing.graph import find_last_weights
from tsx.diagnostics.tracing.tape import OpSeen, Tape
from tsx.diagnostics.weights.freshness import looks_drawn, measure_draws

KIND = Kind(
    "loss-at-init",
    means="The first loss is far above that of a model that knows nothing.",
    story="A language model of a small vocabulary began far above the log of its size: the table "
    "of its embedding, of std 1, was also its head.",
    evidence="The first loss, what was expected and why, the size of predictions and targets.",
    fix="Draw the head smaller, or centre and scale the targets.",
)
# Logits of std s lose about s^2/2: a default head on normed features has 0.2, one of std 2 has 2.
MAX_EXCESS, MAX_EXCESS_SHARE = 2.0, 0.1  # nats above log C, and of log C beside
MAX_LOGIT = 8.0  # spread of a sigmoid's logits; what they all share may be a prior of classes
LOUD_HEAD = 2.0  # gain of its weight: torch's default has 0.6
LOUD_OUTPUT = 10.0  # of a regression: size, and times that of the targets
FAR_TARGET = 10.0  # mean of the targets: a step of 0.01 goes there in a thousand
FAR_SPREAD = 5.0  # times their spread
MAX_ELEMENTS = 1_000_000  # of predictions and targets that are measured
_REGRESSIONS: Mapping[str, Callable[..., Tensor]] = {
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
}
_LOGITS = "binary_cross_entropy_with_logits"


@dataclass(slots=True)
class _First:
    """One loss function of the first call; sizes are set once they are on the host."""

    name: str
    where: str
    head: Tensor | None  # weight of the last product
    module: str  # that it belongs to, or ran in
    num_classes: int = 0
    sizes: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)


class LossAtInit(Detector):
    """Judges the losses of the first call of a fresh model."""

    name = "first_loss"
    kinds = (KIND,)
    functions = frozenset({"cross_entropy", _LOGITS, *_REGRESSIONS})

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._is_on = False
        self._losses: list[_First] = []
        self._ends: dict[Any, str] = {}  # node of a module's output to its name

    def before_call(self, call: Call) -> None:
        """Only the very first call counts."""
        self._is_on = call.index == 1 and call.step == 1

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Note which node a layer's output has."""
        if not self._is_on or not isinstance(out, Tensor) or out.grad_fn is None:
            return
        if any(p.ndim >= 2 for p in module.parameters(recurse=False)):
            self._ends.setdefault(out.grad_fn, name)  # the innermost returns first

    def saw_function(self, seen: OpSeen) -> None:
        """Measure predictions, targets and loss."""
        given = dict(zip(("input", "target"), seen.args, strict=False)) | seen.kwargs
        output, target = given.get("input"), given.get("target")
        if not self._is_on or not isinstance(output, Tensor) or not isinstance(target, Tensor):
            return
        if not isinstance(seen.out, Tensor) or not output.is_floating_point():
            return
        weights, nodes = find_last_weights([output])
        module = next((name for node, name in self._ends.items() if node in nodes), "")
        if len({id(weight) for weight in weights}) != 1:
            weights = []  # of several heads nobody is the one
        elif not module:
            module = self.scene.names.get(id(weights[0]), "").rpartition(".")[0]
        first = _First(seen.name, seen.where, weights[0] if weights else None, module)
        reduction = str(given.get("reduction", "mean"))
        if seen.name == "cross_entropy":
            self._measure_classes(first, output, target, seen, reduction)
        else:
            self._measure_elements(first, output, target)
        if first.sizes:
            self._losses.append(first)

    def after_trace(self, tape: Tape) -> None:
        """Send what was measured to the host and judge it there."""
        losses, self._losses = self._losses, []
        self._ends.clear()
        self._is_on = False
        if not losses:
            return
        draws, step = measure_draws(self.scene.model), self.scene.step
        sizes = [size for first in losses for size in first.sizes.values()]
        packed = torch.stack([size.detach().to(sizes[0]) for size in sizes])

        def take(values: Any) -> None:
            rest = iter(values)
            for first in losses:
                first.values = {name: float(next(rest)) for name in first.sizes}
                first.sizes.clear()
            for first in losses:
                self._judge(first, step)

        def take_draws(measured: Any) -> None:
            if draws is None or looks_drawn(measured):
                self.scene.voice.read_late(packed, take)

        if draws is None:
            take_draws([])
        else:
            self.scene.voice.read_late(draws, take_draws)

    def _measure_classes(
        self, first: _First, output: Tensor, target: Tensor, seen: OpSeen, reduction: str
    ) -> None:
        axis = 1 if output.ndim > 1 else 0
        first.num_classes = output.shape[axis]
        if seen.kwargs.get("weight") is not None and reduction == "sum":
            return
        total = seen.out.detach().float().sum()
        if reduction == "mean":
            counted = torch.ones_like(total)
        elif target.is_floating_point():
            counted = target.sum().float()
        else:
            counted = (target != seen.kwargs.get("ignore_index", -100)).sum().float()
        part = _take(output).float()
        spread = part.std(1 if output.ndim > 1 else 0, correction=0).mean()
        first.sizes = {"loss": total / counted, "std_of_logits": spread}
        self._measure_head(first)

    def _measure_elements(self, first: _First, output: Tensor, target: Tensor) -> None:
        """Measure a loss per element against that of predicting nothing and of the mean."""
        if target.numel() == 0 or output.numel() == 0:
            return
        answers, wanted = _take(output).float(), _take(target).float()
        first.sizes = {
            "size_of_output": measure_size(answers),
            "mean_of_output": answers.mean(),
            "size_of_target": measure_size(wanted),
            "mean_of_target": wanted.mean(),
            "std_of_target": wanted.std(correction=0),
        }
        loss = _REGRESSIONS.get(first.name)
        if loss is not None:
            first.sizes["loss_of_zero"] = loss(torch.zeros_like(wanted), wanted)
            if answers.shape == wanted.shape:
                first.sizes["loss"] = loss(answers, wanted)
        self._measure_head(first)

    def _measure_head(self, first: _First) -> None:
        """Measure the gain that the head's weight has for inputs of any kind."""
        if first.head is not None:
            fan_in = first.head[0].numel()
            part = first.head.detach()[: max(1, MAX_ELEMENTS // fan_in)]
            first.sizes["gain_of_head"] = measure_size(part) * math.sqrt(fan_in)

    def _judge(self, first: _First, step: int) -> None:
        values = first.values
        if first.head is None and first.name not in _REGRESSIONS:
            return  # scores of pairs, sharpened on purpose: nobody's head
        if first.num_classes:
            expected = math.log(first.num_classes)
            limit = expected + MAX_EXCESS + MAX_EXCESS_SHARE * expected
            if values["loss"] > limit:
                self._report_output(first, step, {"expected": expected, "of": "log of the classes"})
        elif first.name == _LOGITS:
            spread = values["size_of_output"] ** 2 - values["mean_of_output"] ** 2
            if spread > MAX_LOGIT**2:
                self._report_output(first, step, {"expected": math.log(2), "of": "log 2"})
        elif self._is_far(values):
            self._report_target(first, step)
        elif values["size_of_output"] > LOUD_OUTPUT * max(1.0, values["size_of_target"]):
            expected = values["loss_of_zero"]
            self._report_output(first, step, {"expected": expected, "of": "predicting 0"})

    def _is_far(self, values: Mapping[str, float]) -> bool:
        """Return whether the targets' mean is far away, and the predictions are not there."""
        mean = values["mean_of_target"]
        is_far = abs(mean) > max(FAR_TARGET, FAR_SPREAD * values["std_of_target"])
        return is_far and abs(values["mean_of_output"] - mean) > abs(mean) / 2

    def _report_output(self, first: _First, step: int, expected: Mapping[str, Any]) -> None:
        is_head = first.values.get("gain_of_head", 0.0) >= LOUD_HEAD
        cause = "the first loss is far above that of a model that knows nothing: "
        if is_head:
            mechanism, why = "head-too-large", "the weights of the head start too large"
            fix = "draw the head with a std of 1/sqrt(its inputs) or less; 0.02 for a tied table"
        else:
            mechanism, why = "features-too-large", "what reaches the head is too large"
            fix = "put a norm before the head, or scale the layers before it"
        self._report(first, step, mechanism, cause + why, fix, expected, is_head=is_head)

    def _report_target(self, first: _First, step: int) -> None:
        self._report(
            first,
            step,
            "target-not-centred",
            "the first loss of the regression is all distance: the targets lie far from 0, "
            "where a fresh output starts",
            "centre and scale the targets, or start the last bias at their mean",
            {"expected": first.values["loss_of_zero"], "of": "predicting 0"},
            is_head=False,
        )

    def _report(
        self,
        first: _First,
        step: int,
        mechanism: str,
        cause: str,
        fix: str,
        expected: Mapping[str, Any],
        *,
        is_head: bool,
    ) -> None:
        self.scene.report(
            KIND.name,
            mechanism,
            cause,
            fix,
            step=step,
            phase="forward",
            module=first.module if is_head else "",
            op=first.name,
            where=first.where,
            evidence={**expected, **first.values, "num_classes": first.num_classes},
        )


def _take(tensor: Tensor) -> Tensor:
    """Return the first rows of a tensor, as many as are measured."""
    part = tensor.detach()
    if part.numel() > MAX_ELEMENTS and part.ndim:
        part = part[: max(1, MAX_ELEMENTS * len(part) // part.numel())]
    return part
