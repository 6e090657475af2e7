"""Runs a model again with a part of its input changed, and says which outputs moved.

Every run starts from the same generators, buffers and attributes and leaves nothing behind. What
would hide a leak is opened for it: parameters that start at zero are stood in for by small numbers,
so that a branch that adds nothing yet shows what it will add.

Shapes: B batch, T time.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.loop.updates import is_measurable, measure_norms
from tsx.diagnostics.masks.layout import Layout
from tsx.diagnostics.tracing.replay import swapped
from tsx.diagnostics.tracing.tape import RootCall, Tape

DOOR = 0.1  # size of the numbers that stand in for a parameter of zeros


@dataclass(frozen=True, slots=True)
class Autocast:
    """The autocast that a call of the model ran under."""

    device: str
    dtype: torch.dtype

    @classmethod
    def find(cls, device: str) -> Autocast | None:
        """Return the one that is on now."""
        if not torch.is_autocast_enabled(device):
            return None
        return cls(device, torch.get_autocast_dtype(device))


class Unprobed(Exception):
    """A model could not be run again: nothing is known of it."""


class Probe:
    """One model with one set of arguments, to be run again.

    Args:
        tape: of the call.
        root: the model's own call in it.
        autocast: that it ran under.

    Attributes:
        leaves: the arguments, flat.
        takes_last: the outputs are what the last module returned: the model returns its loss alone.
    """

    def __init__(self, tape: Tape, root: RootCall, autocast: Autocast | None) -> None:
        self.leaves, self._spec = tree_flatten((root.args, dict(root.kwargs)))
        self._tape = tape
        self._autocast = autocast
        self._is_cast = False
        self._doors: dict[str, Tensor] | None = None
        self._last: Tensor | None = None
        self.takes_last = False

    def run(
        self,
        leaves: Sequence[Any],
        *,
        training: bool = False,
        watching: AbstractContextManager[Any] | None = None,
    ) -> list[Tensor]:
        """Return the tensors that the model returns for these arguments.

        Args:
            leaves: the arguments, flat; copied, for a model may write to them.
            training: as it trains, but without dropout and with the running statistics of norms.
            watching: a context for the time of the call.

        Raises:
            Unprobed: the model failed.
        """
        context = watching or nullcontext()
        try:
            return self._run(leaves, training, context)
        except Exception as error:
            if self._autocast is None or self._is_cast or isinstance(error, torch.OutOfMemoryError):
                raise Unprobed from error
        self._is_cast = True  # a kernel that takes halves alone: as it was, then
        try:
            return self._run(leaves, training, context)
        except Exception as error:
            raise Unprobed from error

    def find_module(self, name: str) -> nn.Module | None:
        """Return a module of the model by its name."""
        return dict(self._tape.model.named_modules()).get(name)

    def _run(
        self, leaves: Sequence[Any], training: bool, watching: AbstractContextManager[Any]
    ) -> list[Tensor]:
        model = self._tape.model
        copies = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(copies, self._spec)
        if self._doors is None:
            self._doors = _open_doors(model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(self._tape.trial(training=training))
            stack.enter_context(_without_hooks(model))
            stack.enter_context(_without_fast_path())
            stack.enter_context(swapped(model, "_parameters", self._stand_in))
            if training:
                _settle_norms(model)
                stack.enter_context(_NoDropout())  # type: ignore[no-untyped-call]
            if self._is_cast and self._autocast is not None:
                stack.enter_context(torch.autocast(self._autocast.device, self._autocast.dtype))
            if self.takes_last:
                hook = torch.nn.modules.module.register_module_forward_hook(self._keep_last)
                stack.callback(hook.remove)
            held = _note_buffers(model)
            with watching:
                out = model(*args, **kwargs)
            if not training and held != _note_buffers(model):
                raise Unprobed("buffers move in eval mode: no two runs are alike")
        last, self._last = self._last, None
        if self.takes_last:
            out = last
        return [tensor.detach() for tensor in iter_tensors(out)]

    def _keep_last(self, module: nn.Module, args: Any, out: Any) -> None:
        """Keep what a module returned, if it has room for samples and steps."""
        if isinstance(out, Tensor) and out.ndim >= 2 and out.is_floating_point():
            self._last = out

    def _stand_in(self, name: str, param: Tensor) -> Tensor:
        return (self._doors or {}).get(name, param)


def is_distributed() -> bool:
    """Return whether other processes take part: a model run again would wait for them."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size() > 1


def change(x: Tensor, spot: tuple[slice | int, ...]) -> Tensor | None:
    """Return a copy of an input with other values at a spot; None where there are no others.

    Real numbers are mirrored at their mean and shaken by their spread; ids become others that the
    batch holds.
    """
    other = x.detach().clone()
    part = other[spot]
    if x.is_floating_point():
        wide = x.detach().float()
        spread, mean = wide.std(), wide.mean()
        spread = torch.where(spread > 0, spread, torch.ones_like(spread)).nan_to_num(1.0)
        number = torch.arange(part.numel(), device=x.device, dtype=torch.float32)
        shake = (spread * (1.7 * number + 0.3).cos()).view(part.shape)
        part.copy_((2 * mean - part.float() + shake).to(x.dtype))
        return other
    ids = torch.unique(x)
    if ids.numel() < 2:
        return None
    place = torch.searchsorted(ids, part.contiguous())
    part.copy_(ids[(place + 1) % ids.numel()])
    return other


