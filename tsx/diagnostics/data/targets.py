"""Which time of the input the targets are: the next one, or by mistake another.

A model that must not see the future is asked for the next point. Where the target is the point it
is given (lag 0) or one before (lag -1), it learns to copy; at lag 2 it learns to skip one. What
counts is the labels that the loss takes: a model may well shift what it is given by itself.

Not covered: targets that are no copy of the input, such as scaled ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from registry.events import Severity
from tsx.diagnostics.data.sequences import (
    Aligned,
    count_values,
    line_up,
    line_up_arguments,
    list_inputs,
    measure_lags,
)
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.tracing.loss_calls import DISTANCES, read_loss
from tsx.diagnostics.tracing.tape import OpSeen, Tape

KIND = "target-shift"
LAGS = (-2, -1, 0, 1, 2)
MIN_MATCH = 0.98  # of the labels at one lag: a few may be noise, or cut off
MAX_OTHER = 0.9  # at any other: what hardly moves or repeats itself has many lags
MIN_LABELS = 16
MIN_MOVING = 0.2  # of neighbours in the input that differ
NAMES = {-2: "lag-minus-two", -1: "lag-minus-one", 0: "lag-zero", 2: "lag-two"}
CAUSES = {
    -2: "the target is the point two before the one that the model is given",
    -1: "the target is the point before the one that the model is given: it is in the input",
    0: "the target is the very point that the model is given: it learns to copy",
    2: "the target is two points on: it is shifted twice, and the model learns to skip one",
}


class TargetShift(Detector):
    """Measures the lag between inputs and labels."""

    name = KIND
    functions = DISTANCES | {"cross_entropy", "nll_loss"}
    kinds = (
        Kind(
            KIND,
            "The targets are not the next point of the input but another one: the point itself, "
            "one before it, or one too far.",
            "A language model's output was degenerate. Depth and sequence length were suspected "
            "for days; the slice of the targets was wrong. A translator was perfect in training "
            "and mute in use: its decoder was given the word it was to write.",
            "The lag, and the share of labels that are the input at each lag.",
            "Make the target the input one point later: input series[:-1], target series[1:], "
            "shifted once, by the loader or by the loss.",
        ),
    )

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._call: Call | None = None  # under way
        self._model_args: tuple[Any, ...] = ()
        self._pairs: list[tuple[Aligned, str]] = []
        self._is_right = False  # a loss of this loop has lag 1
        self._is_told = False

    def before_call(self, call: Call) -> None:
        """Keep what the call is given while it is traced."""
        self._forget()
        if self.scene.declared.causal is not False and not self._is_told and call.is_training:
            self._call = call

    def after_call(self, call: Call) -> None:
        """Let go of it."""
        self._forget()

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Keep what the model is given."""
        if not name:
            self._model_args = args

    def saw_function(self, seen: OpSeen) -> None:
        """Put the labels of a loss beside the inputs."""
        loss = read_loss(seen)
        if loss is not None and self._call is not None:
            inputs = list_inputs(self._call.name_tensors(), loss.target, self._model_args)
            self._pairs += [(pair, loss.where) for pair in line_up(loss, inputs)]

    def after_trace(self, tape: Tape) -> None:
        """Judge the lag of each pair."""
        named = {} if self._call is None else self._call.name_tensors()
        pairs = self._pairs
        if not pairs and not _gives_targets(tape, named):
            pairs = [(pair, "") for pair in line_up_arguments(named)]
        if not pairs:
            return
        found = [measure_lags(pair, LAGS).flatten() for pair, _ in pairs]
        moving = [count_values(pair).reshape(1) for pair, _ in pairs]
        rows = torch.stack([torch.cat(both) for both in zip(found, moving, strict=True)])
        causal = [
            self._leans_back(tape, pair, share)
            for (pair, _), share in zip(pairs, found, strict=True)
        ]
        where = [where for _, where in pairs]
        floats = [pair.x.is_floating_point() for pair, _ in pairs]
        step = self.scene.step

        def take(values: Sequence[Sequence[float]]) -> None:
            self._judge(values, where, floats, causal, step)

        self.scene.voice.read_late(rows, take)

    def _forget(self) -> None:
        self._call, self._model_args, self._pairs = None, (), []

    def _judge(
        self,
        rows: Sequence[Sequence[float]],
        where: Sequence[str],
        floats: Sequence[bool],
        causal: Sequence[bool],
        step: int,
    ) -> None:
        """Report the lag of the first pair that is wrong, unless another loss is right."""
        lags = [_find_lag(row) for row in rows]
        self._is_right = self._is_right or 1 in lags
        if self._is_right or self._is_told:
            return
        for lag, row, line, is_float, is_causal in zip(
            lags, rows, where, floats, causal, strict=True
        ):
            if lag is None or not self._is_fault(lag, is_float=is_float, is_causal=is_causal):
                continue
            self._is_told = True
            shares = {str(each): row[2 * index] for index, each in enumerate(LAGS)}
            self.scene.report(
                KIND,
                NAMES[lag],
                CAUSES[lag],
                "make the target the input one point later, shifted once",
                severity=Severity.WARNING if lag > 0 else Severity.ERROR,
                step=step,
                phase="data",
                where=line if lag > 0 else "",
                evidence={"lag": lag, "match": shares},
            )
            return

    def _is_fault(self, lag: int, *, is_float: bool, is_causal: bool) -> bool:
        """Return whether a lag is wrong here.

        The past of the input is in the input, whatever the model. The point itself may be asked
        for by an autoencoder; two points on, by a forecast on purpose.
        """
        if lag < 0 or self.scene.declared.causal:
            return True
        return not is_float and (lag == 2 or is_causal)

    def _leans_back(self, tape: Tape, pair: Aligned, found: Tensor) -> bool:
        """Return whether outputs depend on the past of an input and not on its future.

        Asked before the first step only, of tokens that are their own labels.
        """
        if self.scene.declared.causal or tape.number > 1 or pair.x.is_floating_point():
            return False
        if pair.x.shape[1] < 3 or float(found[2 * LAGS.index(0)]) < MIN_MATCH:
            return False
        for call in tape.root_calls[:1]:
            x = next((value for value in call.args if _is_equal(value, pair.x)), None)
            if x is None:
                return False
            moved = _move(tape, call.args, call.kwargs, x)
            middle = x.shape[1] // 2
            return (
                moved is not None
                and len(moved) == x.shape[1]
                and not any(moved[:middle])
                and moved[middle]
                and any(moved[middle + 1 :])
            )
        return False


