"""One optimizer step: batches, gradients, a look at whether they are finite, the update.

The host waits for the device at most once a step, for loss and gradient norm together; with
`on_nonfinite = continue` on an accelerator only on the steps that are logged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from registry.events import Finding, Severity
from tsx.config import OnNonFinite
from tsx.data.windows import Batch
from tsx.diagnostics.nonfinite.bad_step import describe, is_finite_step
from tsx.diagnostics.nonfinite.origin import KIND, describe_origin
from tsx.diagnostics.nonfinite.trials import Explained
from tsx.diagnostics.tracing.replay import Moment
from tsx.trainer import optim
from tsx.trainer.dumping import dump_step
from tsx.trainer.objective import StepLoss, accumulate_gradients, read_router_metrics
from tsx.trainer.schedule import get_lr
from tsx.trainer.session import Session
from tsx.trainer.step_origin import find_step_origin
from tsx.trainer.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step came to.

    Attributes:
        step: its number, the first being 1.
        lr: learning rate it was taken with.
        loss: values on the device.
        scalars: pred, aux and gradient norm before clipping, read to the host; None where that
            was not worth waiting for.
        finding: of a step that is not finite.
        halted: the policy is to stop here; the weights are those before the step.
    """

    step: int
    lr: float
    loss: StepLoss
    scalars: tuple[float, float, float] | None
    finding: Finding | None = None
    halted: bool = False


class NonFiniteWatch:
    """Emits what is known of non-finite steps, without flooding the journal.

    The first, second, fourth, eighth ... is emitted, with the count of those since the last.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._seen = 0
        self._held: Finding | None = None
        self._unsaid = 0

    def see(self, finding: Finding) -> None:
        """Count one non-finite step, and emit it if it is its turn."""
        self._seen += 1
        self._unsaid += 1
        self._held = finding
        if self._seen & (self._seen - 1) == 0:
            self.flush()

    def flush(self) -> None:
        """Emit what was counted and not said yet."""
        if self._held is not None and self._unsaid:
            self._telemetry.emit(msgspec.structs.replace(self._held, count=self._unsaid))
            self._unsaid = 0


def take_step(session: Session) -> StepReport:
    """Take the next optimizer step, unless its loss or gradient is not finite and policy forbids.

    A skipped update counts as a step: the schedule and the data go on.
    """
    config, progress, model = session.config, session.progress, session.model
    step, policy = progress.step + 1, config.diagnostics.on_nonfinite
    lr = get_lr(config, step)
    optim.set_lr(session.optimizer, lr)
    session.optimizer.zero_grad(set_to_none=True)
    batches = _read_batches(session)
    moment = session.rewinder.take()
    loss = accumulate_gradients(
        model, batches, session.precision, session.device, compute=session.diagnosis.compute
    )
    norm = optim.measure_grad_norm(model.parameters())
    scalars = None
    if _is_worth_reading(session, step):
        scalars = _read(loss, norm)
        session.diagnosis.saw_loss(_get_loss(session, scalars), step)
    finding = None if scalars is None else _inspect(session, batches, moment, scalars)
    if finding is not None and policy is OnNonFinite.HALT:
        return StepReport(step, lr, loss, scalars, finding, halted=True)
    if finding is not None and policy is OnNonFinite.SKIP:
        progress.skipped_steps += 1
    else:
        optim.clip_gradients(model.parameters(), config.optim.max_grad_norm, norm)
        session.optimizer.step()
    progress.step = step
    _count_work(session, batches)
    return StepReport(step, lr, loss, scalars, finding)


def inspect_step(session: Session, batches: list[Batch]) -> Finding | None:
    """Return what is not finite in a step on these batches, which is not taken."""
    moment = session.rewinder.take()
    loss = accumulate_gradients(
        session.model,
        batches,
        session.precision,
        session.device,
        compute=session.diagnosis.compute,
    )
    scalars = _read(loss, optim.measure_grad_norm(session.model.parameters()))
    step = session.progress.step + 1
    session.diagnosis.saw_loss(_get_loss(session, scalars), step)
    finding = _inspect(session, batches, moment, scalars, is_kept=False)
    session.optimizer.zero_grad(set_to_none=True)
    return finding


def get_step_metrics(session: Session, report: StepReport) -> dict[str, float]:
    """Return `train/...` and `router/...` of one step: its own values, not an interval's mean."""
    assert report.scalars is not None
    pred, aux, norm = report.scalars
    values = {
        "train/loss": _get_loss(session, report.scalars),
        "train/pred": pred,
        "train/aux": aux,
        "train/lr": report.lr,
        "train/grad_norm": norm,
    }
    if session.progress.skipped_steps:
        values["train/skipped_steps"] = float(session.progress.skipped_steps)
    return values | read_router_metrics(report.loss)


