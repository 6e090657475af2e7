"""The norm of all gradients, and a finding where one of them is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec
import torch

from registry.events import Finding, Severity
from tsx.diagnostics.detector import Detector, Look, Scene, Values
from tsx.diagnostics.loop.updates import measure_norms
from tsx.diagnostics.nonfinite.bad_step import MAX_NAMES, describe

# What helps in anybody's loop, by where the first bad value arose.
FIXES = {
    "config": "look at how this parameter is initialised",
    "optimizer": "go on from an earlier checkpoint with a lower learning rate or clipped gradients",
    "forward": "lower the learning rate, or look at the batch of this step",
    "backward": "clip gradients, lower the learning rate, or look for a division, log or sqrt at 0",
}


class GradNorm(Detector):
    """Total norm of the gradients, and a finding where one of them is not finite."""

    name = "grad_norm"

    def __init__(
        self,
        scene: Scene,
        is_explained: Callable[[], bool],
        explain: Callable[[int], Finding | None],
    ) -> None:
        """See a scene.

        Args:
            scene: of the loop.
            is_explained: the step under way needs no finding of its gradients.
            explain: returns where gradients of a step come from; None where nobody can tell.
        """
        super().__init__(scene)
        self._is_explained = is_explained
        self._explain = explain
        self._is_told = False

    def before_step(self, look: Look) -> Values | None:
        """Return the norm of all gradients as one vector."""
        norms = measure_norms(look.grads)
        total = torch.linalg.vector_norm(norms)
        if look.scale is not None:
            return {"grad_norm": total / look.scale.to(total.device)}
        names, step, at_hand = look.names, look.step, [look]
        # Values of a device arrive when these gradients are gone.
        self.scene.voice.read_late(norms, lambda got: self._check(step, names, got, *at_hand))
        at_hand.clear()
        return {"grad_norm": total}

    def _check(
        self, step: int, names: list[str], norms: list[float], look: Look | None = None
    ) -> None:
        """Tell of gradients that are not finite, once until they are finite again."""
        bad = [name for name, norm in zip(names, norms, strict=True) if not math.isfinite(norm)]
        if look is not None and bad:  # squares of large gradients overflow before they do
            held = dict(zip(look.names, look.grads, strict=True))
            bad = [name for name in bad if not held[name].isfinite().all()]
        if bad and not (self._is_told or self._is_explained()):
            self.scene.reports.add(self._find(step, bad, len(names), look))
        self._is_told = bool(bad)

    def _find(self, step: int, bad: list[str], total: int, look: Look | None) -> Finding:
        """Return the finding; the gradients themselves are at hand on the host only."""
        if look is not None:
            explained = self._explain(step)
            if explained is not None:
                return explained
            finding = describe(
                look.model,
                loss=look.loss,
                grad_norm=math.nan,
                inputs=(),
                step=step,
                time=time.time(),
            )
            return msgspec.structs.replace(finding, fix=FIXES.get(finding.phase, finding.fix))
        evidence = {"nonfinite_gradients": bad[-MAX_NAMES:][::-1]}
        return Finding(
            time=time.time(),
            kind="non-finite",
            severity=Severity.ERROR,
            step=step,
            phase="backward",
            module=bad[-1],  # backward runs from the loss to the input: its first
            cause="the norm of a gradient is not finite",
            evidence={**evidence, "num_nonfinite_gradients": len(bad), "num_gradients": total},
            fix=FIXES["backward"],
        )