def choose_step(num_steps: int) -> int:
    """Return the step from which on the future is changed: a prime, so that no block ends there."""
    late = max(2, (3 * num_steps) // 4)
    while late > 2 and any(late % other == 0 for other in range(2, int(late**0.5) + 1)):
        late -= 1
    return late


def iter_seen(
    outputs: Sequence[Tensor], layout: Layout
) -> Iterator[tuple[int, int | None, int | None]]:
    """Yield (number, axis of the batch, axis of time) of the outputs that have one."""
    found = []
    for index, out in enumerate(outputs):
        if not (out.is_floating_point() and out.numel()) or out.layout is not torch.strided:
            continue
        batch = _find_axis(out, layout.num_samples, layout.batch)
        time = None
        if layout.time is not None:
            time = _find_time(out, layout, batch)
        found.append((index, batch, time))
    # Beside a sequence of features, an output of two axes is a summary: its features are no steps.
    has_sequence = any(outputs[i].ndim > 2 and time is not None for i, _, time in found)
    for index, batch, time in found:
        if has_sequence and outputs[index].ndim == 2:
            time = None
        if batch is not None or time is not None:
            yield index, batch, time


def _find_axis(out: Tensor, size: int, like: int | None) -> int | None:
    """Return the axis of a size: where the input has it, or the only one."""
    if like is not None and like < out.ndim and out.shape[like] == size:
        return like
    found = [axis for axis, length in enumerate(out.shape) if length == size and size > 1]
    return found[0] if len(found) == 1 else None


def _find_time(out: Tensor, layout: Layout, batch: int | None) -> int | None:
    """Return the axis of time, of steps or of patches of them."""
    assert layout.time is not None
    size = layout.num_steps
    # A recurrent state [layers, B, D] or a cache [B, heads, T, D] is no sequence by its first axes.
    whole = [axis for axis in range(out.ndim) if axis != batch and out.shape[axis] == size]
    if layout.time in whole:
        return layout.time
    if whole:
        return whole[0] if len(whole) == 1 and (batch == 0 or whole[0] == 0) else None
    if layout.time != 1 or batch == 1 or out.ndim != 3:
        return None
    length = out.shape[1]
    is_patched = size % length == 0 or size - length < size // 4
    return 1 if 2 <= length < size and is_patched else None


def count_settled(length: int, num_steps: int, late: int) -> int:
    """Return how many steps of an output must not move when the input does from `late` on.

    Args:
        length: of the output; shorter than the input where a token is a patch, or where a
            convolution without padding has eaten the first steps.
        num_steps: of the input.
        late: first step that changed.
    """
    if length == num_steps:
        return late
    if length < num_steps and num_steps % length == 0:
        return late // (num_steps // length)
    return max(0, late - (num_steps - length)) if length < num_steps else 0


def measure_move(before: Tensor, after: Tensor) -> float:
    """Return how far a tensor moved, as a share of its size; what is not finite has not."""
    if before.shape != after.shape or not before.numel() or torch.equal(before, after):
        return 0.0
    gap, size = [], []
    for one, two in zip(before, after, strict=True):  # row by row: logits are large
        one, two = (part if part.dtype is torch.float64 else part.float() for part in (one, two))
        gap.append((one - two).abs().nan_to_num(0.0, 0.0, 0.0).amax())
        size.append(one.abs().nan_to_num(0.0, 0.0, 0.0).amax())
    return float((torch.stack(gap).max() / torch.stack(size).max().clamp(min=1e-30)).item())


def _open_doors(model: nn.Module) -> dict[str, Tensor]:
    """Return what stands in for the trained parameters that are all zero, by name."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and is_measurable(p)]
    named = [(name, p) for name, p in named if p.is_floating_point() and p.numel()]
    if not named:
        return {}
    norms = measure_norms([p.detach() for _, p in named]).tolist()
    doors = {}
    for (name, param), norm in zip(named, norms, strict=True):
        if norm == 0:
            number = torch.arange(param.numel(), device=param.device, dtype=torch.float32)
            door = DOOR * (1.618 * number + 0.7).cos()
            doors[name] = door.view(param.shape).to(param.dtype)
    return doors


def _note_buffers(model: nn.Module) -> list[tuple[int, int]]:
    """Return which buffers there are and how often each was written to."""
    return [(id(buffer), buffer._version) for buffer in model.buffers()]


def _settle_norms(model: nn.Module) -> None:
    """Let norms with running statistics use them; the modes are put back by the trial."""
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.training = False


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Have no forward hooks of the user's inside: they may collect what they see."""
    held = [(module.__dict__, module._forward_hooks) for module in model.modules()]
    try:
        for attributes, _ in held:
            attributes["_forward_hooks"] = OrderedDict()
        yield
    finally:
        for attributes, hooks in held:
            attributes["_forward_hooks"] = hooks


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Have torch's encoder layers run part by part inside."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _NoDropout(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps all that a dropout would drop."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", None)
        name = packet.__name__ if packet else ""
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name == "bernoulli_" and not any(isinstance(a, Tensor) for a in args[1:]):
            return args[0].fill_(1.0)
        return func(*args, **(kwargs or {}))
