"""What travels between the poller's thread and the screens: one request, one frozen snapshot.

Screens say what they look at (`Focus`); the poller answers with everything they show (`Snapshot`).
Nothing here touches a database, and nothing in a snapshot changes after it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from textual.message import Message

from registry.views import RunDetail, RunRow, Series
from tsx.loss_names import TRAIN_LOSSES, VAL_LOSSES

PAGE_RUNS = 600  # runs listed at once: those in view, and a few screens up and down
SPEED_KEYS = ("train/mfu", "train/toks_per_sec", "train/step_time_ms")
RUN_KEYS = (*TRAIN_LOSSES, *VAL_LOSSES, *SPEED_KEYS)  # read of every run that is listed


@dataclass(frozen=True, slots=True)
class Focus:
    """The run a screen shows, and whether it shows all of it or the overview's curves only."""

    run_id: str = ""  # empty: the newest run
    full: bool = False
    first: int = 0  # place in the list, newest first, from which on runs are listed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the dashboard shows, as of one look at the registry."""

    runs: tuple[RunRow, ...] = ()  # a page of the list, newest first, with the values of RUN_KEYS
    first: int = 0  # place of the page's first run in the whole list
    num_runs: int = 0  # in the whole list
    num_running: int = 0
    run_id: str = ""  # the run that curves and detail belong to
    curves: Mapping[str, Series] = field(default_factory=dict)
    detail: RunDetail | None = None  # only where the focus asked for it
    trouble: str = ""  # why the registry cannot be read right now; what is shown is older then

    def find_run(self, run_id: str) -> RunRow | None:
        """Return the run of that id, or None when it is neither listed nor the one in detail."""
        if self.detail is not None and self.detail.run.id == run_id:
            return self.detail.run
        return next((run for run in self.runs if run.id == run_id), None)


class SnapshotTaken(Message):
    """The poller has looked again."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def can_replace(self, message: Message) -> bool:
        """Let a newer snapshot take the place of one that still waits to be shown."""
        return isinstance(message, SnapshotTaken)


class FocusMoved(Message):
    """A screen looks at something else now; the app tells the poller."""
