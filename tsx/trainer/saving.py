"""When a run's checkpoints are written, which is the best, and what goes when.

A disk that is full or failing costs the checkpoint and nothing else: training goes on, a finding
says what was not written, and the next interval tries again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from registry.events import Artifact
from tsx import config as configs
from tsx.trainer import optim, rng
from tsx.trainer.checkpoint import Best, CheckpointState, CheckpointUnwrittenError
from tsx.trainer.schedule import get_lr
from tsx.trainer.session import Session


class Saver:
    """Writes the checkpoints of one run; keeps the last and the best, two at most."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tried_step: int | None = None

    def save(self, score: Mapping[str, float]) -> None:
        """Write the checkpoint of the current step, once.

        Args:
            score: what validation gave at this very step; {} where it did not run.
        """
        session, progress = self._session, self._session.progress
        if progress.step in (progress.saved_step, self._tried_step):
            return
        self._tried_step = progress.step
        best = _pick_best(progress.best, progress.step, score.get("pred"))
        try:
            size = session.checkpoints.write(
                self._describe(best, score),
                session.model.state_dict(),
                optim.get_state(session.model, session.optimizer),
            )
        except CheckpointUnwrittenError as error:
            session.telemetry.warn(
                "checkpoint-unwritten",
                "a checkpoint could not be written; training goes on without it",
                "make room on the disk that holds the run's folder",
                {"error": str(error)},
            )
            return
        session.checkpoints.prune(_pick_kept(progress.step, best, progress.saved_step))
        progress.best, progress.saved_step = best, progress.step
        self._announce(size, best, score)

    def _describe(self, best: Best | None, score: Mapping[str, float]) -> CheckpointState:
        session, config, progress = self._session, self._session.config, self._session.progress
        val_pred = score.get("pred")
        return CheckpointState(
            step=progress.step,
            config=configs.to_plain(config),
            fingerprint=configs.fingerprint(config),
            data_source=session.corpus.source,
            data_fingerprint=session.corpus.fingerprint,
            stream=session.stream.state_dict(),
            rng=rng.capture(session.device),
            lr=get_lr(config, progress.step) if progress.step else 0.0,
            skipped_steps=progress.skipped_steps,
            val_pred=val_pred if _is_finite(val_pred) else None,
            best=best,
            versions={"torch": str(torch.__version__)},
        )

    def _announce(self, size: int, best: Best | None, score: Mapping[str, float]) -> None:
        session, step = self._session, self._session.progress.step
        metadata: dict[str, object] = {"best": best is not None and best.step == step}
        if "loss" in score and math.isfinite(score["loss"]):
            metadata |= {"val_loss": score["loss"], "val_pred": score["pred"]}
        session.telemetry.emit(
            Artifact(
                time=session.telemetry.now(),
                kind="checkpoint",
                path=session.checkpoints.get_relative_path(step),
                step=step,
                size_bytes=size,
                metadata=metadata,
            )
        )


def _pick_best(best: Best | None, step: int, val_pred: float | None) -> Best | None:
    """Return the better of the best so far and this step; a tie leaves the earlier one."""
    if val_pred is None or not math.isfinite(val_pred):
        return best
    if best is None or val_pred < best.val_pred:
        return Best(step, val_pred)
    return best


def _pick_kept(step: int, best: Best | None, previous: int | None) -> set[int]:
    """Return the steps to keep: the last and the best; where they are one, the one before too.

    A last checkpoint that the disk later damages then still has another to fall back to.
    """
    other = best.step if best is not None and best.step != step else previous
    return {step} if other is None else {step, other}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
