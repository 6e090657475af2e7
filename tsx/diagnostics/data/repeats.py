"""Batches that come again: a checksum of what each call is given tells.

Only what was made anew counts: who hands in the very same tensor twice means it. A second epoch in
a new order is healthy, one in the same order a remark.

Not covered: a few samples that come again in batches of others.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from registry.events import Severity
from tsx.diagnostics.arguments import is_mask
from tsx.diagnostics.data.checksums import measure_checksum, read_checksums
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.tracing.loop_lines import LineWatch, seeds_all

KIND = "repeated-data"
MAX_CALLS = 16_384  # that are remembered, as a number each: the longest epoch that is known again
RECENT = 64  # calls in which runs are looked for
MAX_DEVICE_CALLS = 256  # first calls with batches on an accelerator; later ones only when looked at
MIN_SAME = 3  # calls in a row with the same batch
MIN_RUNS = 3  # of equal length, each of one batch: workers that read the same stream
MIN_PERIOD = 2  # batches of an epoch
MIN_EPOCHS = 1.5  # that were the same again
MIN_ELEMENTS = 8  # of a tensor that may be said to be the same: a flag often is
# mechanism -> cause, fix
SAID = {
    "iterator-restarted": (
        "each step is given the same batch",
        "make the iterator once, before the loop; say fixed_batch=True if it is meant",
    ),
    "stream-not-sharded": (
        "each batch is served several times in a row: every worker reads all of the stream",
        "give each worker its share of the stream: get_worker_info() in __iter__",
    ),
    "worker-seed": (
        "workers draw the same random numbers: each has a copy of one generator",
        "seed each worker in worker_init_fn, or draw with torch's generator, which the loader "
        "seeds for each worker",
    ),
    "sampler-epoch": (
        "each epoch serves the same batches in the same order",
        "shuffle, and call sampler.set_epoch(epoch) before each epoch",
    ),
    "reseeded": (
        "the generator is seeded in each step: every step draws the same numbers",
        "seed once, before the loop",
    ),
}


class Seen(NamedTuple):
    """What one call was given."""

    step: int
    sums: tuple[int, ...]  # a checksum for each tensor
    fn: CodeType | None


class RepeatedData(Detector):
    """Remembers the checksums of batches."""

    name = KIND
    kinds = (
        Kind(
            KIND,
            "The same batch, or the same noise, comes again: an iterator that is made anew each "
            "step, workers that share one stream or one seed, epochs in one order, a generator "
            "that is seeded in the loss.",
            "Training loss was perfect, validation was not: each step took the first batch of a "
            "new iterator. Augmentation was the same in every worker and every epoch, for years, "
            "in many projects: each worker has a copy of one generator.",
            "Which calls were given the same, how often, and the line that starts over.",
            "Make the iterator once; give each worker its share of the stream and a seed of its "
            "own; call sampler.set_epoch; seed once, before the loop.",
        ),
    )

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.is_constant = scene.config is None  # a recipe's own stream repeats nothing
        self._calls: deque[Seen] = deque(maxlen=RECENT)
        self._latest: list[weakref.ref[Tensor]] = []
        self._is_reused = False  # the same tensors were handed in on purpose
        self._last: dict[tuple[int, ...], int] = {}  # checksums to the number of the call
        self._number = 0
        self._repeats = 0  # calls that had a tensor in common with the one before
        self._matched = 0  # calls in a row that were the same one epoch ago
        self._period = 0
        self._lines = LineWatch("manual_seed", "__iter__")
        self._asks = False  # for the line that starts over
        self._is_told = False
        self._is_meant = is_meant(scene)

    def before_call(self, call: Call) -> None:
        """Take a checksum of what the call is given."""
        if self._asks:
            self._finish_asking()
        if self._is_meant or not (call.is_training and call.is_grad) or self._is_told:
            return
        given = _list_telling(call)
        if not given or (given[0].device.type != "cpu" and not self._takes_device(call)):
            return
        self._is_reused = self._is_reused or self._has_same(given)
        self._latest = [weakref.ref(tensor) for tensor in given]
        if self._is_reused:
            return
        sums = [total for tensor in given if (total := measure_checksum(tensor)) is not None]
        fn, step = getattr(call.fn, "__code__", None), call.step
        if sums:
            read_late = self.scene.voice.read_late
            read_checksums(sums, read_late, lambda found: self._note(Seen(step, found, fn)))

    def after_call(self, call: Call) -> None:
        """Watch the loop where a line is missing."""
        if self._asks:
            self._lines.start()

    def pause(self) -> None:
        """Look at no lines until steps are shown again."""
        self._lines.stop()

    def close(self, *, is_whole: bool) -> None:
        """Let go of the loop."""
        self._lines.stop()

    def _takes_device(self, call: Call) -> bool:
        return call.is_looked or call.index <= MAX_DEVICE_CALLS

    def _has_same(self, given: Sequence[Tensor]) -> bool:
        """Return whether a call is given tensors of the call before, or views of them."""
        old = [tensor for ref in self._latest if (tensor := ref()) is not None]
        return any(
            one is two or (one.data_ptr() == two.data_ptr() and one.numel() == two.numel())
            for one in old
            for two in given
            if one.layout is two.layout is torch.strided
        )

    def _note(self, seen: Seen) -> None:
        """Compare a call with those before it."""
        before = self._calls[-1].sums if self._calls else ()
        self._repeats += any(one == two for one, two in zip(seen.sums, before, strict=False))
        self._calls.append(seen)
        self._number += 1
        last = self._last.get(seen.sums)
        self._last[seen.sums] = self._number
        if len(self._last) > MAX_CALLS:
            self._last.pop(next(iter(self._last)))
        if self._is_told:
            return
        if self._is_in_a_row(last):
            return
        if self._repeats >= MIN_RUNS and self._judge_runs():
            return
        lag = self._number - last if last is not None else 0
        self._matched = self._matched + 1 if lag and lag == self._period else int(bool(lag))
        self._period = lag
        if lag >= MIN_PERIOD and self._matched >= MIN_EPOCHS * lag:
            self._tell("sampler-epoch", {"batches": lag}, severity=Severity.INFO)

    def _is_in_a_row(self, last: int | None) -> bool:
        """Return whether the same batch came again and again; ask for the line that starts over."""
        recent = list(self._calls)[-MIN_SAME:] if last == self._number - 1 else []
        if len(recent) < MIN_SAME or len({seen.sums for seen in recent}) > 1:
            return False
        if len({seen.step for seen in recent}) == len(recent) and not self._asks:
            self._asks = True
        return True

    def _judge_runs(self) -> bool:
        """Runs of equal calls, all of one length, are as many workers that read the same."""
        recent = list(self._calls)
        if len({seen.fn for seen in recent}) > 1 or len({len(seen.sums) for seen in recent}) > 1:
            return False
        width = len(recent[0].sums)
        whole = _find_run_length([(seen.sums, seen.step) for seen in recent])
        if whole:
            self._tell("stream-not-sharded", {"times": whole})
            return True
        for index in range(width):
            others = [seen.sums[:index] + seen.sums[index + 1 :] for seen in recent]
            if len(set(others)) < len(others) // 2 or not others[0]:
                continue
            length = _find_run_length([((seen.sums[index],), seen.step) for seen in recent])
            if length:
                self._tell("worker-seed", {"times": length, "argument": index + 1})
                return True
        return False

    def _finish_asking(self) -> None:
        """Say which line starts over, once the loop was watched."""
        if not self._lines.is_on:
            return
        self._lines.stop()
        self._asks = False
        seeds = [call.where for call in self._lines.calls if seeds_all(call)]
        loaders = [call for call in self._lines.calls if _is_loader(call.owner)]
        self._lines.forget()
        if loaders and all(_count_batches(call.owner) == 1 for call in loaders):
            self._is_meant = True  # all data are one batch
        elif seeds and not loaders:
            self._tell("reseeded", {"calls": MIN_SAME}, where=seeds[-1])
        else:
            # Without a line it may be all the data there are, made anew for each step.
            where = loaders[-1].where if loaders else ""
            severity = Severity.WARNING if where else Severity.INFO
            self._tell("iterator-restarted", {"calls": MIN_SAME}, where=where, severity=severity)

    def _tell(
        self,
        mechanism: str,
        evidence: dict[str, Any],
        *,
        where: str = "",
        severity: Severity = Severity.WARNING,
    ) -> None:
        """Report what comes again; one such finding is enough."""
        self._is_told = True
        self._last.clear()
        cause, fix = SAID[mechanism]
        self.scene.report(
            KIND,
            mechanism,
            cause,
            fix,
            severity=severity,
            phase="data",
            where=where,
            evidence=evidence,
        )


def is_meant(scene: Scene) -> bool:
    """Return whether one batch is repeated on purpose."""
    config = scene.config
    return scene.declared.fixed_batch or bool(config is not None and config.train.fixed_batches)


def _list_telling(call: Call) -> list[Tensor]:
    """Return the tensors that say which batch it is: a mask, a flag or a count may come again."""
    if not call.kwargs and all(type(value) is Tensor for value in call.args):
        named = [("", value) for value in call.args]
    else:
        named = list(call.name_tensors().items())
    return [t for name, t in named if t.ndim and t.numel() >= MIN_ELEMENTS and not is_mask(name, t)]


def _find_run_length(items: Sequence[tuple[tuple[int, ...], int]]) -> int:
    """Return the length of the last runs of equal items if it is the same for all, else 0.

    Args:
        items: checksums and step; a run within one step is meant, and counts as one item.
    """
    runs: list[list[Any]] = []
    for sums, step in items:
        if runs and runs[-1][0] == sums:
            if step == runs[-1][1]:
                return 0
            runs[-1][1:] = [step, runs[-1][2] + 1]
        else:
            runs.append([sums, step, 1])
    whole = runs[:-1]  # the last one may go on
    lengths = {length for _, _, length in whole}
    values = {run[0] for run in whole}
    if len(whole) < MIN_RUNS or len(lengths) != 1 or len(values) < 2:
        return 0
    length = int(lengths.pop())
    return length if length >= 2 else 0


def _is_loader(owner: Any) -> bool:
    """Return whether an iterator was made of a loader: modules and tensors have some too."""
    return isinstance(owner, torch.utils.data.DataLoader)


def _count_batches(loader: Any) -> int:
    """Return how many batches a loader has; 0 where it does not say."""
    try:
        return len(loader)
    except Exception:
        return 0