def _read_batches(session: Session) -> list[Batch]:
    """Return the micro-batches of one step."""
    with session.timer.waiting_for_data():
        count = session.config.train.grad_accum_steps
        return [session.stream.next_batch() for _ in range(count)]


def _is_worth_reading(session: Session, step: int) -> bool:
    """Return whether to wait for the step's loss and norm."""
    config = session.config
    if session.device.type == "cpu" or step % config.train.log_every == 0:
        return True
    return config.diagnostics.on_nonfinite is not OnNonFinite.CONTINUE


def _read(loss: StepLoss, norm: Tensor) -> tuple[float, float, float]:
    """Return pred, aux and gradient norm as numbers, in one transfer."""
    pred, aux, total = torch.stack([loss.pred, loss.aux, norm]).tolist()
    return pred, aux, total


def _get_loss(session: Session, scalars: tuple[float, float, float]) -> float:
    """Return the loss of a step from pred, aux and gradient norm."""
    return scalars[0] + session.config.model.aux_loss_weight * scalars[1]


def _inspect(
    session: Session,
    batches: list[Batch],
    moment: Moment,
    scalars: tuple[float, float, float],
    *,
    is_kept: bool = True,
) -> Finding | None:
    """Return the finding of a step that is not finite, before its gradients are touched.

    Args:
        session: with the step's gradients.
        batches: of the step.
        moment: right before it.
        scalars: pred, aux and gradient norm.
        is_kept: for `tsx replay`.
    """
    loss, norm = _get_loss(session, scalars), scalars[2]
    if is_finite_step(loss, norm):
        return None
    halts = session.config.diagnostics.on_nonfinite is OnNonFinite.HALT
    described = describe(
        session.model,
        loss=loss,
        grad_norm=norm,
        inputs=[array for batch in batches for array in (batch.input_BC, batch.target_BC)],
        step=session.progress.step + 1,
        time=session.telemetry.now(),
        severity=Severity.ERROR if halts else Severity.WARNING,
    )
    found = None
    if halts or not session.dumps.is_spent:  # where training goes on, the first alone: it is slow
        found = _find_origin(session, batches, moment, is_gradient=math.isfinite(loss))
    if found is not None:
        described = describe_origin(
            found.origin,
            step=described.step,
            time=described.time,
            severity=described.severity,
            evidence={**found.evidence, **described.evidence},
        )
    path = dump_step(session, batches, moment, loss=loss, grad_norm=norm) if is_kept else ""
    if path:
        evidence = {**described.evidence, "dump": path}
        described = msgspec.structs.replace(described, evidence=evidence)
    return described


def _find_origin(
    session: Session, batches: list[Batch], moment: Moment, *, is_gradient: bool
) -> Explained | None:
    """Run a step again from its moment; return where its first bad value came from.

    None where it does not show again, and where looking fails: the step is described all the same.
    """
    stream = session.stream
    first = stream.position - len(batches)
    try:
        found = find_step_origin(
            session.model,
            batches,
            session.precision,
            session.device,
            rewinder=session.rewinder,
            moment=moment,
            seed=session.config.train.seed,
            is_gradient=is_gradient,
            get_before=lambda: stream.get_batch(first - 1) if first else None,
        )
        return None if found is None else _name_windows(session, first, found)
    except Exception as error:
        cause = f"the search for the origin failed: {type(error).__name__}: {error}"
        fix = "the step is described without it"
        session.telemetry.warn("detector-failed", cause, fix, {"detector": KIND})
    return None


def _name_windows(session: Session, first: int, found: Explained) -> Explained:
    """Add where the guilty samples were cut: data set, series, first point."""
    samples = found.evidence.get("samples") or found.origin.cause.evidence.get("samples")
    if not samples:
        return found
    numbers = session.stream.get_indices(first + found.index)[samples]
    origins = session.corpus.train.list_origins(numbers)
    named = [f"{o.dataset.name}: series {o.series} from point {o.start}" for o in origins]
    cause = found.origin.cause
    if len(named) == 1:
        cause = replace(cause, sentence=f"{cause.sentence}; it comes of one window, {named[0]}")
    origin = replace(found.origin, cause=cause)
    return replace(found, origin=origin, evidence={**found.evidence, "windows": named})


def _count_work(session: Session, batches: list[Batch]) -> None:
    """Tell the timer what one step went through."""
    points = sum(batch.input_BC.size for batch in batches)
    session.timer.end_step(
        tokens=points // session.config.model.patch_len,
        points=points,
        valid_points=sum(int(batch.input_mask_BC.sum()) for batch in batches),
    )
