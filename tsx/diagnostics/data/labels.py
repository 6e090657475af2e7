"""Labels that are never trained: a class that is ignored, an end that is masked as padding.

Rare classes are no fault: a label is said to be missing only where the data hold so many of it that
its absence cannot be chance.

Shapes: B samples, T times of the input, S times of the labels, V classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsx.diagnostics.data.sequences import Aligned, line_up, list_inputs
from tsx.diagnostics.detector import Call, Detector, Scene
from tsx.diagnostics.tracing.loop_lines import Maker
from tsx.diagnostics.tracing.loss_calls import CLASSIFIES, KIND, LossCall, read_loss
from tsx.diagnostics.tracing.tape import OpSeen

MAX_CHANCE = 1e-6  # that a class of its share in the texts is in no label, by chance
MIN_TEXT = 8  # occurrences of a token in the texts
MIN_MATCH = 0.8  # of labels that are the next token: a language model's
MIN_PADDED = 5  # rows that end in the same token twice: it is the padding
MIN_IGNORED = 5  # samples of a class that is ignored
SHARES = (1 / 3, 1.5)  # of a class against its fair share; a mark for "no label" is more common
MIN_LABELS = 20
MAX_CLASSES = 1_000_000


@dataclass(slots=True)
class Tally:
    """Counts over the traced calls, on the device of the labels."""

    labels_V: Tensor  # that are trained
    passed_V: Tensor  # next tokens whose label is another one
    inside_V: Tensor  # next tokens that alone are left out, with text before and after
    padded_V: Tensor  # rows that end in it
    first_V: Tensor  # rows that begin with it
    totals: Tensor  # rows; rows whose last label alone is left out; labels; labels that match


class NeverTrained(Detector):
    """Counts which labels a cross-entropy is given."""

    name = "labels"
    functions = CLASSIFIES

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._call: Call | None = None  # under way
        self._tallies: dict[str, Tally] = {}  # by the line of the loss
        self._counts: dict[str, Tensor] = {}
        self._maker = Maker()
        self._told: set[str] = set()

    def before_call(self, call: Call) -> None:
        """Keep what the call is given while it is traced."""
        self._maker.begin_call(call)
        self._call = call

    def after_call(self, call: Call) -> None:
        """Let go of it."""
        self._call = None
        self._maker.end_call()

    def saw_function(self, seen: OpSeen) -> None:
        """Count the labels of a loss."""
        loss = read_loss(seen)
        if loss is None or not loss.is_by_class or loss.where in self._told:
            return
        given = {} if self._call is None else self._call.name_tensors()
        classes = loss.input.shape[1 if loss.input.ndim > 1 else 0]
        if not 2 <= classes <= MAX_CLASSES:
            return
        if loss.target.ndim == 1 and 0 <= loss.ignored < classes and _is_per_sample(loss, given):
            self._count_ignored(loss, classes)
        for pair in line_up(loss, list_inputs(given, loss.target, ())):
            if pair.x.ndim == 2:
                is_given = any(loss.target.data_ptr() == t.data_ptr() for t in given.values())
                self._count_text(loss, pair, classes, is_given=is_given)
                return

    def close(self, *, is_whole: bool) -> None:
        """Let go of the loop."""
        self._maker.close()

    def _count_ignored(self, loss: LossCall, classes: int) -> None:
        """A class of its fair share that is ignored is no mark for what has no label."""
        target = loss.target.detach().clamp(0, classes - 1)
        counts = torch.bincount(target, minlength=classes)
        held = self._counts.get(loss.where)
        if held is not None and held.shape == counts.shape:
            counts = counts + held
        self._counts[loss.where] = counts
        number = counts[loss.ignored]
        values = torch.stack([number, counts.sum(), (counts > 0).sum()])

        def take(found: Sequence[int]) -> None:
            number, total, kinds = found
            share = number * kinds / max(total, 1)
            if (
                number < MIN_IGNORED
                or total < MIN_LABELS
                or kinds < 2
                or not SHARES[0] <= share <= SHARES[1]
            ):
                return
            self._told.add(loss.where)
            self.scene.report(
                KIND,
                "label-never-trained",
                f"ignore_index={loss.ignored} leaves out class {loss.ignored}, which is as common "
                "as the others",
                "leave ignore_index at -100, and give that label to what has none",
                phase="forward",
                module=loss.module,
                where=loss.where,
                evidence={"label": loss.ignored, "ignored": number, "labels": total},
            )

        self.scene.voice.read_late(values, take)

    def _count_text(self, loss: LossCall, pair: Aligned, classes: int, *, is_given: bool) -> None:
        """Count tokens against the labels that should have been theirs."""
        tally = self._tallies.get(loss.where)
        if tally is None or tally.labels_V.shape[0] != classes:
            one, two, three, four, five = pair.y.new_zeros(5, classes, dtype=torch.int64)
            totals = pair.y.new_zeros(4, dtype=torch.int64)
            tally = Tally(one, two, three, four, five, totals)
            self._tallies[loss.where] = tally
        _add(tally, pair, classes)
        missing_V = (tally.labels_V == 0) & (2 * tally.first_V < tally.totals[0])
        values = []
        for counts_V in (tally.passed_V, tally.inside_V):
            most, label = (counts_V * missing_V).max(0)
            values += [label, most, tally.padded_V[label]]
        step = self.scene.step

        def take(found: Sequence[int]) -> None:
            self._judge(loss, found, step, is_given=is_given)

        self.scene.voice.read_late(torch.cat([torch.stack(values), tally.totals]), take)

    def _judge(self, loss: LossCall, found: Sequence[int], step: int, *, is_given: bool) -> None:
        """Report the end of all texts that is never a label."""
        passed, taken, totals = found[:3], found[3:6], found[6:]
        rows, ends, labels, matching = totals
        if loss.where in self._told or not labels:
            return
        # The label at the end of each row is left out, and a token of the texts is in no label.
        if is_given and ends == rows and matching >= MIN_MATCH * labels:
            share = passed[1] / (labels + passed[1])
            if passed[1] >= MIN_TEXT and (1 - share) ** labels < MAX_CHANCE:
                self._tell(loss, passed[0], passed[1], labels, step)
                return
        # What ends the padded rows also ends texts inside of them, and is left out there too.
        if taken[1] >= MIN_TEXT and taken[2] >= MIN_PADDED and matching >= MIN_MATCH * labels:
            share = taken[1] / (labels + taken[1])
            if (1 - share) ** labels < MAX_CHANCE:
                self._tell(loss, taken[0], taken[1], labels, step)

    def _tell(self, loss: LossCall, label: int, number: int, labels: int, step: int) -> None:
        self._told.add(loss.where)

        def tell(where: str) -> None:
            self.scene.report(
                KIND,
                "label-never-trained",
                f"token {label} is in the texts, but never among the labels that count: what ends "
                "a text is left out as if it were padding",
                "mask padding by its place, not by its id, or give padding an id of its own",
                step=step,
                phase="data",
                module=loss.module,
                where=where or loss.where,
                evidence={"label": label, "in_texts": number, "labels": labels},
            )

        self._maker.ask("target", tell)


def _is_per_sample(loss: LossCall, given: Mapping[str, Tensor]) -> bool:
    """Return whether each sample of the batch has one label, of no sequence."""
    size = loss.target.shape[0]
    first = next(iter(given.values()), None)
    is_flat = any(
        t.ndim > 1 and not t.is_floating_point() and t.numel() == size for t in given.values()
    )
    return first is not None and first.ndim > 0 and first.shape[0] == size and not is_flat


def _add(tally: Tally, pair: Aligned, classes: int) -> None:
    """Count one batch."""
    size = min(pair.y.shape[1], pair.x.shape[1] - 1 - pair.offset)
    if size < 2:
        return
    first = 1 + pair.offset
    next_BS = pair.x[:, first : first + size].clamp(0, classes - 1)
    y_BS, counts_BS = pair.y[:, :size], pair.counts[:, :size]
    left_BS = torch.nn.functional.pad(counts_BS[:, :-1], (1, 0))
    after_BS = torch.nn.functional.pad(next_BS[:, 1:], (0, 1), value=-1)
    is_alone = ~counts_BS & left_BS & (after_BS != next_BS) & (after_BS >= 0)
    whole_BS = pair.counts
    ends_B = ~whole_BS[:, -1] & whole_BS[:, -2]

    def count(ids: Tensor) -> Tensor:
        return torch.bincount(ids.flatten().clamp(0, classes - 1), minlength=classes)

    def count_where(is_so: Tensor) -> Tensor:
        return torch.zeros_like(tally.labels_V).index_add(
            0, next_BS.flatten(), is_so.flatten().to(torch.int64)
        )

    labels = torch.where(whole_BS, pair.y, 0).flatten().clamp(0, classes - 1)
    tally.labels_V += torch.zeros_like(tally.labels_V).index_add(
        0, labels, whole_BS.flatten().to(torch.int64)
    )
    tally.passed_V += count_where(counts_BS & (y_BS != next_BS))
    tally.inside_V += count_where(is_alone)
    tally.first_V += count(pair.x[:, 0])
    is_end = pair.x[:, -1] == pair.x[:, -2]
    tally.padded_V += torch.zeros_like(tally.padded_V).index_add(
        0, pair.x[:, -1].clamp(0, classes - 1), is_end.to(torch.int64)
    )
    rows = torch.tensor(len(pair.y), device=pair.y.device)
    matching = (counts_BS & (y_BS == next_BS)).sum()
    tally.totals += torch.stack([rows, ends_B.sum(), counts_BS.sum(), matching])
