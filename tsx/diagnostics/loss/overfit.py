"""A batch that is repeated on purpose: was it learned by heart, and why not.

Works where one batch is declared (`fixed_batch=True`, or `train.fixed_batches` of a recipe). At the
end of a run that did not learn it, three causes are looked for: samples that contradict each other,
a module that lets one direction through, and a learning rate that is too small. The last is tried:
a few steps from the same weights at larger rates, after which everything is as it was.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from registry.events import Severity
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.loss.memorise import (
    Verdict,
    count_directions,
    find_contradictions,
    is_bottleneck,
    judge,
    list_rungs,
    split_batch,
)
from tsx.diagnostics.tracing.replay import Rewinder, run_eagerly
from tsx.diagnostics.tracing.tape import OpSeen

KIND = Kind(
    "overfit",
    means="Whether the model learned by heart the one batch that it was given again and again; "
    "where it did not, why.",
    story="A language model would not overfit 3,000 tokens. Depth, sequence length and the head "
    "were changed over days; the learning rate was 1e-5.",
    evidence="First and last loss, samples that contradict each other, the module that lets one "
    "direction through, the loss that a larger rate reaches in a few steps, `ladder`: what to try "
    "next.",
    fix="Named for each cause; else go down the ladder: one layer, one short length, a larger "
    "rate.",
)
RATES = (10.0, 100.0, 1000.0)  # times the run's own
MAX_RATE = 0.03  # above, Adam breaks what it does not learn
TRIAL_STEPS = 30
TRIAL_S = 5.0  # for all rates together
MAX_PARAMETERS = 30_000_000  # that are held three times over while trying
FASTER = 3.0  # times the fall of the run itself, in a part of its steps
ENOUGH = 0.2  # of the loss that has to go at the larger rate
REDUCES = frozenset({"mean", "sum", "amax", "amin", "max", "min", "norm", "expand_as", "expand"})
MAX_LOSSES = 1_000_000


class Overfit(Detector):
    """Keeps losses and the last call; judges at the end."""

    name = "overfit"
    kinds = (KIND,)
    functions = REDUCES

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._is_on = self.is_constant = scene.declared.fixed_batch
        self._sums: list[tuple[float, int]] = []  # of each step: losses and how many
        self._step = 0
        self._call: Call | None = None
        self._narrow: tuple[str, str, str] | None = None  # module, line, class
        self._lines: dict[str, str] = {}  # module to the line of its last reduction

    def after_call(self, call: Call) -> None:
        """Keep the call, to take it again at the end."""
        if self._is_on and self.scene.trains:  # without what it returned, which holds a graph
            self._call = Call(call.index, call.step, call.fn, call.args, call.kwargs)

    def saw_loss(self, loss: float, step: int) -> None:
        """Keep a loss."""
        if not self._is_on or not self.scene.trains or len(self._sums) >= MAX_LOSSES:
            return
        if step != self._step or not self._sums:
            self._sums.append((0.0, 0))
            self._step = step
        total, count = self._sums[-1]
        self._sums[-1] = (total + loss, count + 1)

    def saw_function(self, seen: OpSeen) -> None:
        """Note the line that reduces in each module."""
        if self._is_on:
            self._lines[seen.module] = seen.where

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Look for the first module that lets one direction through."""
        if not self._is_on or self._narrow is not None or not name:
            return
        given = next((arg for arg in args if isinstance(arg, Tensor)), None)
        if not isinstance(out, Tensor) or given is None or min(out.ndim, given.ndim) < 2:
            return
        if not (out.is_floating_point() and given.is_floating_point()):
            return
        counts = count_directions(given), count_directions(out)
        if is_bottleneck(*counts, out.shape[-1]):
            self._narrow = (name, self._lines.get(name, ""), type(module).__name__)

    def close(self, *, is_whole: bool) -> None:
        """Say whether the batch was learned."""
        call, self._call = self._call, None
        losses = [total / count for total, count in self._sums]
        verdict = judge(losses) if self._is_on else None
        if verdict is None or call is None:
            return
        evidence = {
            "first_loss": verdict.first,
            "last_loss": verdict.last,
            "steps": len(losses),
        }
        if verdict.is_learned:
            figures = f"{verdict.first:.4g} to {verdict.last:.4g}"
            self._report(
                "memorised",
                f"the batch was learned by heart: the loss fell from {figures}",
                "",
                evidence,
                severity=Severity.INFO,
                step=verdict.step,
            )
        elif is_whole and not verdict.is_short:
            self._explain(verdict, call, losses, evidence)

    def _explain(
        self, verdict: Verdict, call: Call, losses: list[float], evidence: dict[str, Any]
    ) -> None:
        """Say why the batch was not learned."""
        lr = max((float(g["lr"]) for o in self.scene.optimizers for g in o.param_groups), default=0)
        evidence |= {"lr": lr, "ladder": list_rungs(self.scene.config, lr=lr)}
        pairs = find_contradictions(*split_batch(call.name_tensors()))
        if pairs:
            self._report(
                "labels-contradict",
                "the batch cannot be learned by heart: samples with equal inputs have other labels",
                "look at these samples: is something lost on the way into the model, or are "
                "inputs and labels in another order",
                {**evidence, "contradictions": len(pairs), "samples": pairs[:8]},
                phase="data",
            )
        elif self._narrow is not None:
            module, where, kind = self._narrow
            self._report(
                "bottleneck",
                f"the batch is not learned by heart: {kind} lets a single direction through",
                "give this module more than one number to pass on",
                evidence,
                module=module,
                where=where,
            )
        elif not self._blame_rate(call, losses, lr, evidence):
            self._say_unexplained(verdict, evidence)

    def _say_unexplained(self, verdict: Verdict, evidence: dict[str, Any]) -> None:
        """Name the next rungs, as a fault where the loss does not move any more."""
        end = "stands" if verdict.is_stuck else "is on its way down"
        ladder = "; ".join(evidence["ladder"])
        self._report(
            "unexplained" if verdict.is_stuck else "unfinished",
            f"the batch is not learned by heart yet, and the loss {end}",
            f"try, in this order: {ladder}" if verdict.is_stuck else "give it more steps",
            evidence,
            severity=Severity.WARNING if verdict.is_stuck else Severity.INFO,
        )

    def _blame_rate(
        self, call: Call, losses: list[float], lr: float, evidence: dict[str, Any]
    ) -> bool:
        """Try larger rates on the same batch; report the smallest that learns much faster."""
        size = sum(p.numel() for p in self.scene.model.parameters())
        if lr <= 0 or size > MAX_PARAMETERS:
            return False
        deadline = time.perf_counter() + TRIAL_S
        fall = max(1 - losses[-1] / losses[-1 - min(TRIAL_STEPS, len(losses) - 1)], 0.0)
        for factor in RATES:
            if factor * lr > MAX_RATE:
                break
            tried = _try_rate(self.scene.model, call, factor * lr, deadline)
            if len(tried) < 2:
                break
            gained = 1 - tried[-1] / tried[0]
            if gained >= ENOUGH and gained > FASTER * fall:
                self._report(
                    "lr-too-small",
                    "the batch is not learned by heart because the learning rate is too small: "
                    "from the same weights a larger one learns it many times faster",
                    f"try a learning rate of {factor * lr:.0e}",
                    {
                        **evidence,
                        "tried_lr": float(f"{factor * lr:.3g}"),
                        "tried_losses": [tried[0], tried[-1]],
                    },
                    phase="optimizer",
                )
                return True
        return False

    def _report(
        self,
        mechanism: str,
        cause: str,
        fix: str,
        evidence: dict[str, Any],
        *,
        severity: Severity = Severity.WARNING,
        step: int | None = None,
        phase: str = "",
        module: str = "",
        where: str = "",
    ) -> None:
        self.scene.report(
            KIND.name,
            mechanism,
            cause,
            fix,
            severity=severity,
            step=max(self.scene.step - 1, 1) if step is None else step,
            phase=phase,
            module=module,
            where=where,
            evidence=evidence,
        )


