"""Losses that are given probabilities where they take logits, or what is no logarithm of them.

What a loss is given is judged twice: by the operation that made it and by its values. A softmax by
hand is one too; a gate whose values happen to lie between 0 and 1 is none.

Not covered: losses written out by hand.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.loss.squashes import NAMES, SQUASHERS, Place, Squashes, tell_contract
from tsx.diagnostics.tracing.loss_calls import KIND, LossCall, read_loss
from tsx.diagnostics.tracing.provenance import find_source, get_name, is_product
from tsx.diagnostics.tracing.tape import OpSeen, Tape

LOSSES = frozenset({"cross_entropy", "nll_loss", "kl_div", "binary_cross_entropy_with_logits"})
MAX_ROWS = 8  # along each axis, of what is read of a loss's input: logits may be gigabytes
SUM_TOLERANCE = 1e-2  # of probabilities in half precision
MARGIN = 0.02  # above 0, for a logarithm that is none


class LossContract(Detector):
    """Compares what a loss function takes with what it is given."""

    name = KIND
    functions = LOSSES | SQUASHERS
    kinds = (
        Kind(
            KIND,
            "The loss is given what it does not expect: probabilities where it takes logits, "
            "logits where it takes logarithms, [N, 1] against [N], targets that the output cannot "
            "reach, or labels that never count.",
            "Accuracy rose, but the loss never went below 0.74: a softmax stood before the "
            "cross-entropy. A tuned model never stopped: its end token shared an id with padding "
            "and was masked out of the labels.",
            "The loss function, the operation that made its input, and the share of labels or "
            "values that cannot be met.",
            "Give the loss the logits; let shapes be equal; scale targets into the output's "
            "range; leave every label that is to be learned unmasked.",
        ),
    )

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._squashes = Squashes()

    def before_call(self, call: Call) -> None:
        """Begin with the model."""
        self._squashes.forget()

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """After the model itself comes the loss."""
        if not name:
            self._squashes.is_inside = False

    def saw_function(self, seen: OpSeen) -> None:
        """Keep what bounds an output; judge a loss."""
        if seen.name in SQUASHERS:
            self._squashes.see(seen)
            return
        loss = read_loss(seen)
        if loss is None or not loss.input.is_floating_point():
            return
        if seen.name == "binary_cross_entropy_with_logits":
            self._judge_binary(loss)
        else:
            self._judge_rows(loss)

    def after_trace(self, tape: Tape) -> None:
        """Let go of the graph."""
        self._squashes.forget()

    def _judge_binary(self, loss: LossCall) -> None:
        """with-logits takes logits."""
        node = find_source(loss.input)
        name = get_name(node)
        if name in ("Sigmoid", "Softmax"):
            self._tell_squash(loss, node, f"{name.lower()}-before-logits", NAMES[name])

    def _judge_rows(self, loss: LossCall) -> None:
        """cross_entropy takes logits; nll_loss and kl_div logarithms of probabilities."""
        dim = loss.input.ndim - 1 if loss.name == "kl_div" else min(1, loss.input.ndim - 1)
        if dim < 0 or loss.input.shape[dim] < 2:
            return
        node = find_source(loss.input)
        if loss.name == "cross_entropy":
            if get_name(node) == "Sigmoid":
                self._tell_squash(loss, node, "sigmoid-before-cross-entropy", "a sigmoid")
            else:
                self._if_probabilities(
                    loss,
                    dim,
                    lambda: self._tell_squash(
                        loss, node, "softmax-before-cross-entropy", "probabilities"
                    ),
                )
            return
        short = loss.name.partition("_")[0]  # nll, kl
        self._if_probabilities(loss, dim, lambda: self._tell_log(loss, short, "probabilities"))
        if is_product(node):
            self._if_positive(loss.input, lambda: self._tell_log(loss, short, "logits"))

    def _if_probabilities(self, loss: LossCall, dim: int, tell: Callable[[], None]) -> None:
        """Call `tell` where rows are not negative and add up to 1."""
        rows = loss.input.detach().movedim(dim, -1)
        rows = rows[(slice(MAX_ROWS),) * (rows.ndim - 1)].float()
        is_one = ((rows.sum(-1) - 1).abs() < SUM_TOLERANCE).all() & (rows >= 0).all()
        self.scene.voice.read_late(is_one, lambda found: tell() if found else None)

    def _if_positive(self, tensor: Tensor, tell: Callable[[], None]) -> None:
        """Call `tell` where a value is above 0: it is no logarithm of a probability."""
        rows = tensor.detach()[(slice(MAX_ROWS),) * (tensor.ndim - 1)]
        self.scene.voice.read_late((rows > MARGIN).any(), lambda found: tell() if found else None)

    def _tell_log(self, loss: LossCall, short: str, given: str) -> None:
        tell_contract(
            self.scene,
            f"{short}-of-logits" if given == "logits" else f"{short}-without-log",
            f"{loss.name} takes logarithms of probabilities, and is given {given}",
            "give it log_softmax of the logits",
            Place(loss.module, loss.where),
            {"loss": loss.name},
        )

    def _tell_squash(self, loss: LossCall, node: Any, mechanism: str, what: str) -> None:
        tell_contract(
            self.scene,
            mechanism,
            f"{loss.name} takes logits, and is given {what}",
            "give it the output of the last linear layer: the loss does the rest",
            self._squashes.find_place(node, loss),
            {"loss": loss.name, "made_by": get_name(node)},
        )
