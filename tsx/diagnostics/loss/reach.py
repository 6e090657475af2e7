"""Predictions and targets that cannot meet: other shapes, or values out of the output's range.

Not covered: losses written out by hand, apart from a difference that is broadcast.

Shapes: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsx.diagnostics.detector import Call, Detector, Scene
from tsx.diagnostics.loss.squashes import NAMES, SQUASHERS, Place, Squashes, tell_contract
from tsx.diagnostics.tracing.loop_lines import Maker
from tsx.diagnostics.tracing.loss_calls import DISTANCES, LossCall, read_loss
from tsx.diagnostics.tracing.provenance import find_source, get_name
from tsx.diagnostics.tracing.tape import OpSeen, Tape

BINARY = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
DIFFERENCES = frozenset({"sub", "rsub", "subtract"})
BARELY = 0.1  # of a range, out of which a target may be
MIN_OUT_OF_REACH = 0.05  # of all targets: a few outliers may well be out of reach
MIN_OUT_OF_RANGE = 1e-3  # of labels that have to be 0 .. 1: smoothing stays inside
MARGIN = 0.02  # of a range: what is just out of it is noise
MIN_SAMPLES = 3  # of a comparison that is broadcast
# Node that bounds an output -> least and largest value.
RANGES = {
    "Relu": (0.0, float("inf")),
    "Softplus": (0.0, float("inf")),
    "Exp": (0.0, float("inf")),
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}


class LossReach(Detector):
    """Compares shape and range of predictions and targets."""

    name = "reach"
    functions = DISTANCES | BINARY | SQUASHERS | DIFFERENCES

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._squashes = Squashes()
        self._call: Call | None = None  # under way
        self._maker = Maker()
        self._has_asked = False

    def before_call(self, call: Call) -> None:
        """Keep what the call is given while it is traced."""
        self._maker.begin_call(call)
        self._squashes.forget()
        self._call = call

    def after_call(self, call: Call) -> None:
        """Let go of it."""
        self._call = None
        self._maker.end_call()

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """After the model itself comes the loss."""
        if not name:
            self._squashes.is_inside = False

    def saw_function(self, seen: OpSeen) -> None:
        """Keep what bounds an output; judge a loss, or a difference."""
        if seen.name in SQUASHERS:
            self._squashes.see(seen)
        elif seen.name in DIFFERENCES:
            if not self._squashes.is_inside:
                self._judge_difference(seen.args[:2], Place(seen.module, seen.where))
        elif (loss := read_loss(seen)) is not None:
            if seen.name in DISTANCES:
                self._judge_shapes(loss.input, loss.target, Place(loss.module, loss.where))
                self._judge_reach(loss)
            else:
                self._judge_labels(loss)

    def after_trace(self, tape: Tape) -> None:
        """Let go of the graph."""
        self._squashes.forget()

    def close(self, *, is_whole: bool) -> None:
        """Let go of the loop."""
        self._maker.close()

    def _judge_difference(self, operands: Sequence[Any], place: Place) -> None:
        """A prediction [N, 1] less a target [N] is [N, N]."""
        if len(operands) < 2 or not all(isinstance(value, Tensor) for value in operands):
            return
        one, two = operands
        target = two if one.requires_grad else one
        if one.requires_grad != two.requires_grad and self._is_given(target):
            self._judge_shapes(one, two, place)

    def _judge_shapes(self, one: Tensor, two: Tensor, place: Place) -> None:
        shape = _broadcast(one, two)
        if shape is not None:
            tell_contract(
                self.scene,
                "broadcast",
                "prediction and target have other shapes, and each is held against all of the "
                "other",
                "squeeze the prediction, or unsqueeze the target: both shapes have to be the same",
                place,
                {"shapes": [list(one.shape), list(two.shape)], "compared": list(shape)},
            )

    def _list_given(self) -> list[Tensor]:
        """Return the tensors that the call was given."""
        return [] if self._call is None else list(self._call.name_tensors().values())

    def _is_given(self, tensor: Tensor) -> bool:
        """Return whether a tensor is one that the call was given, or a view of it."""
        if tensor.layout is not torch.strided or tensor.is_nested:
            return False
        start = tensor.untyped_storage().data_ptr()
        return any(
            start == given.untyped_storage().data_ptr()
            for given in self._list_given()
            if given.layout is torch.strided and given.numel() == tensor.numel()
        )

    def _judge_reach(self, loss: LossCall) -> None:
        """What bounds the output has to leave room for the targets."""
        node = find_source(loss.input)
        bounds = RANGES.get(get_name(node))
        if bounds is None or not loss.target.is_floating_point():
            return
        least, most = bounds
        target, name = loss.target.detach(), NAMES[get_name(node)]
        span = most - least
        slack = BARELY * span if math.isfinite(span) else MARGIN  # noise around an end is no matter
        out = ((target < least - slack) | (target > most + slack)).float().mean()
        place = self._squashes.find_place(node, loss)

        def take(share: float) -> None:
            if share >= MIN_OUT_OF_REACH:
                tell_contract(
                    self.scene,
                    "output-range",
                    f"{name} ends the model, and many of the targets are out of its range",
                    "end with a plain linear layer, or scale the targets into the range",
                    place,
                    {"share": share, "loss": loss.name},
                )

        self.scene.voice.read_late(out, take)

    def _judge_labels(self, loss: LossCall) -> None:
        """Labels of a binary cross-entropy are from 0 to 1."""
        target = loss.target.detach()
        out = ((target < -MARGIN) | (target > 1 + MARGIN)).float().mean()
        values = torch.stack([out, target.amin().float(), target.amax().float()])
        is_given = any(loss.target is given for given in self._list_given())
        name, module, line = loss.name, loss.module, loss.where

        def take(found: Sequence[float]) -> None:
            share, least, most = found
            if share < MIN_OUT_OF_RANGE:
                return
            evidence = {"share": share, "least": least, "most": most, "loss": name}

            def tell(where: str) -> None:
                tell_contract(
                    self.scene,
                    "target-range",
                    f"{name} takes labels from 0 to 1, and is given others",
                    "divide masks of 0 and 255 by 255, or compare them with a threshold",
                    Place(module, where or line),
                    evidence,
                )

            if not is_given:
                tell("")
            elif not self._has_asked:
                self._has_asked = True
                self._maker.ask("target", tell)

        self.scene.voice.read_late(values, take)


def _broadcast(one: Tensor, two: Tensor) -> tuple[int, ...] | None:
    """Return the shape of a comparison that has more entries than either side, else None."""
    size = one.numel()
    if one.shape == two.shape or size != two.numel() or size < MIN_SAMPLES:
        return None
    try:
        shape = torch.broadcast_shapes(one.shape, two.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    return tuple(shape) if shape.numel() > size else None
