"""What keeps torch.compile from helping: recompilations, their limit, breaks of the graph.

torch keeps a list of what it compiled, with its reasons; this reads it after each step. A callback
at the begin of each compilation notes who called. Not covered: graphs that other backends drop.
"""

from __future__ import annotations

import linecache
import logging
import re
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from registry.events import Severity
from tsx.diagnostics.detector import Detector, Kind, Scene
from tsx.diagnostics.module_names import is_inside
from tsx.diagnostics.resources.compiled_lines import (
    Frame,
    find_assignment,
    find_enclosing,
    find_module,
    find_use,
    find_user_frame,
)
from tsx.diagnostics.tracing.places import shorten

# One recompilation makes a size dynamic, one is for eval mode, one for a last, smaller batch.
MAX_RECOMPILES = 2
PATIENCE = 20  # steps that are waited for torch to give up on what is compiled all the time
MAX_RECORDS = 1000  # that torch keeps for us
_RESUME = re.compile(r"^torch_dynamo_resume_in_(.+)_at_(\d+)$")
_LIMIT = re.compile(r"function: '(.+)' \((.+):(\d+)\)")
_READS = re.compile(r"\.(item|tolist|numpy|cpu)\(|\b(float|int|bool)\(|\bprint\(")

RECOMPILE = Kind(
    "recompile",
    "A compiled function is compiled again and again, for a reason that does not go away.",
    "A module counted its calls in a Python number; each step compiled for some seconds more.",
    "`function`, the guard that failed as `reason`, how often, and the `seconds` it took.",
    "Keep what changes in a tensor, give all batches one shape, or compile with dynamic=True.",
)
LIMIT = Kind(
    "recompile-limit",
    "A function was compiled so often that torch gave up: it runs as it was written from now on.",
    "Experts were given their own rows, a new shape each step. After 8 shapes torch ran all of "
    "them uncompiled, and compiling was said not to help.",
    "`function`, the `limit`, the last `reason` and the `seconds` that were spent.",
    "Make the shape constant: pad or sort rows into one grouped product.",
)
BREAK = Kind(
    "graph-break",
    "The compiled graph ends in the middle of a function: data has to come to the host there.",
    "A `.item()` for a progress bar cut each block into two graphs.",
    "The `function`, the `reason`, how many graphs it is cut into.",
    "Keep the value on the device, use torch.where for a branch, move printing out of forward.",
)
CUDAGRAPH = Kind(
    "cudagraph",
    "CUDA graphs were asked for and are not used.",
    "A run in reduce-overhead mode was as slow as without: an input was on the CPU.",
    "How many graphs were skipped, and the `reason`.",
    "Move all inputs to the device and leave them unchanged in forward.",
)
_SHAPE_FIX = "give every call one shape (pad, bucket or sort), or compile with dynamic=True"
_FIXES = {
    "shape": _SHAPE_FIX,
    "shape-of-routed-rows": "sort the rows by expert and use one grouped product of constant shape",
    "python-number": "keep the number in a tensor (a buffer), or out of what is compiled",
    "buffer-replaced": "register the largest table once in __init__ and slice it",
    "global-state": "switch grad mode, autocast or training mode outside of what is compiled",
    "guard": "keep what the reason names constant, or out of what is compiled",
}
_CAUSES = {
    "shape": "each new shape of an input is compiled anew",
    "shape-of-routed-rows": "rows are picked by data, so a call has another shape each time",
    "python-number": "the graph depends on a Python number that changes from call to call",
    "buffer-replaced": "a buffer is registered anew in forward, so the graph is built anew",
    "global-state": "the graph depends on a state of torch that changes from call to call",
    "guard": "what the graph was compiled for does not hold any more",
}


@dataclass(slots=True)
class History:
    """What became of one function.

    Attributes:
        reasons: of the recompilations, the guards that failed.
        seconds: that recompilations took.
        steps: in which they fell.
        where: line that called it, and the module whose line that is.
    """

    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0
    steps: list[int] = field(default_factory=list)
    where: str = ""
    caller: str = ""
    module: str = ""
    is_told: bool = False

    @property
    def is_fast(self) -> bool:
        """Whether several recompilations fell into one step: shapes differ from call to call."""
        return len(set(self.steps)) < len(self.steps)


class Break(NamedTuple):
    """Where a graph ends."""

    file: str
    line: int
    function: str
    module: str


