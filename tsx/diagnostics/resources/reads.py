"""Calls of Python that cost a step dearly: numbers read one by one, loaders begun for one batch.

On steps that are looked at, `Tensor.item` and `DataLoader.__iter__` are stood in for by versions
that count who calls; they are put back when the step ends. What they return does not change.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from registry.events import Severity
from tsx.diagnostics.detector import Call, Detector, Scene
from tsx.diagnostics.engine import has_compiled_parts
from tsx.diagnostics.resources.compiled_lines import is_user_file
from tsx.diagnostics.resources.waste import THROUGHPUT
from tsx.diagnostics.tracing.places import shorten

MAX_READS = 50  # of one line in a step: a handful of metrics is no matter
MIN_BEGUN = 3  # steps in a row that begin a loader: once an epoch is right


class Reads(Detector):
    """Counts the numbers that are read and the loaders that are begun in a step."""

    name = "reads"
    kinds = (THROUGHPUT,)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._is_counting = False
        self._reads: Counter[str] = Counter()
        self._begun: list[str] = []  # lines that began a loader since the last call
        self._in_a_row: Counter[str] = Counter()
        self._is_told: set[str] = set()
        self._compiled = _find_last_compiled()

    def begin_look(self, step: int) -> None:
        """Count from here on."""
        if not self._is_counting and len(self._is_told) < 2 and not self._is_compiling():
            self._is_counting = True
            _READS.begin(self._note_read)
            _LOADERS.begin(self._note_begin)

    def before_call(self, call: Call) -> None:
        """See which loaders were begun for this batch."""
        if not self._is_counting:
            return
        begun, self._begun = self._begun, []
        for line in list(self._in_a_row):
            if line not in begun:
                del self._in_a_row[line]
        for line in set(begun):
            self._in_a_row[line] += 1
            if self._in_a_row[line] == MIN_BEGUN:
                self._tell_loader(line)

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Put everything back; see what was read."""
        if not self._is_counting:
            return
        self.pause()
        reads, self._reads = self._reads, Counter()
        for where, count in reads.most_common(1):
            if count > MAX_READS:
                self._tell_reads(where, count)

    def pause(self) -> None:
        """Put everything back."""
        if self._is_counting:
            self._is_counting = False
            _READS.end(self._note_read)
            _LOADERS.end(self._note_begin)

    def close(self, *, is_whole: bool) -> None:
        """Put everything back."""
        self.pause()

    def _is_compiling(self) -> bool:
        """Return whether the compiler may be at work: it must not see other methods."""
        return _find_last_compiled() is not self._compiled or has_compiled_parts(self.scene.model)

    def _note_read(self, tensor: Any) -> None:
        where = _find_caller()
        if where:
            self._reads[where] += 1

    def _note_begin(self, loader: Any) -> None:
        try:
            has_more = len(loader) > 1
        except TypeError:  # a stream has no length
            has_more = True
        where = _find_caller()
        if has_more and where:
            self._begun.append(where)

    def _tell_reads(self, where: str, count: int) -> None:
        """Report numbers that are read one by one: a wait for the device each."""
        on_host = all(p.device.type == "cpu" for p in self.scene.model.parameters())
        self._is_told.add("reads")
        self.scene.report(
            "throughput",
            "host-syncs",
            "numbers are read to the host one by one; on an accelerator each read waits for it",
            "gather them into one tensor and read it once, or read every hundredth step",
            severity=Severity.INFO if on_host else Severity.WARNING,
            phase="optimizer",
            where=shorten(where),
            evidence={"reads_a_step": count},
        )

    def _tell_loader(self, where: str) -> None:
        """Report a loader that is begun anew for each batch."""
        self._is_told.add("loader")
        self.scene.report(
            "throughput",
            "loader-rebuilt",
            "a loader is begun anew for each batch: it shuffles all data and starts its workers "
            "for one batch",
            "begin it once an epoch: for batch in loader",
            phase="data",
            where=shorten(where),
            evidence={"steps_in_a_row": MIN_BEGUN},
        )


class _Counted:
    """A method that is stood in for while anybody counts its calls: of several models, perhaps.

    Args:
        owner: class of the method.
        name: of it.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._notes: tuple[Callable[[Any], None], ...] = ()
        self._is_in = False
        self._put_back: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def begin(self, note: Callable[[Any], None]) -> None:
        """Tell of each call from here on."""
        with self._lock:
            self._notes += (note,)
            if not self._is_in:
                self._is_in = True
                self._stand_in()

    def end(self, note: Callable[[Any], None]) -> None:
        """Tell no more; the last one puts the method back."""
        with self._lock:
            self._notes = tuple(other for other in self._notes if other != note)
            if not self._notes:
                self._put_back()

    def _stand_in(self) -> None:
        owner, name = self._owner, self._name
        had = name in vars(owner)
        method = getattr(owner, name)

        @wraps(method)
        def counted(this: Any, *args: Any, **kwargs: Any) -> Any:
            for note in self._notes:
                note(this)
            return method(this, *args, **kwargs)

        def put_back() -> None:
            if vars(owner).get(name) is not counted:
                return  # somebody else stands in for it by now, and goes through this one
            if had:
                setattr(owner, name, method)
            else:
                delattr(owner, name)
            self._is_in = False

        self._put_back = put_back
        setattr(owner, name, counted)


_READS = _Counted(torch.Tensor, "item")
_LOADERS = _Counted(DataLoader, "__iter__")


def _find_caller() -> str:
    """Return the line that called, "" where it is none of the user's."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back  # type: ignore[assignment]
    path = "" if frame is None else frame.f_code.co_filename
    return f"{path}:{frame.f_lineno}" if path and is_user_file(path) else ""


def _find_last_compiled() -> Any:
    """Return torch's record of the newest compilation, None where there was none."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    records = [] if dynamo is None else dynamo.get_compilation_metrics()
    return records[-1] if records else None
