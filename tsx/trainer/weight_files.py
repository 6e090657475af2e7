"""States of a model on the disk, opened for `tsx.diagnostics.weights.audit`.

A tsx checkpoint, the folder of a run (its newest whole one), a folder of official weights, or any
single safetensors file. Tensors are read one at a time, whatever their dtype. Pickled weights are
refused. A tsx checkpoint holds config and seed, so what it began as is drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsx.config import RunConfig, decode
from tsx.diagnostics.weights.audit import AdamFacts
from tsx.errors import ConfigError, TsxError
from tsx.model import official
from tsx.model.forecaster import build_forecaster
from tsx.model.weights import from_official, list_state_shapes
from tsx.trainer.checkpoint import (
    MODEL,
    OPTIMIZER,
    STATE,
    CheckpointDamagedError,
    CheckpointFolder,
    CheckpointState,
)
from tsx.trainer.export import LAST, pick_state

FLOATS = {"F64", "F32", "F16", "BF16"}
SUFFIX = ".safetensors"


class StoredWeights:
    """Tensors of safetensors files; see `tsx.diagnostics.weights.audit.Weights`.

    Args:
        files: to read; no name may be in two of them.
        label: what to call it.
        state: of a tsx checkpoint.
        optimizer: file of its optimizer.

    Raises:
        ConfigError: a file cannot be read, or holds no floating-point tensors.
    """

    def __init__(
        self,
        files: list[Path],
        label: str,
        *,
        state: CheckpointState | None = None,
        optimizer: Path | None = None,
    ) -> None:
        self.label = label
        self.step = None if state is None else state.step
        self.config = None if state is None else decode(state.config, place=label)
        self.versions = {} if state is None else state.versions
        self.adam = None if state is None or self.config is None else _read_adam(state, self.config)
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        self._moments: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            shapes |= self._index(path, self._files)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        if not shapes:
            raise ConfigError(f"{label} holds no tensor of floating-point numbers")
        if optimizer is not None:
            self._index(optimizer, self._moments)

    def get(self, name: str) -> Tensor:
        """Return a tensor, on the host."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def find_moment(self, slot: str, name: str) -> Tensor | None:
        """Return a tensor of the optimizer's state, None where there is none."""
        file = self._moments.get(f"{slot}.{name}")
        return None if file is None else file.get_tensor(f"{slot}.{name}")

    def close(self) -> None:
        """Let go of the files."""
        self._files, self._moments = {}, {}
        self._open.close()

    def _index(self, path: Path, into: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Open a file and note what is in it; return the shapes."""
        try:
            file = self._open.enter_context(safe_open(path, framework="pt"))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        shapes = {
            name: tuple(part.get_shape())
            for name, part in slices.items()
            if part.get_dtype() in FLOATS
        }
        if twice := shapes.keys() & into.keys():
            raise ConfigError(f"{path}: tensor {min(twice)} is also in another file of the folder")
        into |= dict.fromkeys(shapes, file)
        return shapes


class HeldWeights:
    """Tensors in memory; see `tsx.diagnostics.weights.audit.Weights`."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str, step: int | None = None) -> None:
        self.label = label
        self.step = step
        self.adam: AdamFacts | None = None
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }
        self._tensors = tensors

    def get(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._tensors[name]

    def find_moment(self, slot: str, name: str) -> Tensor | None:
        """Return None: there is no optimizer."""
        return None


def open_weights(path: Path, which: str = "") -> StoredWeights:
    """Open what lies at a path.

    Args:
        path: a checkpoint's folder, a run's, one of official weights, or a safetensors file.
        which: of a run's checkpoints: last, best or a step; "" where the path may be anything.

    Raises:
        ConfigError: nothing there that can be read, with what would be.
        TsxError: a checkpoint that is not whole.
    """
    if (path / STATE).is_file():
        return _open_checkpoint(CheckpointFolder(path.parent.parent), path)
    if which or (path / "checkpoints").is_dir():
        checkpoints = CheckpointFolder(path)
        state, _ = pick_state(checkpoints, which or LAST)
        return _open_checkpoint(checkpoints, checkpoints.get_path(state.step))
    if path.is_dir():
        return StoredWeights(official.list_weight_files(path), str(path))
    if path.suffix != SUFFIX:
        raise ConfigError(
            f"{path} is no {SUFFIX} file; pickled weights are not read",
            next_command="safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        )
    return StoredWeights([path], str(path))


def draw_initial(weights: StoredWeights) -> HeldWeights | None:
    """Return what a checkpoint's model was before its first step; None where nobody knows.

    Weights that a run started from are read again from where they lay.

    Raises:
        ConfigError: tensors that are not those of the checkpoint's config, or official weights
            that are gone.
    """
    config = weights.config
    if config is None:
        return None
    expected = list_state_shapes(config.model)
    if dict(weights.shapes) != expected:  # before anything of that size is allocated
        odd = sorted(set(weights.shapes.items()) ^ set(expected.items()))
        raise ConfigError(f"{weights.label}: tensor {odd[0][0]} is not that of its config")
    if config.train.init_from is not None:
        folder = Path(config.train.init_from)
        return as_ours(
            StoredWeights(
                sorted(set(official.find_files(folder, config.model).values())), str(folder)
            ),
            config,
        )
    model = build_forecaster(config.model, seed=config.train.seed, num_tokens=1)
    label = f"its initialisation (seed {config.train.seed})"
    return HeldWeights({name: p.detach() for name, p in model.named_parameters()}, label, 0)


def as_ours(weights: StoredWeights, config: RunConfig) -> HeldWeights:
    """Return official weights under our names, whole and in fp32.

    Raises:
        ConfigError: they are another model's.
    """
    if dict(weights.shapes) != official.list_tensor_shapes(config.model):
        raise ConfigError(
            f"{weights.label} holds another architecture than the checkpoint's config"
        )
    tensors = {name: weights.get(name) for name in weights.shapes}
    return HeldWeights(from_official(tensors, config.model), weights.label, weights.step)


def is_official(weights: StoredWeights) -> bool:
    """Return whether the tensors have the official names."""
    return "model.embed_layer.emb_layer.weight" in weights.shapes


def describe_draw(weights: StoredWeights) -> str:
    """Return a caution where another torch drew the initialisation; "" where it is the same."""
    drawn, now = weights.versions.get("torch", ""), str(torch.__version__)
    if not drawn or drawn == now:
        return ""
    return (
        f"torch {drawn} drew these weights and {now} draws them again: where the two differ in a "
        "last bit, what stood still looks moved"
    )


def _open_checkpoint(checkpoints: CheckpointFolder, path: Path) -> StoredWeights:
    """Open a checkpoint after checking that it is whole."""
    step = path.name.rpartition("-")[2]
    if not step.isascii() or not step.isdigit() or checkpoints.get_path(int(step)) != path:
        raise ConfigError(
            f"{path}: a checkpoint's folder is called step-00000050 and lies in checkpoints/"
        )
    try:
        state = checkpoints.read_state(int(step))
    except CheckpointDamagedError as error:
        raise TsxError(str(error)) from error
    label = f"step {state.step} of {checkpoints.path.parent.name}"
    return StoredWeights([path / MODEL], label, state=state, optimizer=path / OPTIMIZER)


def _read_adam(state: CheckpointState, config: RunConfig) -> AdamFacts:
    optim = config.optim
    return AdamFacts(
        lr=state.lr,
        peak_lr=optim.lr,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )
