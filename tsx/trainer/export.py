"""A run's weights as official files: which of its checkpoints, and what was written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tsx.config import decode
from tsx.errors import ConfigError, TsxError
from tsx.model import official
from tsx.model.size import count_params
from tsx.model.weights import list_state_shapes, write_weights
from tsx.trainer.checkpoint import (
    MODEL,
    CheckpointDamagedError,
    CheckpointFolder,
    CheckpointState,
)

LAST, BEST = "last", "best"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        step: of the checkpoint.
        tensors: number of tensors.
        parameters: numbers in them.
        size_bytes: of both files.
        damaged: what ails newer checkpoints, which were passed over.
    """

    step: int
    tensors: int
    parameters: int
    size_bytes: int
    damaged: tuple[str, ...]


def export_weights(run_folder: Path, target: Path, *, which: str = LAST) -> Exported:
    """Write the weights of one of a run's checkpoints as official files.

    Args:
        run_folder: the run's folder.
        target: a new or empty folder.
        which: "last", "best" or a step.

    Raises:
        ConfigError: no such checkpoint, a model that the official class cannot hold, or a target
            that holds something.
        TsxError: no checkpoint is whole, or the disk does not take the files.
    """
    checkpoints = CheckpointFolder(run_folder)
    state, damaged = pick_state(checkpoints, which)
    config = decode(state.config, place=str(checkpoints.get_path(state.step)))
    try:
        tensors = checkpoints.read_tensors(state.step, MODEL, list_state_shapes(config.model))
    except CheckpointDamagedError as error:
        raise TsxError(str(error)) from error
    context = config.data.context_length
    write_weights(target, tensors, config.model, context_tokens=context)
    return Exported(
        step=state.step,
        tensors=official.count_tensors(config.model),
        parameters=count_params(config.model).total,
        size_bytes=sum(
            (target / name).stat().st_size for name in (official.CONFIG, official.WEIGHTS)
        ),
        damaged=damaged,
    )


def pick_state(
    checkpoints: CheckpointFolder, which: str
) -> tuple[CheckpointState, tuple[str, ...]]:
    """Return the state of the checkpoint that is meant, and what ails newer ones."""
    steps = checkpoints.list_steps()
    if which not in (LAST, BEST) and not re.fullmatch("[0-9]{1,18}", which):
        raise ConfigError(
            f"--checkpoint {which!r}: expected {LAST}, {BEST} or a step",
            next_command=f"--checkpoint {LAST}",
        )
    if not steps:
        raise TsxError(
            f"no checkpoint in {checkpoints.path}",
            next_command="tsx run RECIPE --set train.checkpoint_every=N",
        )
    if which not in (LAST, BEST):
        return _get_state(checkpoints, int(which)), ()
    damaged: list[str] = []
    for step in reversed(steps):
        try:
            state = checkpoints.read_state(step)
        except CheckpointDamagedError as error:
            damaged.append(str(error))
            continue
        if which == LAST:
            return state, tuple(damaged)
        if state.best is None:
            raise ConfigError(
                f"no checkpoint in {checkpoints.path} was evaluated, so none is the best",
                next_command=f"--checkpoint {LAST}",
            )
        return _get_state(checkpoints, state.best.step), tuple(damaged)
    raise TsxError(
        f"no whole checkpoint: {'; '.join(damaged)}", next_command=f"tsx show {_name(checkpoints)}"
    )


def _get_state(checkpoints: CheckpointFolder, step: int) -> CheckpointState:
    """Return the state of the checkpoint of a step.

    Raises:
        ConfigError: there is none; the message lists those there are.
        TsxError: it is not whole.
    """
    steps = checkpoints.list_steps()
    if step not in steps:
        listed = ", ".join(map(str, steps))
        raise ConfigError(
            f"no checkpoint of step {step} in {checkpoints.path}; there are: {listed}",
            next_command=f"--checkpoint {steps[-1]}",
        )
    try:
        return checkpoints.read_state(step)
    except CheckpointDamagedError as error:
        raise TsxError(str(error), next_command=f"tsx show {_name(checkpoints)}") from error


def _name(checkpoints: CheckpointFolder) -> str:
    """Return the id of the run whose checkpoints these are."""
    return checkpoints.path.parent.name