def _gives_targets(tape: Tape, named: Mapping[str, Tensor]) -> bool:
    """Return whether the model itself is given the targets: it may shift them."""
    targets = [tensor for name, tensor in named.items() if name.startswith("target ")]
    return any(
        value is target
        for call in tape.root_calls
        for value in (*call.args, *call.kwargs.values())
        for target in targets
    )


def _find_lag(row: Sequence[float]) -> int | None:
    """Return the one lag at which targets are the input; None where none or several are."""
    *values, moving = row
    shares, counts = values[::2], values[1::2]
    best = max(range(len(LAGS)), key=lambda index: shares[index])
    others = [share for index, share in enumerate(shares) if index != best]
    if shares[best] < MIN_MATCH or counts[best] < MIN_LABELS:
        return None
    return LAGS[best] if max(others) <= MAX_OTHER and moving >= MIN_MOVING else None


def _is_equal(value: Any, x: Tensor) -> bool:
    """Return whether a value is a certain input, or its first samples are."""
    if not isinstance(value, Tensor) or value.ndim != x.ndim or value.dtype != x.dtype:
        return False
    return value.data_ptr() == x.data_ptr() and value.shape[1:] == x.shape[1:]


@torch.no_grad()
def _move(tape: Tape, args: Any, kwargs: Any, x: Tensor) -> list[bool] | None:
    """Return at which times the first sample's output moves when its middle token changes."""
    middle = x.shape[1] // 2
    other = x.clone()
    other[0, middle] = x[0, middle - 1] if x[0, middle - 1] != x[0, middle] else x[0, 0]
    if torch.equal(other, x):
        return None
    with tape.trial():
        before = tape.model(*args, **kwargs)
    with tape.trial():
        after = tape.model(*(other if value is x else value for value in args), **kwargs)
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return None
    if before.ndim < 2 or before.shape[:2] != x.shape[:2] or after.shape != before.shape:
        return None
    found: list[bool] = (before[0] != after[0]).flatten(1).any(-1).tolist()
    return found
