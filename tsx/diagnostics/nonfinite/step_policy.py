"""What becomes of a step that is not finite: it halts the training, is left out, or is taken.

Judges what is on the host before the optimizer steps; a step on gradients that a GradScaler still
holds scaled is the scaler's to leave out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
from torch import Tensor
from torch.optim import Optimizer

from registry.events import Finding
from tsx.config import OnNonFinite
from tsx.diagnostics.detector import Voice
from tsx.diagnostics.reports import Reports
from tsx.errors import Diverged

KINDS = ("nan-origin", "non-finite")


class StepPolicy:
    """The policy of one watched model.

    Args:
        wanted: what is to become of a step.
        voice: gets the count of steps left out.
        tell: gets each new finding after it was noted.

    Attributes:
        finding: what was said last of a step that is not finite.
        skipped: steps that were left out.
        is_suspect: a loss of the step under way was not finite.
    """

    def __init__(
        self, wanted: OnNonFinite, voice: Voice, tell: Callable[[Finding], None] | None = None
    ) -> None:
        self.wanted = wanted
        self._voice = voice
        self._tell = tell
        self.finding: Finding | None = None
        self.skipped = 0
        self._is_bad_loss = False
        self.is_suspect = False

    @property
    def is_halting(self) -> bool:
        """Whether training ends with a step that is not finite."""
        return self.wanted is OnNonFinite.HALT

    @property
    def is_active(self) -> bool:
        """Whether a step is ever kept from being taken."""
        return self.wanted is not OnNonFinite.CONTINUE

    def saw_loss(self, *, is_bad: bool) -> None:
        """Take note of a loss of the step under way."""
        self._is_bad_loss = is_bad
        self.is_suspect = self.is_suspect or is_bad

    def note(self, finding: Finding) -> None:
        """Take note of what was found, and pass it on to be said."""
        if finding.kind in KINDS:
            self.finding = finding
        if self._tell is not None:
            self._tell(finding)

    def apply(self, optimizer: Optimizer, reports: Reports, *, is_seen: bool) -> None:
        """Halt before a step, leave it out, or let it be taken; failing to tell lets it be.

        Args:
            optimizer: about to step.
            reports: of what was found.
            is_seen: its gradients seem not to be finite.

        Raises:
            Diverged: the policy is to halt; parameters are as they were.
        """
        try:
            if not self.is_barred(optimizer, is_seen=is_seen):
                return
            reports.flush()
            if not self.is_halting:
                self._leave_out(optimizer, reports)
        except Exception as error:
            cause = f"the policy for steps that are not finite failed: {type(error).__name__}"
            self.wanted = OnNonFinite.CONTINUE
            fix = "train on without it"
            self._voice.warn("detector-failed", "on_nonfinite", cause, fix, error=error)
        if self.is_halting:
            self.end_step()
            raise self.make_error(self._voice.step + 1, "gradients")

    def _leave_out(self, optimizer: Optimizer, reports: Reports) -> None:
        """Keep an optimizer from moving anything, and count it."""
        step, found = self._voice.step + 1, self.finding
        drop_gradients(optimizer)
        self.skipped += 1
        self._voice.held["watch/skipped_steps"] = float(self.skipped)
        if found is not None and found.step != step:  # this one was not told of by itself
            reports.add(msgspec.structs.replace(found, step=step, count=1))

    def is_barred(self, optimizer: Optimizer, *, is_seen: bool) -> bool:
        """Return whether a step must not be taken.

        Args:
            optimizer: about to step.
            is_seen: its gradients seem not to be finite.
        """
        if not (is_seen or self.is_suspect):  # nearly always
            return False
        if not self.is_active or getattr(optimizer, "grad_scale", None) is not None:
            return False
        if self._is_bad_loss:
            return True
        return has_bad_gradients(optimizer)

    def make_error(self, step: int, what: str) -> Diverged:
        """Return what ends the training."""
        found = self.finding
        place = ", ".join(part for part in (found.module, found.where) if part) if found else ""
        is_news = found is not None and (found.kind != "non-finite" or found.phase != "forward")
        why = f"; {found.cause}" if found is not None and is_news else ""
        error = Diverged(
            f"not finite at step {step}: {what}{why}{f' ({place})' if why and place else ''}"
        )
        error.add_note('to train on: run.watch(..., on_nonfinite="skip") or "continue"')
        return error

    def end_step(self) -> None:
        """The optimizer has stepped, or was kept from it."""
        self._is_bad_loss = self.is_suspect = False


def has_bad_gradients(optimizer: Optimizer) -> bool:
    """Return whether a gradient that an optimizer is about to use is not finite."""
    return any(
        not _is_finite(param.grad) for group in optimizer.param_groups for param in group["params"]
    )


def is_bad_number(value: Tensor | float | None) -> bool:
    """Return whether a number on the host is not finite; one on a device is not waited for."""
    if isinstance(value, Tensor):
        return value.device.type == "cpu" and not bool(value.isfinite())
    return value is not None and not math.isfinite(value)


def drop_gradients(optimizer: Optimizer) -> None:
    """Leave no gradient: no parameter moves, and no moment of the optimizer."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None


def _is_finite(grad: Tensor | None) -> bool:
    if grad is None:
        return True
    values = grad.coalesce().values() if grad.is_sparse else grad
    return bool(values.isfinite().all())
