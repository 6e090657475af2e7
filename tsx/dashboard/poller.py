"""Looks at the registry twice a second from a thread of its own and hands out frozen snapshots.

Asks `data_version` first and reads only when it moved or the focus did; runs come by the page,
curves as outlines and then piece by piece, only what is new. A registry that is locked, gone or
damaged never ends the thread: the last content stays, with the trouble said beside it, and the next
look starts afresh. Writes nothing: bringing dead runs to an end is a function it is handed.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from registry.errors import UnknownRun
from registry.views import RunDetail, RunRow, Series
from tsx.curve_groups import group_keys, list_overview_groups
from tsx.dashboard.messages import PAGE_RUNS, RUN_KEYS, Focus, Snapshot

if TYPE_CHECKING:
    from registry.queries import Cursor  # brings SQLAlchemy, which the first paint does without

LOOK_EVERY_S = 0.5  # twice a second: what feels live, at microseconds a look
RECOVER_EVERY_S = 1.0  # a dead run shows as killed within two seconds
OUTLINE_COLUMNS = 320  # of dots: a chart of 160 cells
MAX_CURVES = 256  # of one run: nobody scrolls through more charts
_MAX_HELD = 64 * OUTLINE_COLUMNS  # points: twice a whole curve, then its outline is read anew


class RegistryReader(Protocol):
    """The part of `registry.queries.Reader` that the dashboard reads with."""

    def data_version(self) -> int:
        """Return a number that changes when anything was written."""

    def list_runs(
        self, *, limit: int | None, offset: int, keys: Collection[str] | None
    ) -> list[RunRow]:
        """Return a page of the runs, newest first, with the last values of some metrics."""

    def count_runs(self) -> dict[str, int]:
        """Return how many runs there are of each status."""

    def get_detail(self, run_id: str) -> RunDetail:
        """Return everything about a run, its curves aside."""

    def list_keys(self, run_id: str) -> list[str]:
        """Return the metric keys of a run."""

    def get_outline_since(
        self, run_id: str, key: str, width: int, cursor: Cursor | None
    ) -> tuple[Series, Cursor]:
        """Return the points after the cursor, an outline where it was rewound; the next cursor."""

    def close(self) -> None:
        """Let go of the registry."""


class Poller:
    """The loop. `run` blocks until `stop`; every other method may be called from any thread."""

    def __init__(
        self,
        open_reader: Callable[[], RegistryReader],
        post: Callable[[Snapshot], None],
        *,
        recover: Callable[[], object] | None = None,
        file: Path | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            open_reader: opens the registry for reading.
            post: takes each new snapshot; called from the thread that runs `run`.
            recover: brings dead runs to an end in the registry; None never does.
            file: the database, where it is a file: that it vanished is then trouble, not news.
        """
        self._open_reader = open_reader
        self._post = post
        self._recover = recover
        self._file = file
        self._reader: RegistryReader | None = None
        self._was_there = False
        self._seen: tuple[int, Focus] | None = None  # (data version, focus) of the last reading
        self._curves = CurveStore()
        self._last = Snapshot()
        self._posted: Snapshot | None = None
        self._focus = Focus()
        self._recovered_at = float("-inf")
        self._recover_trouble = ""
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def set_focus(self, focus: Focus) -> None:
        """Say what to read from now on; the next look is at once."""
        self._focus = focus
        self._wake.set()

    def stop(self) -> None:
        """Ask the loop to end; returns at once."""
        self._stopped.set()
        self._wake.set()

    def run(self) -> None:
        """Look at the registry until stopped."""
        try:
            while not self._stopped.is_set():
                self._wake.clear()
                self.look(time.monotonic())
                self._wake.wait(LOOK_EVERY_S)
        finally:
            self._close()

    def look(self, now: float) -> None:
        """Look once and post a snapshot when there is something new to show."""
        self._recover_runs(now)
        try:
            self._last = replace(self._read(), trouble=self._recover_trouble)
        except Exception as error:  # whatever a damaged registry does, the dashboard stays up
            self._close()
            self._last = replace(self._last, trouble=_explain(error))
        if self._last != self._posted and not self._stopped.is_set():
            self._posted = self._last
            self._post(self._last)

    def _recover_runs(self, now: float) -> None:
        """Bring dead runs to an end now and then, and note the trouble it met."""
        if self._recover is None or now - self._recovered_at < RECOVER_EVERY_S:
            return
        self._recovered_at = now
        self._recover_trouble = ""
        try:
            self._recover()
        except Exception as error:  # reading goes on without it
            self._recover_trouble = _explain(error)

    def _read(self) -> Snapshot:
        """Return the newest snapshot: the last one where nothing changed."""
        self._check_file()
        if self._reader is None:
            self._reader = self._open_reader()
        focus = self._focus
        version = self._reader.data_version()
        if (version, focus) == self._seen:
            return self._last
        counts = self._reader.count_runs()
        page = self._reader.list_runs(limit=PAGE_RUNS, offset=focus.first, keys=RUN_KEYS)
        detail = self._find_detail(focus)
        known = {run.id for run in page} | ({detail.run.id} if detail else set())
        run_id = focus.run_id if focus.run_id in known else (page[0].id if page else "")
        keys = self._list_keys(run_id, full=detail is not None) if run_id else ()
        curves = self._curves.read(self._reader, run_id, keys)
        self._seen = version, focus
        return Snapshot(
            runs=tuple(page),
            first=focus.first,
            num_runs=sum(counts.values()),
            num_running=counts.get("running", 0),
            run_id=run_id,
            curves=MappingProxyType(curves),
            detail=detail,
        )

    def _find_detail(self, focus: Focus) -> RunDetail | None:
        """Return all about the run in focus, where that is asked for and it still exists."""
        assert self._reader is not None
        if not focus.full:
            return None
        try:
            return self._reader.get_detail(focus.run_id)
        except UnknownRun:
            return None

    def _list_keys(self, run_id: str, *, full: bool) -> tuple[str, ...]:
        """Return the curves to read, in the order in which a run is read."""
        assert self._reader is not None
        keys = self._reader.list_keys(run_id)
        if not full:
            groups = list_overview_groups(keys)
            return tuple(key for group in groups for _, key in group.members)
        ordered = [key for group in group_keys(keys) for _, key in group.members]
        return tuple(ordered[:MAX_CURVES])

    def _check_file(self) -> None:
        """Raise FileNotFoundError where a database file was and is no more.

        The reader takes an absent file for an empty registry: right at first, wrong afterwards.
        """
        if self._file is None:
            return
        is_there = self._file.exists()
        if self._was_there and not is_there:
            raise FileNotFoundError(f"{self._file} is gone; its runs show again once it is back")
        self._was_there = is_there

    def _close(self) -> None:
        """Close the reader and forget what was read through it."""
        reader, self._reader, self._seen = self._reader, None, None
        self._curves.clear()
        if reader is None:
            return
        try:
            reader.close()
        except Exception:  # it is being thrown away
            return


