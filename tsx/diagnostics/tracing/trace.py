"""One step run again under the eyes of every operation: where its first bad value was born.

A value is bad when it is NaN or infinite. An operation gives birth to a bad value when its output
is NaN and no input is, or infinite and no input is. Every tensor carries the birth that its badness
comes from, so the loss or a gradient names its origin at once, and what was bad but never reached
it (an unselected branch of `where`, the -inf of a mask) is not blamed.

An infinity that was written on purpose (masked_fill, full, where with a constant) is no fault: the
operation that turns it into NaN is. One that was computed from finite values is: the NaN that a
later operation makes of it only carries it on.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.module_names import is_inside

_OURS = (str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "recording"))
_TORCH = str(Path(torch.__file__).parent)
_WRITES = {  # operations that put a constant where they are told to
    *("masked_fill", "masked_fill_", "fill", "fill_", "full", "full_like", "new_full", "where"),
    *("scalar_tensor", "lift_fresh", "lift_fresh_copy", "index_put_"),
    *("empty_like", "empty_strided", "new_empty", "constant_pad_nd", "index_fill_", "index_fill"),
}
_SELECTIONS = {  # operations that may leave bad values out
    *("where", "masked_fill", "masked_fill_", "masked_select", "index", "index_select", "gather"),
    *("nan_to_num", "nan_to_num_", "index_put", "index_put_"),
}
DWARFED = 10.0  # a weight by another that is so many times as large
_JOINS = {"stack", "cat"}  # operations that keep each bad input as bad as it was
_GARBAGE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass(slots=True)
class Place:
    """Where an operation stands in the user's program."""

    module: str  # name of the innermost module under way
    where: str  # "file.py:12 in forward"


class Maker(NamedTuple):
    """The operation that made a tensor, with the number it was given."""

    op: str
    scalar: float | None
    leaf: str  # name of a parameter, buffer or argument that this is, or a view of
    source: Maker | None = None  # what made its first argument, three back at most

    def iter_back(self) -> Iterator[Maker]:
        """Yield this and what was before it."""
        maker: Maker | None = self
        while maker is not None:
            yield maker
            maker = maker.source


@dataclass(slots=True)
class Birth:
    """An operation whose output is bad though no input is, or a leaf that came bad."""

    index: int
    kind: str  # "nan" or "inf"
    op: str  # "log", "_softmax"; "" for a leaf
    phase: str  # "forward" or "backward"
    place: Place
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    out: Tensor | None = None
    node: str = ""  # backward: the autograd node under way
    leaf: str = ""  # name of a parameter, a buffer or an argument that was bad already
    is_written: bool = False  # an infinity that was put there on purpose
    forward: ForwardOp | None = None  # backward: the operation whose gradient this is
    is_custom: bool = False  # backward: of a torch.autograd.Function
    hidden_by: str = ""  # forward: the selection that left the bad values out again
    makers: tuple[Maker | None, ...] = ()  # what made each of the arguments
    largest_weight: tuple[str, float] = ("", 0.0)  # the model's, by name


@dataclass(slots=True)
class ForwardOp:
    """What autograd will run backward: the operation of one sequence number."""

    op: str
    place: Place
    birth: Birth | None


