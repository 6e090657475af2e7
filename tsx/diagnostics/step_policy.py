"""What becomes of a step that is not finite: it halts the training, is left out, or is taken.

Judges what is on the host before the optimizer steps; a step on gradients that a GradScaler still
holds scaled is the scaler's to leave out.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from registry.events import Finding
from tsx.config import OnNonFinite
from tsx.errors import Diverged


class StepPolicy:
    """The policy of one watched model.

    Args:
        wanted: what is to become of a step.

    Attributes:
        finding: what was said last of a step that is not finite.
        skipped: steps that were left out.
    """

    def __init__(self, wanted: OnNonFinite) -> None:
        self.wanted = wanted
        self.finding: Finding | None = None
        self.skipped = 0
        self._is_bad_loss = False
        self._is_suspect = False

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
        self._is_suspect = self._is_suspect or is_bad

    def is_barred(self, optimizer: Optimizer, *, is_seen: bool) -> bool:
        """Return whether a step must not be taken.

        Args:
            optimizer: about to step.
            is_seen: its gradients seem not to be finite.
        """
        if not self.is_active or getattr(optimizer, "grad_scale", None) is not None:
            return False
        if self._is_bad_loss:
            return True
        return (is_seen or self._is_suspect) and has_bad_gradients(optimizer)

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
        self._is_bad_loss = self._is_suspect = False


def has_bad_gradients(optimizer: Optimizer) -> bool:
    """Return whether a gradient that an optimizer is about to use is not finite."""
    return any(
        not _is_finite(param.grad) for group in optimizer.param_groups for param in group["params"]
    )


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
