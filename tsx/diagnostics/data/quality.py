"""What is wrong with the batches themselves: values that mean "missing", windows that say nothing.

Batches are measured as often as that costs next to nothing, the first ones all. Values that look
odd are a fault only where they get to the model or the loss as they are: a loop may well mask them.

Shapes: B samples, T times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.arguments import is_mask
from tsx.diagnostics.data.batch_stats import (
    FLOAT_STATS,
    TOKEN_STATS,
    is_sentinel,
    measure_floats,
    measure_tokens,
    measure_wrapping,
)
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.tracing.loop_lines import Maker
from tsx.diagnostics.tracing.loss_calls import DISTANCES, read_loss
from tsx.diagnostics.tracing.tape import OpSeen

KIND = "data-quality"
PRODUCTS = frozenset(
    {"linear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "addmm", "bmm"}
    | {"gru", "lstm", "rnn_tanh", "rnn_relu", "gru_cell", "lstm_cell", "rnn_tanh_cell"}
)
FIRST = 4  # batches that are measured one after the other
MAX_SHARE = 0.002  # of the time, for those that follow
MAX_PRODUCTS = 16  # of a traced call that are looked at for a suspicious value
HUGE = 1e4  # root mean square of what a layer is given: weights of order 1 / sqrt(n) keep it
MIN_SENTINELS = 3
MIN_SENTINEL_SHARE = 1e-3
SENTINEL_TIMES = 5.0  # larger than all else
MIN_EMPTY = 0.5  # of the windows of a batch
MIN_WINDOWS = 4
# mechanism -> cause, fix
SAID = {
    "constant": (
        "half of the windows of a batch or more are one value from end to end",
        "leave out windows that do not move: a sensor may be stuck",
    ),
    "all-padding": (
        "half of the windows of a batch or more are padding alone",
        "leave out windows without a token",
    ),
    "loss-on-padding": (
        "labels that are padding count in the loss: it is low because padding is easy",
        "give padding the label -100, or a mask of the targets that is False there",
    ),
    "huge-values": (
        "the input's root mean square is {rms:.3g}, and it is multiplied with weights as it is",
        "scale the input to about 1: subtract the mean, divide by the spread",
    ),
    "sentinel-value": (
        "a number that stands for missing readings is used as one",
        "replace it, and mask it in input and loss",
    ),
    "uint8-wraps": (
        "bytes were subtracted as bytes: what is below zero wraps around to the top",
        "cast to float before arithmetic: x.float() - 128",
    ),
    "nonfinite-replaced": (
        "targets that are missing (NaN) become numbers, and are trained on",
        "leave them out of the loss: mean over the targets that are finite",
    ),
}


class DataQuality(Detector):
    """Measures batches, and follows what is odd in them to the model and the loss."""

    name = KIND
    functions = PRODUCTS | DISTANCES
    kinds = (
        Kind(
            KIND,
            "A batch holds what no model should learn from: numbers that stand for missing "
            "readings, values of tens of thousands, windows that do not move or are padding "
            "alone, bytes that wrapped around, gaps that became zeros, padding as labels.",
            "The first loss was 1e7 and fell slowly: missing readings of a weather station are "
            "the number -9999. A loss was low from the start because two thirds of the labels "
            "were padding, and padding is easy.",
            "Which argument, the value, the share of readings, windows or labels.",
            "Mask what is missing in input and loss; scale inputs to about 1; leave out windows "
            "that say nothing; do arithmetic on bytes after a cast.",
        ),
    )

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._began = time.perf_counter()
        self._spent_s = 0.0
        self._measured = 0
        self._suspects: dict[str, float] = {}  # "huge", or a sentinel by name of its argument
        self._has_moved: set[str] = set()  # arguments whose windows usually move
        self._products = 0
        self._maker = Maker()
        self._told: set[str] = set()

    def before_call(self, call: Call) -> None:
        """Measure a batch."""
        self._maker.begin_call(call)
        self._products = 0
        if not (call.is_looked and call.is_training and call.is_grad):
            return
        began = time.perf_counter()
        if self._measured < FIRST or self._spent_s < MAX_SHARE * (began - self._began):
            self._measured += 1
            with torch.no_grad():
                named = call.name_tensors()
                for name, tensor in named.items():
                    self._measure(name, tensor)
                self._measure_masks(list(named.items()))
            self._spent_s += time.perf_counter() - began

    def after_call(self, call: Call) -> None:
        """Look for the line that made the batch, if it is asked for."""
        self._maker.end_call()

    def saw_function(self, seen: OpSeen) -> None:
        """Follow odd values to where they count."""
        if not self._suspects:
            return
        if seen.name in PRODUCTS:
            self._judge_product(seen)
        elif (loss := read_loss(seen)) is not None and loss.is_reduced:
            self._confirm(loss.target.detach(), loss.module, is_loss=True)

    def close(self, *, is_whole: bool) -> None:
        """Let go of the loop."""
        self._maker.close()

    def _measure(self, name: str, tensor: Tensor) -> None:
        """Measure one argument."""
        if is_mask(name, tensor) or tensor.layout is not torch.strided or tensor.is_meta:
            return
        if tensor.is_nested or tensor.is_quantized or tensor.is_complex() or tensor.numel() < 2:
            return
        step, read = self.scene.step, self.scene.voice.read_late
        if tensor.is_floating_point():
            read(measure_floats(tensor), lambda v: self._judge_floats(name, tensor.shape, v, step))
            is_picture = tensor.device.type == "cpu" and name.startswith("batch ")
            is_new = "uint8-wraps" not in self._told and tensor.ndim == 4
            if is_picture and is_new and measure_wrapping(tensor):
                self._told.add("uint8-wraps")
                self._maker.ask("batch", lambda where: self._tell("uint8-wraps", step, {}, where))
        elif tensor.ndim == 2 and tensor.dtype in (torch.int64, torch.int32):
            is_input = name.startswith("batch ")
            if is_input:
                read(measure_tokens(tensor), lambda v: self._judge_tokens(name, v, step))

    def _judge_floats(
        self, name: str, shape: torch.Size, values: Sequence[float], step: int
    ) -> None:
        stats = dict(zip(FLOAT_STATS, values, strict=True))
        count = stats["count"]
        for value, number, rest in (
            (stats["most"], stats["num_most"], stats["rest_most"]),
            (stats["least"], stats["num_least"], stats["rest_least"]),
        ):
            is_often = number >= max(MIN_SENTINELS, MIN_SENTINEL_SHARE * count)
            if is_often and is_sentinel(value) and abs(value) > SENTINEL_TIMES * rest:
                self._suspects[name] = value
                return
        if not name.startswith("batch "):
            return
        if stats["rms"] >= HUGE:
            self._suspects["huge"] = stats["rms"]
        self._judge_windows(name, shape, stats, step)

    def _judge_windows(
        self, name: str, shape: torch.Size, stats: dict[str, float], step: int
    ) -> None:
        """Windows that do not move, among others that do."""
        if stats["windows"] < MIN_WINDOWS or stats["is_binary"]:
            return
        share = stats["constant"]
        if share < MIN_EMPTY:
            self._has_moved.add(name)
        elif share < 1 or name in self._has_moved:
            self._tell("constant", step, {"share": share, "argument": name, "shape": list(shape)})

    def _judge_tokens(self, name: str, values: Sequence[float], step: int) -> None:
        """Windows of one token, the same in all of them, among others of many."""
        stats = dict(zip(TOKEN_STATS, values, strict=True))
        if stats["windows"] < MIN_WINDOWS or stats["is_binary"] or not stats["is_one_value"]:
            return
        if MIN_EMPTY <= stats["constant"] < 1:
            evidence = {"share": stats["constant"], "argument": name, "token": int(stats["value"])}
            self._tell("all-padding", step, evidence)

    def _measure_masks(self, named: list[tuple[str, Tensor]]) -> None:
        """The masks of inputs and targets, one after each, have to say the same of padding."""
        for (_, x), (_, seen), (name, y), (_, counts) in zip(
            named, named[1:], named[2:], named[3:], strict=False
        ):
            is_pattern = seen.dtype is counts.dtype is torch.bool and name.startswith("target ")
            if not (is_pattern and x.shape == seen.shape == y.shape == counts.shape):
                continue
            hidden = ~seen
            is_padding = (hidden & (x == 0)).sum() == hidden.sum()
            values = [(hidden & counts).sum().float(), hidden.sum().float(), is_padding.float()]
            judge = partial(self._judge_masks, self.scene.step)
            self.scene.voice.read_late(torch.stack(values), judge)

    def _judge_masks(self, step: int, values: Sequence[float]) -> None:
        counted, hidden, is_padding = values
        if is_padding and hidden and counted >= MIN_EMPTY * hidden:
            counts = {"padding": int(hidden), "counted": int(counted)}
            self._tell("loss-on-padding", step, counts)

    def _judge_product(self, seen: OpSeen) -> None:
        """See whether an odd value is multiplied with weights as it is."""
        if self._products >= MAX_PRODUCTS or not seen.args:
            return
        self._products += 1
        operand = seen.args[0]
        if not isinstance(operand, Tensor) or not operand.is_floating_point():
            return
        if id(operand) in self.scene.names or operand.numel() == 0:
            return
        self._confirm(operand.detach(), seen.module)

    def _confirm(self, operand: Tensor, module: str, *, is_loss: bool = False) -> None:
        """Report the suspects that are in what a layer, or the loss, is given."""
        step = self.scene.step
        for name, value in list(self._suspects.items()):
            if name != "huge":
                found = (operand == value).any()
            elif is_loss:
                continue
            else:
                found = operand.float().square().mean().sqrt() >= HUGE

            def take(is_there: bool, name: str = name, value: float = value) -> None:
                if is_there and self._suspects.pop(name, None) is not None:
                    if name == "huge":
                        self._tell("huge-values", step, {"rms": value, "reaches": module})
                    else:
                        evidence = {"value": value, "argument": name, "reaches": module}
                        self._tell("sentinel-value", step, evidence)

            self.scene.voice.read_late(found, take)

    def _tell(self, mechanism: str, step: int, evidence: dict[str, Any], where: str = "") -> None:
        self._told.add(mechanism)
        cause, fix = SAID[mechanism]
        self.scene.report(
            KIND,
            mechanism,
            cause.format_map(evidence),
            fix,
            step=step,
            phase="data",
            where=where,
            evidence=evidence,
        )
