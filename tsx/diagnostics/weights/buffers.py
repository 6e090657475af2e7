"""Buffers that move under weights that are frozen.

A part is frozen when it has parameters, none of them wants a gradient and none of them moves: the
teacher that follows by a running mean is not. Its floating-point buffers of the state dict should
stand still too, unless somebody wants them to follow the data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.loop.updates import is_measurable
from tsx.diagnostics.tracing.source_lines import find_class_line
from tsx.diagnostics.tracing.tape import OpSeen
from tsx.diagnostics.tracing.trace import find_memory

TIMES = 2  # calls that have to move it: one may be a calibration
SAMPLE = 4096  # numbers of a buffer that are compared

KIND = Kind(
    "buffer-drift",
    "Running statistics or other buffers of a part move while its weights are frozen.",
    "A frozen backbone gave other features every day: requires_grad was off, its batch norms "
    "were in train mode.",
    "The buffer, the mode of its module, how far it moved.",
    "Put the frozen part into eval mode in each epoch (override train()), or do not update its "
    "buffers while it is frozen.",
)


@dataclass(slots=True)
class _Held:
    """A buffer before a call."""

    name: str
    module: nn.Module
    param: Tensor  # of the frozen part
    buffer: Tensor
    version: int
    old: Tensor | None  # some of its numbers, once it is suspected


class BufferDrift(Detector):
    """Watches the buffers of frozen parts over calls that are looked at."""

    name = "buffer_drift"
    kinds = (KIND,)
    ops = frozenset({"*"})

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._first: dict[int, tuple[Tensor, Tensor]] = {}  # frozen parameters as they were
        self._held: list[_Held] = []
        self._suspects: set[str] = set()
        self._times: dict[str, int] = {}
        self._lines: dict[str, str] = {}
        self._memory: dict[int, str] = {}
        self._said: set[str] = set()

    def before_call(self, call: Call) -> None:
        """Note the buffers of frozen parts."""
        self._held, self._memory = [], {}
        if not (call.is_looked and call.is_grad):
            return
        if all(param.requires_grad for param in self.scene.model.parameters()):
            return
        for path, module in self.scene.model.named_modules():
            if path in self._said or not any(True for _ in module.buffers(recurse=False)):
                continue
            param = self._find_frozen(path, module)
            if param is None:
                continue
            is_updating = isinstance(module, _NormBase) and module.training  # behind its version
            for name, buffer in module.named_buffers(recurse=False):
                full = f"{path}.{name}" if path else name
                is_kept = name not in module._non_persistent_buffers_set
                if is_kept and is_measurable(buffer) and buffer.is_floating_point():
                    is_suspect = is_updating or full in self._suspects
                    old = _thin(buffer).clone() if is_suspect else None
                    self._held.append(_Held(full, module, param, buffer, buffer._version, old))
                    self._memory[find_memory(buffer)] = full

    def saw_op(self, seen: OpSeen) -> None:
        """Note the line that writes to one of them."""
        if self._memory and seen.args and isinstance(seen.args[0], Tensor):
            name = self._memory.get(find_memory(seen.args[0]), "")
            if name and seen.name.endswith("_") and seen.where:
                self._lines[name] = seen.where

    def after_call(self, call: Call) -> None:
        """Compare them."""
        for held in self._held:
            now = dict(held.module.named_buffers(recurse=False)).get(held.name.rpartition(".")[2])
            if now is None or now.shape != held.buffer.shape:
                continue
            if now is not held.buffer or now._version != held.version:
                self._suspects.add(held.name)
            if held.old is not None:
                gap = (_thin(now) - held.old).abs().amax().float()
                drift = (_thin(held.param) - self._first[id(held.param)][1]).abs().amax().float()
                judge = partial(
                    self._judge, held.name, held.module, held.module.training, call.step
                )
                self.scene.voice.read_late(torch.stack([gap, drift.to(gap.device)]), judge)
        self._held, self._memory = [], {}

    def _judge(
        self, name: str, module: nn.Module, is_training: bool, step: int, gaps: list[float]
    ) -> None:
        gap, drift = gaps
        if not gap > 0 or drift > 0:  # weights that follow somebody else's are not frozen
            return
        self._times[name] = self._times.get(name, 0) + 1
        path, _, leaf = name.rpartition(".")
        if self._times[name] < TIMES or path in self._said:
            return
        self._said.add(path)
        if isinstance(module, _NormBase):
            mechanism, why = "batch-norm-in-train", "its batch norm is in train mode"
        elif not is_training:
            mechanism, why = "running-mean-in-eval", "it is updated in eval mode too"
        else:
            mechanism, why = self._name(name, module)
        self.scene.report(
            "buffer-drift",
            mechanism,
            f"{name} moves though the part is frozen: {why}",
            "put the frozen part into eval mode (override train()), or leave its buffers alone "
            "while it is frozen",
            step=step,
            phase="forward",
            module=path,
            where=self._lines.get(name, "") or _find_writing(type(module), leaf),
            evidence={"buffer": name, "is_training": is_training, "moved_by": gap},
        )

    def _name(self, name: str, module: nn.Module) -> tuple[str, str]:
        """Return what a module of the user's does to its buffer: does it ask for the mode?"""
        asks, _ = find_class_line(type(module), re.compile(r"\bself\.training\b"))
        if asks:
            return "codebook-follows", "it follows the data in train mode"
        return "running-mean-in-eval", "it is updated whatever the mode"

    def _find_frozen(self, path: str, module: nn.Module) -> Tensor | None:
        """Return a parameter of the nearest part that has some, if all of them are frozen."""
        params = list(module.parameters())
        while not params and path:  # a norm without weights, inside a frozen part
            path = path.rpartition(".")[0]
            params = list(self.scene.model.get_submodule(path).parameters())
        if any(param.requires_grad for param in params):
            return None
        param = next((param for param in params if is_measurable(param)), None)
        if param is not None:
            known = self._first.get(id(param))
            if known is None or known[0] is not param:
                self._first[id(param)] = param, _thin(param).clone()
        return param


def _thin(tensor: Tensor) -> Tensor:
    """Return some numbers of a tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)]


def _find_writing(kind: type, name: str) -> str:
    """Return the line of a class that writes to a buffer after it was made."""
    part = re.escape(name)
    pattern = (
        rf"\bself\.{part}(\.data)?(\[.*\])?(\.\w+_\(|\s*[-+*/]?=(?!=))|\(\s*self\.{part}\b.*\)"
    )
    return find_class_line(kind, re.compile(pattern))[0]
