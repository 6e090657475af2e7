"""What a detector is: what it is shown of a training loop, and how it speaks.

A detector is a class of its own family's file. It overrides the methods of `Detector` that it needs
and reports through its `Scene`; `tsx.diagnostics.roster` lists all of them. One that raises is told
of as a finding and asked no more: training goes on.

What is shown, in the order of a run:

1. `before_call`, `after_call`: each call of `run.compute` (one forward pass and loss, a micro-batch
   perhaps). Has to cost microseconds, unless `call.is_looked`.
2. `saw_function`, `saw_op`, `saw_module`, then `after_trace`: the operations of a call that is
   traced: the 1st, 2nd, 4th, 8th ... `after_trace` may run the model again, see `Trial`.
3. `begin_look`: the step that begins now is looked at, so gradient hooks may be set.
   `before_step`, `after_step`: around the optimizer's step, on steps that are looked at.
4. `end_step`: after each step of an optimizer. Has to cost microseconds.
5. `saw_loss`, `saw_values`: each loss as a number, each line that the loop logs.
6. `raised`: a call failed. `close`: the run has ended.

The first steps are shown whole. Then looks come as often as they cost next to nothing, and with
each a few steps; in between a detector is shown nothing but traced calls, lines and the end, unless
it `is_constant`: then it is shown every call, step and loss. `pause` says that nothing is shown
from here on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from registry.events import Event, Finding, Severity
from tsx.diagnostics.arguments import name_arguments

if TYPE_CHECKING:
    from tsx.config import RunConfig
    from tsx.diagnostics.reports import Reports
    from tsx.diagnostics.tracing.tape import OpSeen, Tape

Values = Mapping[str, Tensor | float]


class Kind(NamedTuple):
    """A kind of finding, as `docs/faults.md` tells of it; a sentence or two each."""

    name: str  # "frozen-param"
    means: str
    story: str  # how it was for a real user
    evidence: str  # what the finding holds
    fix: str


class Voice(Protocol):
    """What is spoken through."""

    held: dict[str, Tensor | float]  # values that ride on the next line of metrics

    @property
    def step(self) -> int:
        """The step that was logged last."""

    def emit(self, event: Event) -> None:
        """Record a finding."""

    def read_late(self, tensor: Tensor, take: Callable[[Any], None]) -> None:
        """Hand `tensor.tolist()` to `take`: at once from the host, later from a device."""

    def warn(
        self, kind: str, topic: str, cause: str, fix: str, *, error: BaseException | None = None
    ) -> None:
        """Tell of something once a topic."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What the user says of a loop.

    Attributes:
        causal: the model must not see the future of a sequence; None to judge by the targets.
        steps: of the optimizer, that the run is to have; None where nobody knows.
        intervals: key that is logged to the steps between two of its lines.
        fixed_batch: one batch is repeated on purpose.
    """

    causal: bool | None = None
    steps: int | None = None
    intervals: Mapping[str, int] = field(default_factory=dict)
    fixed_batch: bool = False


@dataclass(slots=True)
class Call:
    """One call of `run.compute`.

    Attributes:
        index: over the run, the first being 1.
        step: the one under way, the first being 1.
        fn, args, kwargs: what was called.
        is_training, is_grad: of model and autograd when the call began.
        is_looked: its step is looked at; a detector may take its time.
        entered_s, began_s, ended_s: before detectors were shown it, as it began to run, and as it
            had run, by `time.perf_counter`.
        result: what was returned; until `after_call` is over.
        loss: in the result: a tensor, perhaps on a device, perhaps with a graph; else None.
    """

    index: int
    step: int
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    is_training: bool = True
    is_grad: bool = True
    is_looked: bool = False
    entered_s: float = 0.0
    began_s: float = 0.0
    ended_s: float = 0.0
    result: Any = None
    loss: Any = None

    def name_tensors(self) -> dict[str, Tensor]:
        """Return the tensors it was given, by name; those of targets begin with "target "."""
        named = name_arguments(self.args, self.kwargs)
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(slots=True)
class Look:
    """One look: an optimizer about to step, or that has just stepped. Only what has a gradient."""

    model: nn.Module
    optimizer: Optimizer
    step: int  # the one under way, the first being 1
    names: list[str]
    params: list[Tensor]
    grads: list[Tensor]
    scale: Tensor | None  # what the gradients are still multiplied with
    prefix: str  # of the keys: "watch" or "watch/2" and so on for further optimizers
    loss: float | None = None  # where it was seen
    kept: dict[str, Any] = field(default_factory=dict)  # from before the step to after it


@dataclass(slots=True)
class Scene:
    """What is known of a loop, and where to report.

    Attributes:
        model: that trains, out of its wrappers.
        declared: by the user.
        voice: for values and tensors that are read later.
        reports: takes findings.
        config: of the run of a recipe; None in a loop of one's own.
        optimizers: that have stepped, in the order of their first steps.
        names: id of a parameter to its name.
        modules: id of a module to its name.
        trains: the call that was made last is of training: in train mode, with gradients.
    """

    model: nn.Module
    declared: Declared
    voice: Voice
    reports: Reports
    config: RunConfig | None = None
    optimizers: list[Optimizer] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    modules: dict[int, str] = field(default_factory=dict)
    trains: bool = True

    @property
    def step(self) -> int:
        """The step under way, the first being 1."""
        return self.voice.step + 1

    def report(
        self,
        kind: str,
        mechanism: str,
        cause: str,
        fix: str,
        *,
        severity: Severity = Severity.WARNING,
        step: int | None = None,
        phase: str = "",
        module: str = "",
        op: str = "",
        where: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        """Report a finding; equal ones are counted, and one that another explains is not told.

        Args:
            kind: as in `Kind.name`.
            mechanism: slug of the true cause.
            cause: one sentence: what is wrong, without a figure that differs from step to step.
            fix: one sentence: what to do.
            severity: info, warning or error.
            step: default the one under way.
            phase: data, forward, backward, optimizer, config or eval.
            module: name in `model.named_modules()`.
            op: operation.
            where: "file.py:12".
            evidence: the figures.
        """
        self.reports.add(
            Finding(
                time=time.time(),
                kind=kind,
                severity=severity,
                step=self.step if step is None else step,
                phase=phase,
                module=module,
                op=op,
                where=where,
                cause=cause,
                evidence={"mechanism": mechanism, **(evidence or {})},
                fix=fix,
            )
        )


class Detector:
    """Sees what it overrides; see the module's docstring.

    Attributes:
        name: of its family.
        kinds: of findings that it may report.
        functions: names of torch functions that `saw_function` is shown: "softmax",
            "scaled_dot_product_attention", "cross_entropy".
        ops: names of aten operations that `saw_op` is shown: "mm", "_softmax"; "*" for all.
        is_constant: it is shown every call, step and loss; each costs microseconds of every step.
        scene: of the loop.
    """

    name: str = ""
    kinds: tuple[Kind, ...] = ()
    functions: frozenset[str] = frozenset()
    ops: frozenset[str] = frozenset()
    is_constant: bool = False

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def before_call(self, call: Call) -> None:
        """A call begins."""

    def after_call(self, call: Call) -> None:
        """A call has returned; its loss may still be on a device."""

    def saw_function(self, seen: OpSeen) -> None:
        """One of `functions` has returned, in a traced call; autograd and autocast are ahead."""

    def saw_op(self, seen: OpSeen) -> None:
        """One of `ops` has returned, in a traced call; below autograd and autocast."""

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """A module of the watched model has returned, in a traced call."""

    def after_trace(self, tape: Tape) -> None:
        """A traced call is over; the model may be run again with `tape.trial()`."""

    def begin_look(self, step: int) -> None:
        """The step that begins now is looked at."""

    def before_step(self, look: Look) -> Values | None:
        """See gradients and parameters before the optimizer steps; values go to the next line."""

    def after_step(self, look: Look) -> Values | None:
        """See the parameters after the step."""

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """An optimizer has stepped, looked at or not."""

    def saw_loss(self, loss: float, step: int) -> None:
        """The loss of a call, as soon as it is on the host."""

    def saw_values(self, values: Mapping[str, Any], step: int) -> None:
        """A line that was logged, seen soon after."""

    def pause(self) -> None:
        """Nothing is shown from here to the next `begin_look`: let go of the loop."""

    def raised(self, call: Call, error: BaseException) -> None:
        """A call failed; what it raised goes on to the loop."""

    def close(self, *, is_whole: bool) -> None:
        """The run is over; `is_whole` says that it went as far as it should."""
