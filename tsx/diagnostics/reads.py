"""Calls of Python that cost a step dearly: numbers read one by one, loaders begun for one batch.

On steps that are looked at, `Tensor.item` and `DataLoader.__iter__` are stood in for by versions
that count who calls; they are put back when the step ends. What they return does not change.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from registry.events import Severity
from tsx.diagnostics.compiled_lines import is_user_file
from tsx.diagnostics.detector import Call, Detector, Scene
from tsx.diagnostics.engine import has_compiled_parts
from tsx.diagnostics.origin import shorten
from tsx.diagnostics.waste import THROUGHPUT

MAX_READS = 50  # of one line in a step: a handful of metrics is no matter
MIN_BEGUN = 3  # steps in a row that begin a loader: once an epoch is right


class Reads(Detector):
    """Counts the numbers that are read and the loaders that are begun in a step."""

    name = "reads"
    kinds = (THROUGHPUT,)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._restore: list[Callable[[], None]] = []
        self._reads: Counter[str] = Counter()
        self._begun: list[str] = []  # lines that began a loader since the last call
        self._in_a_row: Counter[str] = Counter()
        self._is_told: set[str] = set()
        self._compiled = _find_last_compiled()

    def begin_look(self, step: int) -> None:
        """Count from here on."""
        if not self._restore and len(self._is_told) < 2 and not self._is_compiling():
            self._restore = [
                _count(torch.Tensor, "item", self._note_read),
                _count(DataLoader, "__iter__", self._note_begin),
            ]

    def before_call(self, call: Call) -> None:
        """See which loaders were begun for this batch."""
        if not self._restore:
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
        if not self._restore:
            return
        self._put_back()
        reads, self._reads = self._reads, Counter()
        for where, count in reads.most_common(1):
            if count > MAX_READS:
                self._tell_reads(where, count)

    def close(self, *, is_whole: bool) -> None:
        """Put everything back."""
        self._put_back()

    def _is_compiling(self) -> bool:
        """Return whether the compiler may be at work: it must not see other methods."""
        return _find_last_compiled() is not self._compiled or has_compiled_parts(self.scene.model)

    def _put_back(self) -> None:
        for restore in self._restore:
            restore()
        self._restore = []

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


def _count(owner: Any, name: str, note: Callable[[Any], None]) -> Callable[[], None]:
    """Stand in for a method; return what puts it back."""
    had = name in vars(owner)
    method = getattr(owner, name)

    @wraps(method)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        note(self)
        return method(self, *args, **kwargs)

    def restore() -> None:
        if had:
            setattr(owner, name, method)
        else:
            delattr(owner, name)

    setattr(owner, name, counted)
    return restore


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
