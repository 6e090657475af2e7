"""What a model must not see: the future of its sequence, and the other samples of its batch.

Before the first step the model is run again without a gradient: as it is, with the late steps of
one sample changed, with one sample changed altogether. What moves and must not is a leak; two
further runs, operation by operation, name the first module and line that let it across.

Time is judged where the user declares the model causal, or says nothing and a target is the input
one step later; in eval mode and as it trains, without dropout. The batch is judged in eval mode
alone. A model that cannot be run again, or whose axes nobody can tell, is not judged; nor are runs
of several processes, whose models wait for each other.

Shapes: B batch, T time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from registry.events import Severity
from tsx.diagnostics.arguments import is_plain, iter_tensors
from tsx.diagnostics.detector import Call, Detector, Kind, Look, Scene, Values
from tsx.diagnostics.masks.layout import find_layout
from tsx.diagnostics.masks.leak_trial import Leak, Trial
from tsx.diagnostics.masks.probes import Autocast, Probe, Unprobed, is_distributed
from tsx.diagnostics.tracing.tape import OpSeen, Tape

MAX_TARGETS = 4

FUTURE = Kind(
    "future-leak",
    means="An output at one step depends on inputs of later steps: a model that is to predict them "
    "has read them.",
    story="The loss of a language model falls to nearly 0 and what it writes is nonsense; a "
    "forecaster beats every baseline until it is deployed.",
    evidence="The step that was changed, how far earlier outputs moved, and the first operation "
    "that let it across.",
    fix="Mask, pad or normalise with the past alone at the place that is named; "
    "`run.watch(..., causal=False)` declares a model that may look ahead.",
)
BATCH = Kind(
    "batch-leak",
    means="In eval mode an output of one sample depends on the other samples of its batch.",
    story="A GRU that expects time first is given the batch there, does worse than a mean, and "
    "every shape is right; a prediction changes with the batch it is in.",
    evidence="How far the other samples moved when one was changed, and the first operation that "
    "let it across.",
    fix="Set batch_first, transpose instead of view, use running statistics in eval mode, or give "
    "each sample its own capacity.",
)
_TEXTS = {
    "no-causal-mask": (
        "outputs depend on later steps: no causal mask is in force",
        "hide later steps: is_causal=True, or a mask of the past before the softmax",
    ),
    "off-by-one-mask": (
        "the causal mask lets each step see the next one, which is what it is to predict",
        "use the diagonal 0 of tril, not 1",
    ),
    "mask-value-too-small": (
        "the number that stands for masked is within reach of the scores",
        "mask with -inf, or with the lowest number of the dtype",
    ),
    "multiplied-mask": (
        "the mask is multiplied into the scores: a score of 0 is no mask",
        "fill masked scores with -inf before the softmax",
    ),
    "bidirectional": (
        "a bidirectional layer reads the sequence from its end",
        "set bidirectional=False",
    ),
    "symmetric-padding": (
        "a convolution over time is padded on the right too",
        "pad on the left only, by (kernel - 1) * dilation",
    ),
    "scaling-leak": (
        "each step is scaled by statistics of the whole window, later steps included",
        "use statistics of the past, or of the series before the window",
    ),
    "block-summary": (
        "a summary of a block of steps reaches steps before the block's end",
        "hand a block's summary to the next block",
    ),
    "circular-convolution": (
        "a convolution by Fourier transform is circular: the window's end comes round to its start",
        "pad the transform to twice the length and cut it",
    ),
    "roll-wraps": (
        "roll brings the window's end to its start",
        "shift by padding with zeros and cutting",
    ),
    "capacity-leak": (
        "which tokens are served depends on tokens that must not be known",
        "let each token choose, within a capacity that only earlier tokens of its sample use up",
    ),
    "wrong-axis": (
        "the layer runs along the wrong axis",
        "move time to where the layer expects it: batch_first=True, or a transpose",
    ),
    "inverted-mask": (
        "the mask hides what may be seen and shows what may not",
        "negate the mask",
    ),
    "batch-statistics": (
        "statistics of the batch are used in eval mode",
        "keep running statistics and use them in eval mode",
    ),
    "mixes-time": ("outputs depend on later steps", "use only the past at this line"),
    "mixes-samples": (
        "outputs of a sample depend on other samples, in eval mode too",
        "keep samples apart at this line",
    ),
}


class _First(NamedTuple):
    """What a model is probed with."""

    tape: Tape
    targets: list[Tensor]
    given: list[Tensor]


class Leaks(Detector):
    """Probes a model once, before its first step.

    It waits for the backward pass: what the call keeps for it is memory that probes would want too.
    """

    name = "leaks"
    kinds = (FUTURE, BATCH)
    functions = frozenset(
        {
            *("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
            *("binary_cross_entropy", "binary_cross_entropy_with_logits", "gaussian_nll_loss"),
        }
    )

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._is_done = False
        self._call: Call | None = None
        self._targets: list[Tensor] = []
        self._autocast: Autocast | None = None
        self._pending: _First | None = None

    def before_call(self, call: Call) -> None:
        """Keep what the first call is given; a step that did not come is not waited for."""
        self._probe()
        if not self._is_done:
            self._call = call

    def before_step(self, look: Look) -> Values | None:
        """The backward pass is over."""
        self._probe()
        return None

    def close(self, *, is_whole: bool) -> None:
        """The run is over."""
        self._probe()

    def after_call(self, call: Call) -> None:
        """Let go of it."""
        self._call = None

    def raised(self, call: Call, error: BaseException) -> None:
        """Let go of all of it."""
        self._call, self._targets, self._pending = None, [], None

    def saw_function(self, seen: OpSeen) -> None:
        """Keep the target of a loss."""
        target = seen.args[1] if len(seen.args) > 1 else seen.kwargs.get("target")
        if isinstance(target, Tensor) and len(self._targets) < MAX_TARGETS:
            self._targets.append(target.detach())

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Note the autocast that the model ran under."""
        if not name:
            device = next((p.device.type for p in module.parameters()), "cpu")
            self._autocast = Autocast.find(device)

    def after_trace(self, tape: Tape) -> None:
        """Keep what it takes to probe the model, once."""
        call, self._call = self._call, None
        targets, self._targets = self._targets, []
        if self._is_done or not tape.root_calls or is_distributed():
            return
        self._is_done = True
        given = () if call is None else iter_tensors((call.args, dict(call.kwargs)))
        self._pending = _First(tape, targets, [tensor for tensor in given if is_plain(tensor)])

    def _probe(self) -> None:
        """Probe the model, if it waits for that."""
        first, self._pending = self._pending, None
        if first is None:
            return
        tape, targets, given = first
        try:
            probe = Probe(tape, tape.root_calls[0], self._autocast)
            declared = self.scene.declared.causal
            layout = find_layout(
                probe.leaves, [*targets, *given], tape.model, is_causal=declared is True
            )
            if layout is None:
                return
            is_causal = declared is True or (declared is None and layout.is_shifted)
            for leak in Trial(probe, layout, self.scene.modules).find_leaks(is_causal=is_causal):
                self._report(leak)
        except Unprobed:
            return

    def _report(self, leak: Leak) -> None:
        cause, fix = _TEXTS[leak.mechanism]
        op = leak.op
        # A window scaled by itself is a known look-ahead of forecasters, unless they say otherwise.
        is_silent = self.scene.declared.causal is None and self.scene.config is None
        is_known = leak.mechanism == "scaling-leak" and is_silent
        self.scene.report(
            leak.kind,
            leak.mechanism,
            cause,
            fix,
            severity=Severity.INFO if is_known else Severity.ERROR,
            phase="forward",
            module=op.module if op is not None else "",
            op=op.name if op is not None else "",
            where=op.where if op is not None else "",
            evidence=leak.evidence,
        )
