"""Going on from a checkpoint: which one, whether this run may, and putting its state back.

What decides the weights' meaning and the order of the data must be as it was: the architecture,
the data, the seed, the batches. Anything else (steps, intervals, evaluation, the optimizer's
settings, device, precision) may change; what did is said in a finding. Where data lies on the disk
is no difference while its fingerprint is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tsx import config as configs
from tsx.config import RunConfig
from tsx.errors import ConfigError
from tsx.trainer.checkpoint import (
    MODEL,
    OPTIMIZER,
    CheckpointDamagedError,
    CheckpointFolder,
    CheckpointState,
)

FIXED_SECTIONS = ("model", "data")
FIXED_KEYS = (
    "train.seed",
    "train.batch_size",
    "train.grad_accum_steps",
    "train.fixed_batches",
    "train.init_from",
)
WHERE_KEYS = ("data.path", "data.source", "data.ood_path")  # the fingerprint speaks for these


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A whole checkpoint that this run may go on from, and what was wrong with newer ones."""

    state: CheckpointState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    damaged: tuple[str, ...]


def load_resume_point(
    checkpoints: CheckpointFolder,
    check: Callable[[CheckpointState], None],
    *,
    model_shapes: Mapping[str, tuple[int, ...]],
    optimizer_shapes: Mapping[str, tuple[int, ...]],
) -> ResumePoint:
    """Return the newest whole checkpoint; a damaged one falls back to the one before it.

    Args:
        checkpoints: of the run.
        check: raises ConfigError where the run may not go on from a state.
        model_shapes: name to shape of the model's tensors.
        optimizer_shapes: name to shape of the optimizer's tensors.

    Raises:
        ConfigError: `check` refused, or there is no whole checkpoint; the message says whether
            there were any and what ails them.
    """
    damaged: list[str] = []
    for step in reversed(checkpoints.list_steps()):
        try:
            state = checkpoints.read_state(step)
            check(state)
            model = checkpoints.read_tensors(step, MODEL, model_shapes)
            optimizer = checkpoints.read_tensors(step, OPTIMIZER, optimizer_shapes, or_none=True)
        except CheckpointDamagedError as error:
            damaged.append(str(error))
        else:
            return ResumePoint(state, model, optimizer, tuple(damaged))
    if damaged:
        raise ConfigError(f"no whole checkpoint to resume from: {'; '.join(damaged)}")
    raise ConfigError(
        f"no checkpoint to resume from in {checkpoints.path}",
        next_command="tsx run RECIPE --set train.checkpoint_every=N",
    )


def check_resumable(
    state: CheckpointState, config: RunConfig, *, data_source: str, data_fingerprint: str
) -> None:
    """Refuse to go on with another architecture, data, seed or batches.

    Raises:
        ConfigError: one line per difference, "key: old -> new".
    """
    differences = [
        f"{key}: {old!r} -> {new!r}"
        for key, old, new in iter_changes(state, config)
        if _is_fixed(key) and not (key in WHERE_KEYS and data_fingerprint == state.data_fingerprint)
    ]
    if data_fingerprint != state.data_fingerprint:
        differences.append(
            f"data: {state.data_source} ({state.data_fingerprint}) -> "
            f"{data_source} ({data_fingerprint})"
        )
    if differences:
        raise ConfigError(
            f"cannot resume from step {state.step} with another run's settings: "
            f"{'; '.join(differences)}",
            next_command="tsx run RECIPE  (a new run), or resume without these changes",
        )
    if config.train.steps < state.step:
        raise ConfigError(
            f"[train] steps={config.train.steps}: the run is already at step {state.step}",
            next_command=f"tsx resume RUN --set train.steps={2 * state.step}",
        )


def list_allowed_changes(state: CheckpointState, config: RunConfig) -> dict[str, list[Any]]:
    """Return key to [old, new] of what differs from the checkpoint's config and may."""
    changes = iter_changes(state, config)
    return {key: [old, new] for key, old, new in changes if not _is_fixed(key) or key in WHERE_KEYS}


def iter_changes(state: CheckpointState, config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old, new) of every key whose value differs; a missing one is None."""
    old, new = _flatten(_fill_defaults(state.config)), _flatten(configs.to_plain(config))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _is_fixed(key: str) -> bool:
    return key.partition(".")[0] in FIXED_SECTIONS or key in FIXED_KEYS


def _fill_defaults(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded config with the keys that were added since, at their defaults."""
    try:
        return configs.to_plain(configs.decode(plain, place="checkpoint"))
    except ConfigError:  # from another tsx: compare what is written there
        return plain


def _flatten(plain: dict[str, Any]) -> dict[str, Any]:
    """Return sections as "section.key" to value; tuples as the lists that JSON makes of them."""
    return {
        f"{section}.{key}": list(value) if isinstance(value, tuple) else value
        for section, keys in plain.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