class Compilation(Detector):
    """Reads what torch says of its compilations."""

    name = "compilation"
    is_constant = True
    kinds = (RECOMPILE, LIMIT, BREAK, CUDAGRAPH)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._last: Any = None  # newest record that was read
        self._frames: dict[Frame, History] = {}
        self._callers: dict[str, tuple[str, str]] = {}  # by compile id
        self._is_listening = False
        self._is_suspect = False
        self._has_new = False
        self._buffers = {id(m): _sketch(m) for m in scene.model.modules() if m._buffers}
        self._skipped_before = _count_skips()
        self._limits = _LimitHandler()
        logging.getLogger("torch._dynamo.convert_frame").addHandler(self._limits)
        self._listen()

    def begin_look(self, step: int) -> None:
        """Listen as soon as the program has loaded the compiler."""
        self._listen()

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Read what was compiled since the last step."""
        if "torch._dynamo" not in sys.modules:
            return
        if not self._is_listening:
            self._listen()
        if not (self._has_new or self._is_suspect or self._limits.texts):
            return
        self._has_new = False
        records = torch._dynamo.utils.get_compilation_metrics()
        new = []
        for record in reversed(records):
            if record is self._last:
                break
            new.append(record)
        if new:
            self._last = new[0]
            breaks = [found for r in reversed(new) if (found := self._read(r, step)) is not None]
            for found in breaks:  # a caller's graph ends where its callee's does
                if not any(is_inside(other.module, found.module) for other in breaks):
                    tell_break(self.scene, found)
        for text in self._limits.take():
            self._tell_limit(text)
        if self._is_suspect:
            self._judge(step)

    def close(self, *, is_whole: bool) -> None:
        """Listen no more."""
        logging.getLogger("torch._dynamo.convert_frame").removeHandler(self._limits)
        if self._is_listening:
            self._is_listening = False
            _get_callbacks().remove_start_callback(self._begin)
        skipped = _count_skips() - self._skipped_before
        if skipped > 0:
            tell_skips(self.scene, skipped)

    def _listen(self) -> None:
        if self._is_listening or "torch._dynamo" not in sys.modules:
            return
        torch._dynamo.utils.set_compilation_metrics_limit(MAX_RECORDS)
        records = torch._dynamo.utils.get_compilation_metrics()
        self._last = records[-1] if records else None
        _get_callbacks().register_start_callback(self._begin)
        self._is_listening = True

    def _begin(self, args: Any) -> None:
        """Note who called what is compiled now; runs inside torch, so it must not raise."""
        self._has_new = True
        try:
            frame = find_user_frame()
            if frame is not None and len(self._callers) < MAX_RECORDS:
                owner = frame.f_locals.get("self")
                module = self.scene.modules.get(id(owner), "")
                where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                self._callers[str(args.compile_id)] = (shorten(where), module)
        except Exception:  # who called is good to know, no more
            return

    def _read(self, record: Any, step: int) -> Break | None:
        """Take one record of torch; return the break of a graph that it tells of."""
        if not record.co_name or not record.co_filename:
            return None
        frame = Frame(record.co_filename, record.co_firstlineno or 0, record.co_name)
        history = self._frames.setdefault(frame, History())
        where, caller = self._callers.get(str(record.compile_id), ("", ""))
        history.where, history.caller = history.where or where, history.caller or caller
        history.module = history.module or find_module(self.scene.model, frame) or caller
        resumed = _RESUME.match(frame.name)
        if resumed:
            module = find_enclosing(self.scene.model, frame.file, resumed[1], int(resumed[2]))
            return Break(frame.file, int(resumed[2]), resumed[1], module)
        if record.recompile_reason:
            history.reasons.append(_shorten_reason(record.recompile_reason))
            history.steps.append(step)
            history.seconds += record.entire_frame_compile_time_s or 0.0
            self._is_suspect = self._is_suspect or len(history.reasons) > MAX_RECOMPILES
        return None

    def _judge(self, step: int) -> None:
        """Report what is compiled too often, once."""
        self._is_suspect = False
        for frame, history in self._frames.items():
            if len(history.reasons) <= MAX_RECOMPILES or history.is_told:
                continue
            if history.is_fast and step - history.steps[-1] < PATIENCE:
                self._is_suspect = True  # the limit is near, and says more
                continue
            history.is_told = True
            mechanism, where = self._explain(frame, history)
            self.scene.report(
                "recompile",
                mechanism,
                _CAUSES[mechanism],
                _FIXES[mechanism],
                phase="forward",
                module=history.module,
                op=frame.name,
                where=where,
                evidence=_describe(frame, history),
            )

    def _explain(self, frame: Frame, history: History) -> tuple[str, str]:
        """Return mechanism and guilty line of a function that is compiled again and again."""
        last = history.reasons[-1]
        module = self._get_module(history.module)
        if module is not None:
            line = self._find_replaced(module)
            if line:
                return "buffer-replaced", line
        if "mismatch" in last:
            mechanism = "shape-of-routed-rows" if history.is_fast else "shape"
            return mechanism, history.where if history.is_fast else shorten(
                f"{frame.file}:{frame.line}"
            )
        if "GLOBAL_STATE" in last or "grad_mode" in last:
            return "global-state", history.where
        where = find_use(frame, last)
        is_number = re.search(r"== -?\d|== (True|False)", last) is not None
        return ("python-number" if is_number else "guard"), where

    def _find_replaced(self, module: nn.Module) -> str:
        """Return the line that registers a buffer of a module anew, "" where none is."""
        before = self._buffers.get(id(module), {})
        now = _sketch(module)
        for name, sketch in now.items():
            if before.get(name, sketch) != sketch:
                return find_assignment(module, name)
        return ""

    def _get_module(self, name: str) -> nn.Module | None:
        return dict(self.scene.model.named_modules()).get(name)

    def _tell_limit(self, text: str) -> None:
        """Report a function that torch compiles no more."""
        found = _LIMIT.search(text)
        if found is None:
            return
        frame = Frame(found[2], int(found[3]), found[1])
        history = self._frames.get(frame, History())
        if not history.module:
            history.module = find_module(self.scene.model, frame)
        reason = text.partition("last reason: ")[2].partition("\n")[0]
        history.reasons = history.reasons or [_shorten_reason(reason)]
        history.is_told = True
        mechanism, where = self._explain(frame, history)
        limit = re.search(r"limit \((\d+)\)", text)
        self.scene.report(
            "recompile-limit",
            mechanism,
            f"{_CAUSES[mechanism]}; torch has given up and runs it uncompiled",
            _FIXES[mechanism],
            phase="forward",
            module=history.module,
            op=frame.name,
            where=where,
            evidence={**_describe(frame, history), "limit": int(limit[1]) if limit else 0},
        )


class _LimitHandler(logging.Handler):
    """Keeps what torch says when it gives a function up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message about a limit."""
        text = str(record.msg) % record.args if record.args else str(record.msg)
        if "recompile_limit" in text or "cache_size_limit" in text:
            self.texts = [*self.texts[-20:], text]

    def take(self) -> list[str]:
        """Return what was kept since the last time."""
        texts, self.texts = self.texts, []
        return list(dict.fromkeys(texts))


def tell_break(scene: Scene, found: Break) -> None:
    """Report that a graph ends at a line."""
    source = linecache.getline(found.file, found.line).strip()
    if re.match(r"(if|elif|while|assert)\b", source):
        mechanism = "data-dependent-branch"
        cause = "the graph ends where a branch depends on data"
        fix = "compute both ways and choose with torch.where, or take the branch out of forward"
    elif _READS.search(source):
        mechanism, cause = "item", "the graph ends where a value is read to the host"
        fix = "keep the value on the device; read it outside of what is compiled"
    else:
        mechanism, cause = "unsupported", "the graph ends where the compiler cannot follow"
        fix = "move this line out of what is compiled, or write it in torch operations"
    scene.report(
        "graph-break",
        mechanism,
        cause,
        fix,
        phase="forward",
        module=found.module,
        op=found.function,
        where=shorten(f"{found.file}:{found.line}"),
        evidence={"function": found.function, "line": source[:200]},
    )


def _count_skips() -> int:
    """Return how often this process left CUDA graphs out, whatever the loop."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["inductor"]["cudagraph_skips"])


