"""A step that was not finite, kept on the disk so that another process can run it again.

`dumps/step-00000004/` in a run's folder holds `batch.safetensors` (what the step was given, torch's
random generators, buffers as they were before it), `weights.safetensors` (parameters and buffers)
and `dump.json` (everything that is no array). It appears whole or not at all; nothing is pickled,
and what is read back is checked against what a model has before it is put there.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tsx.diagnostics.nonfinite.packing import Packer, unpack
from tsx.diagnostics.tracing.replay import Moment, set_generators
from tsx.errors import ConfigError, TsxError

FORMAT = 1
KIND = "batch"  # of the artifact
FACTS, BATCH, WEIGHTS = "dump.json", "batch.safetensors", "weights.safetensors"
MAX_FACTS_BYTES = 16 * 2**20  # a dump.json is some 20 KiB; more is not ours
MAX_SHOWN = 3  # tensors named in a message


class DumpDamagedError(TsxError):
    """A dump is not whole, or not what it says it is."""


class DumpFacts(Struct, frozen=True, kw_only=True):
    """`dump.json`: everything but arrays. Numbers that are not finite are their names."""

    format: int = FORMAT
    step: int  # that was under way, the first being 1
    time: float = 0.0  # UTC seconds
    source: str  # "trainer" (of a recipe) or "loop" (a program's own)
    loss: float | str = ""
    grad_norm: float | str = ""  # before clipping; "" where nobody has measured it
    device: str = ""
    precision: str = ""  # that the device was found to take
    config: dict[str, Any] = {}  # whole, of a recipe's run
    function: str = ""  # of a program's: what it called
    where: str = ""  # "file.py:12", of the function
    args: list[Any] = []  # nodes; see tsx.diagnostics.nonfinite.packing
    kwargs: dict[str, Any] = {}
    left_out: list[str] = []  # "name: type" of arguments that are not kept
    why_no_weights: str = ""  # empty where they are there
    python: list[Any] | None = None  # random.getstate()
    numpy: list[Any] | None = None  # numpy.random.get_state()
    cuda_devices: int = 0  # whose generators are kept
    versions: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Dump:
    """A dump that was read; `restore` puts a model where it was before the step."""

    path: Path
    facts: DumpFacts
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moment: Moment

    def check_fits(self, model: nn.Module) -> None:
        """Refuse weights that are not this model's, which may be on the meta device.

        Raises:
            ConfigError: names, shapes or types differ; the message has examples.
            DumpDamagedError: the file cannot be read.
        """
        if self.facts.why_no_weights:
            raise ConfigError(f"{self.path} holds no weights: {self.facts.why_no_weights}")
        params = {_clean(name): p for name, p in model.named_parameters()}
        known = params | {_clean(name): b for name, b in model.named_buffers()}
        with _reading(self.path / WEIGHTS) as file:
            names = set(file.keys())
            wrong = [f"{name} is not there" for name in sorted(params.keys() - names)]
            wrong += [f"{name} has no place" for name in sorted(names - known.keys())]
            for name in sorted(names & params.keys()):
                shape, wanted = file.get_slice(name).get_shape(), list(params[name].shape)
                if shape != wanted:
                    wrong.append(f"{name} is {shape}, expected {wanted}")
        if wrong:
            more = f" and {len(wrong) - MAX_SHOWN} more" if len(wrong) > MAX_SHOWN else ""
            raise ConfigError(
                f"the weights of step {self.facts.step} do not fit: "
                f"{'; '.join(wrong[:MAX_SHOWN])}{more}"
            )

    def restore(self, model: nn.Module) -> None:
        """Put weights, buffers and random generators where they were before the step.

        Raises:
            ConfigError: the weights are not this model's, or there are none.
            DumpDamagedError: the files cannot be read.
        """
        self.check_fits(model)
        params = {_clean(name): p for name, p in model.named_parameters()}
        with _reading(self.path / WEIGHTS) as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118 - a file, not a dict
                value = file.get_tensor(name)
                if name in params:
                    params[name].copy_(value)
                else:
                    _set_buffer(model, name, value)
        for name, value in self.moment.buffers.items():
            _set_buffer(model, name, value)
        self.rewind()

    def rewind(self) -> None:
        """Put the random generators where they were; those of other devices stay.

        Raises:
            DumpDamagedError: a generator does not take its state.
        """
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cuda = self.moment.cuda if len(self.moment.cuda) == here else []
        try:
            set_generators(replace(self.moment, cuda=cuda))
        except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise DumpDamagedError(f"{self.path}: a random generator: {error}") from error


class DumpFolder:
    """The dumps of one run.

    Args:
        run_folder: the run's; `dumps/` inside it is made on the first write.

    Attributes:
        is_spent: this process has kept its one step.
    """

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / "dumps"
        self.is_spent = False
        self._run_folder = run_folder

    def list_steps(self) -> list[int]:
        """Return the steps there are dumps of, the one written last at the end."""
        found = []
        for entry in self.path.glob("step-*") if self.path.is_dir() else ():
            number = entry.name.removeprefix("step-")
            if number.isdecimal() and len(number) < 19 and (entry / FACTS).is_file():
                found.append(((entry / FACTS).stat().st_mtime, int(number)))
        return [step for _, step in sorted(found)]

    def get_path(self, step: int) -> Path:
        """Return the folder of one step's dump."""
        return self.path / f"step-{step:08d}"

    def write(
        self,
        facts: DumpFacts,
        packed: Packer,
        moment: Moment,
        weights: Mapping[str, Tensor] | Path,
    ) -> tuple[str, int]:
        """Write a dump; return its path in the run's folder, and its size in bytes.

        Args:
            facts: what is plain; generators are added to it.
            packed: what the step was given.
            moment: right before the step.
            weights: right before it; a file that has them already is linked.

        Raises:
            OSError: the disk has no room for twice as much, or does not take it; nothing is left.
        """
        final = self.get_path(facts.step)
        draft = self.path / f".draft-{facts.step:08d}"
        arrays = packed.tensors | _list_arrays(moment)
        self._check_room([arrays, weights])
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            save_file(_prepare(arrays), draft / BATCH)
            _write_weights(draft / WEIGHTS, weights)
            text = msgspec.json.format(msgspec.json.encode(_add_generators(facts, moment)))
            (draft / FACTS).write_bytes(text)
            if final.exists():  # of a run that came this way before
                shutil.rmtree(final)
            draft.rename(final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        size = sum(file.stat().st_size for file in final.iterdir())
        return final.relative_to(self._run_folder).as_posix(), size

    def _check_room(self, parts: list[Mapping[str, Tensor] | Path]) -> None:
        """Raise OSError where the disk would be full, or nearly."""
        held = [tensor for part in parts if isinstance(part, Mapping) for tensor in part.values()]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in held)
        if shutil.disk_usage(self._run_folder).free < 2 * needed:
            raise OSError(errno.ENOSPC, f"no room for {needed:,} bytes and as much again")


