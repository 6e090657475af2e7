"""Checkpoints of a run: `checkpoints/step-00000050/{model,optimizer}.safetensors` and `state.json`.

A checkpoint appears whole or not at all: it is written into a temporary folder, each file and
the folder flushed to the disk, then renamed. Older ones go only after the new one is whole; the
last and the best stay. Nothing is pickled. Everything read back is checked: sizes and SHA-256 of
the files, names, shapes and dtypes of the tensors. What a checkpoint means for a run (may this
config go on from it?) is `tsx.trainer.resume`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tsx.errors import TsxError

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
MAX_STATE_BYTES = 16 * 2**20  # a state.json is a few KiB; more is not ours

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointDamagedError(Exception):
    """A checkpoint is not whole, or not what it says it is. The message names the path."""


class CheckpointUnwrittenError(Exception):
    """A checkpoint could not be written; nothing was changed."""


class FileMark(Struct, frozen=True):
    """What a file must be: its size and content."""

    size_bytes: int
    sha256: str


class Best(Struct, frozen=True):
    """The step of the lowest validation error so far, and that error."""

    step: int
    val_pred: float


class CheckpointState(Struct, frozen=True, kw_only=True):
    """`state.json`: everything but the tensors."""

    format: int = FORMAT
    step: int  # optimizer steps done
    config: dict[str, Any]  # whole, defaults filled in
    fingerprint: str  # of the config
    data_source: str
    data_fingerprint: str
    stream: dict[str, Any]  # position in the training data
    rng: dict[str, str]  # base64, by device
    lr: float  # of the last step; the schedule itself is a function of the step
    skipped_steps: int = 0
    val_pred: float | None = None  # of this checkpoint, where it was evaluated
    best: Best | None = None
    versions: dict[str, str] = {}
    files: dict[str, FileMark] = {}


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        run_folder: the run's folder; `checkpoints/` inside it is made on the first write.
    """

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / "checkpoints"
        self._run_folder = run_folder

    def list_steps(self) -> list[int]:
        """Return the steps of the checkpoints there are, oldest first, whole or not."""
        if not self.path.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def get_path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.path / f"step-{step:08d}"

    def get_relative_path(self, step: int) -> str:
        """Return the checkpoint's path from the run's folder, with forward slashes."""
        return self.get_path(step).relative_to(self._run_folder).as_posix()

    def write(
        self, state: CheckpointState, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
    ) -> int:
        """Write one checkpoint and return its size in bytes.

        Raises:
            CheckpointUnwrittenError: the disk is full, read-only or failing; what was begun is gone
                and older checkpoints stand.
        """
        final = self.get_path(state.step)
        draft = self.path / f".draft-{state.step:08d}"
        try:
            _remove_drafts(self.path)
            draft.mkdir(parents=True)
            marks = {
                MODEL: _write_tensors(draft / MODEL, model),
                OPTIMIZER: _write_tensors(draft / OPTIMIZER, optimizer),
            }
            text = msgspec.json.encode(msgspec.structs.replace(state, files=marks))
            text = msgspec.json.format(text)
            _write_bytes(draft / STATE, text)
            _flush_folder(draft)
            _publish(draft, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise CheckpointUnwrittenError(f"{final}: {error}") from error
        return sum(mark.size_bytes for mark in marks.values()) + len(text)

    def prune(self, keep: Iterable[int]) -> None:
        """Remove every checkpoint but those of the steps to keep; what resists stays."""
        kept = set(keep)
        for step in self.list_steps():
            if step not in kept:
                shutil.rmtree(self.get_path(step), ignore_errors=True)

    def read_state(self, step: int) -> CheckpointState:
        """Return a checkpoint's state after checking that its files are whole.

        Raises:
            CheckpointDamagedError: a file is missing, cut short, changed or not readable.
        """
        folder = self.get_path(step)
        state = _decode_state(folder / STATE)
        if state.format != FORMAT:
            raise CheckpointDamagedError(
                f"{folder / STATE}: format {state.format}; this tsx reads {FORMAT}"
            )
        if state.step != step:
            raise CheckpointDamagedError(f"{folder / STATE}: holds step {state.step}, not {step}")
        for name in (MODEL, OPTIMIZER):
            if name not in state.files:
                raise CheckpointDamagedError(f"{folder / STATE}: says nothing of {name}")
            _check_file(folder / name, state.files[name])
        return state

    def read_tensors(
        self,
        step: int,
        name: str,
        expected: Mapping[str, tuple[int, ...]],
        *,
        or_none: bool = False,
    ) -> dict[str, Tensor]:
        """Return the tensors of one file, on the host.

        Args:
            step: of the checkpoint.
            name: `MODEL` or `OPTIMIZER`.
            expected: name to shape of what must be there, and nothing else.
            or_none: an empty file is also right (an optimizer before its first step).

        Raises:
            CheckpointDamagedError: not safetensors, or other tensors than expected.
        """
        path = self.get_path(step) / name
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                if or_none and not names:
                    return {}
                _check_names(path, names, set(expected))
                for key, shape in expected.items():
                    found = file.get_slice(key)
                    if tuple(found.get_shape()) != shape or found.get_dtype() != "F32":
                        raise CheckpointDamagedError(
                            f"{path}: tensor {key} is {found.get_dtype()} "
                            f"{list(found.get_shape())}; expected F32 {list(shape)}"
                        )
                return {key: file.get_tensor(key) for key in expected}
        except (OSError, SafetensorError) as error:
            raise CheckpointDamagedError(f"{path}: {error}") from error


def check_writable(checkpoints: CheckpointFolder) -> None:
    """Find out before the first step whether checkpoints can be written.

    Raises:
        TsxError: they cannot.
    """
    probe = checkpoints.path / ".probe"
    try:
        checkpoints.path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise TsxError(
            f"checkpoints cannot be written to {checkpoints.path}: {error.strerror or error}",
            next_command="--set train.checkpoint_every=0, or move TSX_HOME",
        ) from error


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileMark:
    """Write tensors, wait for the disk, and return what the file must be from now on."""
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileMark(path.stat().st_size, digest)


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _publish(draft: Path, final: Path) -> None:
    """Give a whole draft its name; a checkpoint of that name (of a dead branch) makes way."""
    if final.exists():
        doomed = final.with_name(f".draft-old-{final.name}")
        final.rename(doomed)
        draft.rename(final)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        draft.rename(final)
    _flush_folder(final.parent)


def _flush_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_drafts(path: Path) -> None:
    """Remove what a process that was killed while writing left behind."""
    for left in path.glob(".draft-*"):
        shutil.rmtree(left, ignore_errors=True)


def _decode_state(path: Path) -> CheckpointState:
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise CheckpointDamagedError(f"{path}: larger than {MAX_STATE_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=CheckpointState)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointDamagedError(f"{path}: {error}") from error


def _check_file(path: Path, mark: FileMark) -> None:
    """Raise CheckpointDamagedError unless a file has the size and content it was written with."""
    try:
        size = path.stat().st_size
        if size != mark.size_bytes:
            raise CheckpointDamagedError(f"{path}: {size} bytes; written with {mark.size_bytes}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointDamagedError(f"{path}: {error}") from error
    if digest != mark.sha256:
        raise CheckpointDamagedError(f"{path}: its content changed after it was written")


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        raise CheckpointDamagedError(
            f"{path}: {len(missing)} tensors are missing{_example(missing)}, "
            f"{len(extra)} are not this model's{_example(extra)}"
        )


def _example(names: list[str]) -> str:
    return f" ({names[0]}, ...)" if names else ""