def _try_rate(model: nn.Module, call: Call, lr: float, deadline: float) -> list[float]:
    """Return the losses of some steps of Adam at a rate; the model is as it was afterwards.

    By hand: the steps of an optimizer of torch would be seen as the loop's own.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in params]
    first, second = ([torch.zeros_like(p, dtype=torch.float32) for p in params] for _ in "12")
    rewinder = Rewinder(model)
    losses: list[float] = []
    try:
        with rewinder.back_to(rewinder.take()), torch.enable_grad(), run_eagerly():
            for step in range(1, TRIAL_STEPS + 1):
                loss = _call_again(call)
                if loss is None or time.perf_counter() > deadline:
                    break
                losses.append(float(loss.detach()))
                grads = torch.autograd.grad(loss, params, allow_unused=True)
                if not math.isfinite(losses[-1]):
                    return []
                for p, m, v, grad in zip(params, first, second, grads, strict=True):
                    if grad is not None:
                        _step(p, m, v, grad.float(), lr, step)
    finally:
        with torch.no_grad():
            for p, old in zip(params, kept, strict=True):
                p.copy_(old)
    return losses


@torch.no_grad()
def _step(p: Tensor, m: Tensor, v: Tensor, grad: Tensor, lr: float, step: int) -> None:
    """Take one step of Adam, betas 0.9 and 0.95."""
    m.lerp_(grad, 0.1)
    v.lerp_(grad.square(), 0.05)
    change = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    p.copy_((p.float() - lr * change).to(p.dtype))


def _call_again(call: Call) -> Tensor | None:
    """Return the loss of the call, taken again."""
    result = call.fn(*call.args, **call.kwargs)
    if isinstance(result, tuple | list) and result:
        result = result[0]
    elif isinstance(result, dict):
        result = result.get("loss")
    is_loss = isinstance(result, Tensor) and result.numel() == 1 and result.requires_grad
    return result.reshape(()) if is_loss else None