class CurveStore:
    """The curves of one run, grown by what is new at each reading, cut where a resume cut them."""

    def __init__(self) -> None:
        self._run_id = ""
        self._held: dict[str, tuple[Series, Cursor]] = {}  # key -> (curve so far, cursor)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()

    def read(self, reader: RegistryReader, run_id: str, keys: tuple[str, ...]) -> dict[str, Series]:
        """Return the curves of a run, long ones as outlines, reading only their new points."""
        if run_id != self._run_id:
            self._run_id, self._held = run_id, {}
        for key in keys:
            held, cursor = self._held.get(key, (None, None))
            if held is not None and len(held) > _MAX_HELD:
                held, cursor = None, None
            new, ahead = reader.get_outline_since(run_id, key, OUTLINE_COLUMNS, cursor)
            is_cut = cursor is not None and cursor.rewinds != ahead.rewinds
            self._held[key] = (new if is_cut else _extend(held, new), ahead)
        return {key: self._held[key][0] for key in keys}


def _extend(held: Series | None, new: Series) -> Series:
    """Return the curve with its new points in step order; the old one stays as it is."""
    if held is None or not len(held):
        return new
    if not len(new):
        return held
    steps = array("q", held.steps) + new.steps
    values = array("d", held.values) + new.values
    times = array("d", held.times) + new.times
    if new.steps[0] >= held.steps[-1]:
        return Series(held.key, steps, values, times)
    order = sorted(range(len(steps)), key=steps.__getitem__)
    return Series(
        held.key,
        array("q", [steps[place] for place in order]),
        array("d", [values[place] for place in order]),
        array("d", [times[place] for place in order]),
    )


def _explain(error: Exception) -> str:
    """Return one line for the footer."""
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__