def is_bad(tensor: Tensor) -> str:
    """Return "nan", "inf" or "" for what a tensor holds; one pass over it."""
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return ""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return ""
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    low, high = (value.item() for value in flat.detach().aminmax())
    if low != low or high != high:
        return "nan"
    return "inf" if low == -torch.inf or high == torch.inf else ""


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches forward and backward passes of a model; see the module's docstring.

    Args:
        model: its modules name places.
        leaves: name to tensor: parameters, buffers and arguments as they are before the call.
    """

    def __init__(self, model: nn.Module, leaves: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "forward"
        self.births: list[Birth] = []
        self.forward_ops: dict[int, ForwardOp] = {}
        self.custom_ops: dict[int, ForwardOp] = {}
        self._names = {id(module): name for name, module in model.named_modules()}
        self._model = model
        self._stack: list[str] = []
        self._count = 0
        self._origins: dict[int, tuple[weakref.ref[Tensor], Birth]] = {}
        self._storages: dict[int, Birth] = {}
        self._makers: Any = WeakIdKeyDictionary()
        self._leaves = {find_memory(tensor): name for name, tensor in leaves.items()}
        for name, tensor in leaves.items():
            kind = is_bad(tensor)
            if kind:
                birth = Birth(0, kind, "", "forward", Place("", ""), leaf=name, out=tensor)
                self.births.append(birth)
                self._mark(tensor, birth)

    @contextmanager
    def watching(self) -> Iterator[Trace]:
        """Trace what runs inside, module by module."""
        hooks = [
            torch.nn.modules.module.register_module_forward_pre_hook(self._enter),
            torch.nn.modules.module.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def find_origin(self, tensor: Tensor) -> Birth | None:
        """Return the birth that a tensor's badness comes from."""
        held = self._origins.get(id(tensor))
        if held is not None and held[0]() is tensor:
            return held[1]
        return self._storages.get(find_memory(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._count += 1
        inputs = list(iter_tensors((args, kwargs)))
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        before: list[tuple[Tensor, str]] | None = None  # inputs that are still there can wait
        if name in _SELECTIONS or not hasattr(func, "_schema") or func._schema.is_mutable:
            before = [(tensor, is_bad(tensor)) for tensor in inputs]
        out = func(*args, **kwargs)
        outputs = list(iter_tensors(out))
        place = None
        birth = None
        scalar = next((float(a) for a in args if type(a) in (int, float)), None)
        for tensor in outputs:
            if not any(tensor is other for other in inputs):
                self._makers[tensor] = Maker(name, scalar, "", self._find_source(inputs))
            kind = is_bad(tensor)
            if not kind:
                self._clear(tensor)
                if name in _SELECTIONS:
                    self._note_hidden(name, before or ())
                continue
            if name in _GARBAGE:
                continue
            if place is None:
                place = self._find_place()
            if before is None:
                before = [(tensor, is_bad(tensor)) for tensor in inputs]
            birth = self._blame(kind, name, args, kwargs, tensor, before, place)
            self._mark(tensor, birth)
        if self.phase == "forward":
            number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
            made = ForwardOp(name, place or self._find_place(), birth)
            if torch.is_grad_enabled():
                self.forward_ops[number] = made
            else:  # inside the forward of a custom function, perhaps
                self.custom_ops[number] = made
        return out

    def _note_hidden(self, name: str, before: Sequence[tuple[Tensor, str]]) -> None:
        """Note that a selection has left bad values out."""
        for tensor, kind in before:
            found = self.find_origin(tensor) if kind else None
            if found is not None:
                found.hidden_by = name

    def _find_source(self, inputs: Sequence[Tensor]) -> Maker | None:
        """Return what made the first input, without what was long before it."""
        made = self._makers.get(inputs[0]) if inputs else None
        before = made.source._replace(source=None) if made and made.source else None
        return made._replace(source=before) if made else None

    def find_maker(self, value: Any) -> Maker | None:
        """Return what made a tensor; a leaf, where it is one or shares its memory."""
        if not isinstance(value, Tensor):
            return None
        held = self._makers.get(value)
        memory = find_memory(value)
        leaf = self._leaves.get(memory, "") if memory else ""
        for name, buffer in self._model.named_buffers():  # one that forward has put in its place
            if memory and not leaf and find_memory(buffer) == memory:
                leaf = f"buffer {name}"
        return held._replace(leaf=leaf) if held else Maker("", None, leaf)

    def _blame(
        self,
        kind: str,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Tensor,
        before: Sequence[tuple[Tensor, str]],
        place: Place,
    ) -> Birth:
        """Return where the badness of an output comes from: an input, or this operation."""
        known = [
            (self._origin_of_input(tensor, held, place), held) for tensor, held in before if held
        ]
        nans = [birth for birth, held in known if held == "nan"]
        infs = [birth for birth, held in known if held == "inf"]
        computed = [birth for birth in infs if not birth.is_written]
        if kind == "nan" and nans:  # an infinity beside it may be meant, as of log in a mask
            first = [*nans, *computed] if name in _JOINS else nans
            return min(first, key=lambda birth: birth.index)
        if computed:
            return min(computed, key=lambda birth: birth.index)
        if kind == "inf" and infs:
            return infs[0]
        held = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        birth = Birth(self._count, kind, name, self.phase, place, held, kwargs, out.detach())
        birth.is_written = kind == "inf" and name in _WRITES
        birth.makers = tuple(self.find_maker(value) for value in args)
        if not birth.is_written:
            birth.largest_weight = find_largest_weight(self._model, place.module)
        if self.phase == "backward":
            node = torch._C._current_autograd_node()
            if node is not None:
                birth.node = node.name()
                number = node._sequence_nr()
                is_custom = isinstance(node, torch.autograd.function.BackwardCFunction)
                birth.is_custom = is_custom
                birth.forward = (self.custom_ops if is_custom else self.forward_ops).get(number)
        self.births.append(birth)
        return birth

    def _origin_of_input(self, tensor: Tensor, kind: str, place: Place) -> Birth:
        """Return the birth behind a bad input; a constant that nobody made is one of its own."""
        found = self.find_origin(tensor)
        if found is not None:
            return found
        birth = Birth(self._count, kind, "", self.phase, place, out=tensor)
        birth.is_written = kind == "inf"  # made before the step, so on purpose
        self.births.append(birth)
        self._mark(tensor, birth)
        return birth

    def _mark(self, tensor: Tensor, birth: Birth) -> None:
        self._origins[id(tensor)] = (weakref.ref(tensor), birth)
        if memory := find_memory(tensor):
            self._storages[memory] = birth

    def _clear(self, tensor: Tensor) -> None:
        """A tensor is finite: what its memory held before says nothing any more."""
        self._origins.pop(id(tensor), None)
        memory = find_memory(tensor)
        if memory and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():
            self._storages.pop(memory, None)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(self._names.get(id(module), self._stack[-1] if self._stack else ""))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._stack:
            self._stack.pop()

    def _find_place(self) -> Place:
        return Place(self._stack[-1] if self._stack else "", find_line())


def find_memory(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, 0 where it has none of the usual kind."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def find_largest_weight(model: nn.Module, module: str = "") -> tuple[str, float]:
    """Return the name and the size of the largest weight of a model.

    One inside the module named is preferred to a larger one elsewhere, unless that dwarfs it: where
    all weights have run away, the place of the operation names one.
    """
    sizes = [
        (float(p.detach().abs().amax()), name) for name, p in model.named_parameters() if p.numel()
    ]
    size, name = max(sizes, default=(0.0, ""))
    inside, near = max(
        [(size, name) for size, name in sizes if is_inside(name, module)], default=(0.0, "")
    )
    return (near, inside) if module and inside * DWARFED > size else (name, size)


def find_line(frame: FrameType | None = None) -> str:
    """Return the innermost line of the running program that is neither torch's nor ours."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        if is_user_line(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def is_user_line(path: str) -> bool:
    """Return whether a file is neither torch's nor ours."""
    return not (path.startswith((_TORCH, *_OURS)) or path.startswith("<"))
