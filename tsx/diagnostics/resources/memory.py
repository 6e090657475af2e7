"""Memory: graphs that pile up from step to step, and what an allocation failed on."""

from __future__ import annotations

import gc
import inspect
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from registry.events import Severity
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.resources.compiled_lines import is_user_file
from tsx.diagnostics.tracing.places import shorten

OOM = Kind(
    "oom",
    "Memory has run out, or runs out a little more with each step.",
    "Losses were added up for a mean with their graphs: after an hour none was left. A table of "
    "all pairs of a window wanted a petabyte.",
    "What was to be allocated and where, what there is, and the largest batch that would fit; or "
    "how many graphs are kept.",
    "Detach what is kept (float(loss)), shorten the window, or take a smaller batch.",
)
SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "bad_alloc", "out of memory", "alloc")
MIN_GROWING = 3  # looks in a row at which more graphs are alive
MAX_SCAN_S = 0.5  # a program with so many objects that finding the tensors takes longer is left be
MAX_NODES = 4000  # of graphs that are counted
_TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB|TiB|PiB|EiB)?")
_UNITS: dict[str, int] = {"": 1, "bytes": 1} | {
    name: 1024**power for power, name in enumerate(("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), 1)
}
_CUDA_FREE = re.compile(r"([\d.]+) (MiB|GiB) is free")


class KeptGraphs(Detector):
    """Counts tensors that hold a graph after the step is over."""

    name = "kept-graphs"
    kinds = (OOM,)

    def __init__(self, scene: Scene, clock: Callable[[], float] = time.thread_time) -> None:
        super().__init__(scene)
        self._clock = clock
        self._counts: list[int] = []
        self._older = {id(t): weakref.ref(t) for t in list_graphs(scene)}
        self._is_looked = True
        self._steps = 0
        self._is_over = False

    def begin_look(self, step: int) -> None:
        """Count after this step."""
        self._is_looked = True

    def before_call(self, call: Call) -> None:
        """Count what is left of the steps before; in a row over the first ones, then rarely."""
        if self._is_over or not self._is_looked or not call.is_training:
            return
        self._is_looked = False
        self._steps += 1
        is_turn = self._steps <= 2 * MIN_GROWING or self._steps & (self._steps - 1) == 0
        if self._steps < 2 or not is_turn:
            return
        began = self._clock()
        kept = [tensor for tensor in list_graphs(self.scene) if not self._is_older(tensor)]
        if self._clock() - began > MAX_SCAN_S:
            self._is_over = True
            return
        self._counts.append(_count_nodes(kept))
        last = self._counts[-MIN_GROWING - 1 :]
        growth = [after - before for before, after in pairwise(last)]
        if len(growth) == MIN_GROWING and min(growth) > 0:
            self._tell(kept)

    def _is_older(self, tensor: Tensor) -> bool:
        """Return whether a tensor was there before the loop: it may go at any time."""
        held = self._older.get(id(tensor))
        return held is not None and held() is tensor

    def _tell(self, kept: list[Tensor]) -> None:
        self._is_over = True
        keeper = next((found for tensor in reversed(kept) if (found := find_keeper(tensor))), "")
        self.scene.report(
            "oom",
            "graph-kept",
            "tensors are kept with their graphs after each step, and all that they were made of",
            "keep numbers: float(loss), loss.detach(), or torch.no_grad() around what is scored",
            where=keeper,
            evidence={"tensors": len(kept), "nodes": self._counts[-MIN_GROWING - 1 :]},
        )


class OutOfMemory(Detector):
    """Says what an allocation failed on."""

    name = "out-of-memory"
    kinds = (OOM,)

    def raised(self, call: Call, error: BaseException) -> None:
        """Report an allocation that failed."""
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        text = str(error)
        if not is_memory and not (
            isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS)
        ):
            return
        frame = find_frame(error.__traceback__)
        wanted = read_wanted(text)
        mechanism, cause, fix = explain_allocation(wanted, call, frame)
        where = "" if frame is None else f"{frame[0].f_code.co_filename}:{frame[1]}"
        self.scene.report(
            "oom",
            mechanism,
            cause,
            fix,
            severity=Severity.ERROR,
            phase="forward",
            module=self._find_module(error.__traceback__),
            where=shorten(where),
            evidence={"error": text.partition("\n")[0][:300], **self._measure(call, wanted, text)},
        )

    def _find_module(self, trace: TracebackType | None) -> str:
        """Return the innermost module that was under way."""
        names = [
            self.scene.modules[id(owner)]
            for frame, _ in _iter_frames(trace)
            if id(owner := frame.f_locals.get("self")) in self.scene.modules
        ]
        return names[-1] if names else ""

    def _measure(self, call: Call, wanted: float, text: str) -> dict[str, Any]:
        """Return what was wanted, what there is, and the batch that would fit."""
        known: dict[str, Any] = {}
        device = next((p.device for p in self.scene.model.parameters()), torch.device("cpu"))
        free = _read_free(device, text)
        if wanted:
            known["wanted_gib"] = round(wanted / 2**30, 3)
        if free:
            known["free_gib"] = round(free / 2**30, 3)
        sizes = [len(v) for v in call.name_tensors().values() if v.ndim]
        if sizes and wanted and free:
            # What one allocation wants is linear in the batch, so is all of the activations.
            known["batch"], known["batch_that_fits"] = sizes[0], int(sizes[0] * free / wanted)
        return known


def explain_allocation(
    wanted: float, call: Call, frame: tuple[FrameType, int] | None
) -> tuple[str, str, str]:
    """Return mechanism, cause and fix of an allocation that failed.

    Args:
        wanted: bytes; 0 where nobody knows.
        call: that failed.
        frame: of the user's line.
    """
    tensors = list(call.name_tensors().values())
    if frame is not None:
        tensors += [v for v in frame[0].f_locals.values() if isinstance(v, Tensor)]
    for tensor in tensors:
        if not tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            largest = int(tensor.max()) + 1 if tensor.dtype is not torch.bool else 0
            if largest > 1 << 16 and (not wanted or wanted >= largest):
                return (
                    "shape-from-data",
                    "a shape is taken from the data: as wide as the largest value in it",
                    "hash or clip values to a fixed number of classes, or use an embedding",
                )
    sides = [max(tensor.shape) for tensor in tensors if tensor.ndim]
    longest = max(sides, default=0)
    if longest >= 1024 and (not wanted or wanted >= longest * longest):
        return (
            "quadratic",
            "memory grows with the square of the window: a table of all pairs of its points",
            "shorten the window, work in blocks, or use scaled_dot_product_attention",
        )
    return (
        "batch-too-large",
        "the activations of this batch do not fit",
        "take a smaller batch and accumulate gradients, or checkpoint activations",
    )


def list_graphs(scene: Scene) -> list[Tensor]:
    """Return the tensors alive that hold a graph."""
    own = {id(p) for p in scene.model.parameters()} | {id(b) for b in scene.model.buffers()}
    found = []
    for thing in gc.get_objects():
        if type(thing) is Tensor and thing.grad_fn is not None and id(thing) not in own:
            found.append(thing)
    return found


def find_keeper(tensor: Tensor) -> str:
    """Return the line that keeps a tensor in a list or an attribute, "" where none is found."""
    for holder in gc.get_referrers(tensor):
        if isinstance(holder, list):
            for outer in gc.get_referrers(holder):
                found = _find_attribute(outer, holder)
                if found:
                    return found
        elif isinstance(holder, dict):
            found = _find_attribute(holder, tensor)
            if found:
                return found
    return ""


def _find_attribute(holder: Any, value: Any) -> str:
    """Return the line of a class that puts something into the attribute that holds a value."""
    attributes: Mapping[Any, Any] | None = holder if isinstance(holder, dict) else None
    owners = [holder] if attributes is None else gc.get_referrers(holder)
    if attributes is None:
        attributes = getattr(holder, "__dict__", None)
    if not attributes:
        return ""
    name = next((str(key) for key, held in list(attributes.items()) if held is value), "")
    for owner in owners:
        if (name and getattr(owner, "__dict__", None) is attributes) or owner is holder:
            line = _find_line(type(owner), name)
            if line:
                return line
    return ""


def _find_line(kind: type, name: str) -> str:
    """Return the line of a class that appends to an attribute or adds to it."""
    grows = re.compile(rf"self\.{re.escape(name)}\s*(\.append\(|\.extend\(|\.insert\(|\+=|=.*\+)")
    for base in kind.__mro__:
        try:
            path = inspect.getsourcefile(base)
            lines, first = inspect.getsourcelines(base)
        except (OSError, TypeError):
            continue
        if path is None or not is_user_file(path):
            continue
        for number, text in enumerate(lines, first):
            if grows.search(text):
                return shorten(f"{path}:{number}")
    return ""


def read_wanted(text: str) -> float:
    """Return how many bytes an allocator was asked for, 0 where it does not say."""
    found = _TRIED.search(text)
    if found is not None:
        return float(found[1]) * _UNITS[found[2] or ""]
    plain = re.search(r"allocate (\d+) bytes", text)
    return float(plain[1]) if plain else 0.0


def find_frame(trace: TracebackType | None) -> tuple[FrameType, int] | None:
    """Return the innermost frame of the user's, with its line."""
    frames = [pair for pair in _iter_frames(trace) if is_user_file(pair[0].f_code.co_filename)]
    return frames[-1] if frames else None


def _iter_frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _count_nodes(tensors: list[Tensor]) -> int:
    """Return how many operations the graphs of some tensors hold, up to a limit."""
    seen: set[Any] = set()
    pending = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while pending and len(seen) < MAX_NODES:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        pending += [after for after, _ in node.next_functions if after is not None]
    return len(seen)


def _read_free(device: torch.device, text: str) -> float:
    """Return the bytes that are free on a device, 0 where nobody knows."""
    found = _CUDA_FREE.search(text)
    if found is not None:
        return float(found[1]) * _UNITS[found[2]]
    if device.type != "cpu":
        return 0.0
    psutil = sys.modules.get("psutil")
    return float(psutil.virtual_memory().available) if psutil is not None else 0.0