def tell_skips(scene: Scene, count: int) -> None:
    """Report CUDA graphs that are not used; on a CPU there are none to use."""
    device = next((p.device.type for p in scene.model.parameters()), "cpu")
    on_cpu = device == "cpu"
    scene.report(
        "cudagraph",
        "no-device" if on_cpu else "skipped",
        "CUDA graphs were asked for and a CPU has none"
        if on_cpu
        else "graphs were left out of CUDA graphs: an input on the CPU, or one that is written",
        "leave reduce-overhead out on a CPU"
        if on_cpu
        else 'TORCH_LOGS="perf_hints" names each; move inputs to the device, write none',
        severity=Severity.INFO if on_cpu else Severity.WARNING,
        evidence={"skipped": count},
    )


def _sketch(module: nn.Module) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return identity and shape of a module's own buffers."""
    held = {n: b for n, b in module._buffers.items() if b is not None and not is_lazy(b)}
    return {name: (id(buffer), tuple(buffer.shape)) for name, buffer in held.items()}


def _describe(frame: Frame, history: History) -> dict[str, Any]:
    return {
        "function": frame.name,
        "defined_at": shorten(f"{frame.file}:{frame.line}"),
        "reason": history.reasons[-1] if history.reasons else "",
        "recompilations": len(history.reasons),
        "seconds": round(history.seconds, 3),
        **({"called_from": history.where} if history.where else {}),
    }


def _shorten_reason(reason: str) -> str:
    """Return the guard that failed, without the stack and the number of the cache entry."""
    first = reason.partition("\nUser stack")[0].partition(" (HINT")[0]
    return re.sub(r"^\d+/\d+: ", "", re.sub(r"\s+", " ", first))[:400]


def _get_callbacks() -> Any:
    """Return where torch lets one listen to its compilations."""
    from torch._dynamo.callback import callback_handler

    return callback_handler