def load_dump(path: Path | str) -> Dump:
    """Read the dump in a folder; its tensors come to the host.

    Raises:
        DumpDamagedError: a file is missing, cut short or not what it should be.
    """
    path = Path(path)
    facts = _read_facts(path / FACTS)
    with _reading(path / BATCH) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        args = tuple(unpack(node, tensors) for node in facts.args)
        kwargs = {name: unpack(node, tensors) for name, node in facts.kwargs.items()}
        buffers = _take_group(tensors, "buffer.")
        moment = Moment(
            cpu=tensors["rng.cpu"],
            cuda=[tensors[f"rng.cuda.{i}"] for i in range(min(facts.cuda_devices, 64))],
            python=_to_python_state(facts.python),
            numpy=facts.numpy,
            buffers=buffers,
        )
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DumpDamagedError(f"{path}: {type(error).__name__}: {error}") from error
    return Dump(path, facts, args, kwargs, moment)


def list_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers that a checkpoint would hold, each once."""
    held = {_clean(name): param.detach() for name, param in model.named_parameters()}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            passing = name in module._non_persistent_buffers_set
            if buffer is not None and id(buffer) not in seen and not passing:
                seen.add(id(buffer))
                held[_clean(f"{path}.{name}" if path else name)] = buffer.detach()
    return held


def name_number(value: float) -> float | str:
    """Return a number, or the strict-JSON name of one that is not finite."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _clean(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _set_buffer(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a buffer where the model has one of that name."""
    for path, module in model.named_modules():
        for held, buffer in module._buffers.items():
            if buffer is not None and _clean(f"{path}.{held}" if path else held) == name:
                module._buffers[held] = value.to(buffer.device, copy=True)


def _list_arrays(moment: Moment) -> dict[str, Tensor]:
    """Return a moment's tensors by name."""
    arrays = {"rng.cpu": torch.get_rng_state() if moment.cpu is None else moment.cpu}
    arrays |= {f"rng.cuda.{index}": state for index, state in enumerate(moment.cuda)}
    return arrays | {f"buffer.{_clean(name)}": value for name, value in moment.buffers.items()}


def _to_python_state(held: list[Any] | None) -> tuple[Any, ...]:
    """Return what `random.setstate` takes; the state of now where none was kept."""
    return random.getstate() if held is None else (held[0], tuple(held[1]), held[2])


def _take_group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _add_generators(facts: DumpFacts, moment: Moment) -> DumpFacts:
    """Return the facts with the states of Python's and numpy's generators."""
    numpy, python = moment.numpy, moment.python or random.getstate()
    return msgspec.structs.replace(
        facts,
        time=facts.time or time.time(),
        python=[python[0], list(python[1]), python[2]],
        numpy=None if numpy is None else [numpy[0], numpy[1].tolist(), *numpy[2:]],
        cuda_devices=len(moment.cuda),
        versions={"torch": str(torch.__version__)},
    )


def _prepare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: dense, on the host, none in another's memory."""
    ready, seen = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        ready[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return ready


def _write_weights(path: Path, weights: Mapping[str, Tensor] | Path) -> None:
    """Write weights, or link the file that has them."""
    if isinstance(weights, Path):
        try:
            os.link(weights, path)
        except OSError:  # a file system without links
            shutil.copyfile(weights, path)
    elif weights:
        save_file(_prepare(weights), path)


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a file of tensors, and explain what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DumpDamagedError(f"{path}: {error}") from error


def _read_facts(path: Path) -> DumpFacts:
    try:
        if path.stat().st_size > MAX_FACTS_BYTES:
            raise DumpDamagedError(f"{path}: larger than {MAX_FACTS_BYTES} bytes")
        facts = msgspec.json.decode(path.read_bytes(), type=DumpFacts)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DumpDamagedError(f"{path}: {error}") from error
    if facts.format != FORMAT:
        raise DumpDamagedError(f"{path}: format {facts.format}; this tsx reads {FORMAT}")
    return facts
