"""Record a run: every event to its journal at once, and from there to the database.

`Recorder.emit` costs one packing into the journal's mapped tail (or one `write`); a thread drains
the tail and folds the journal into the database about once a second. Whatever happens to the
database, the journal has every line, and the next process that looks folds in what is missing.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from registry.connection import open_engine, parse_url
from registry.errors import StoreCorrupt, StoreError, StoreNewer, StoreUnavailable
from registry.events import (
    Event,
    Finding,
    Heartbeat,
    Histogram,
    Metrics,
    RunEnded,
    RunStarted,
    Severity,
)
from registry.faults import explain, explained, get_path, is_sqlite
from registry.fold import fold_batch
from registry.journal import JOURNAL_NAME, JournalWriter
from registry.tail import complete

_PERIOD_S = 1.0  # between two folds; what a reader may be behind a live run
_BACK_OFF_S = 2.0  # between two tries while the database is out of reach
_SHORTEST_S = 0.05  # between two folds, however much there is to show
_STATEMENT_S = 2.0  # one wait for a lock in the thread; it tries again, so close() stays bounded
_FORK_S = 5.0  # how long a fork waits for the thread; more than one statement waits for a lock


def ingest(engine: Engine, folder: Path) -> None:
    """Fold everything the database lacks of one run's journal, what a dead process left included.

    Raises:
        StoreError: the database is locked, full or gone; what was folded stays folded.
    """
    if not (folder / JOURNAL_NAME).is_file():
        return
    complete(folder / JOURNAL_NAME)
    with explained(engine.url):
        while fold_batch(engine, folder):
            pass


class Recorder:
    """An EventSink: journal first, database by a thread.

    Safe from several threads and from signal handlers. In a forked child events still arrive, but
    the run is its parent's: RunEnded is passed over there, and `close` ends nothing.

    Args:
        folder: the run's folder, made if it does not exist; its name is the run's id.
        url: SQLAlchemy URL of the registry, which is created or migrated where needed.
        timeout_s: how long a locked registry is waited for here.
        close_s: how long `close` may take; what it cannot fold is left to recovery.

    Raises:
        StoreError: the registry cannot be used, or the folder cannot be written.
    """

    def __init__(
        self, folder: Path, url: str, *, timeout_s: float = 10.0, close_s: float = 10.0
    ) -> None:
        self._folder = folder.absolute()
        self._url = url
        self._parsed = parse_url(url)
        self._close_s = close_s
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot make the run's folder {folder}: {error.strerror or error}",
                next_command="set TSX_HOME to a folder that can be written",
            ) from error
        open_engine(url, readonly=False, timeout_s=timeout_s).dispose()
        self._journal = JournalWriter(self._folder / JOURNAL_NAME, mapped=True)
        self._lock = threading.RLock()  # around the start of the thread and the report of a loss
        # Not threading.Event: a signal handler may emit in the middle of another emit.
        self._wake: SimpleQueue[None] = SimpleQueue()  # something is worth showing at once
        self._bell: SimpleQueue[None] = SimpleQueue()  # the recorder is being closed
        self._closed = False
        self._started = False
        self._is_owner = True  # False in a forked child
        self._engine: Engine | None = None
        self._engine_file = 0  # inode, to notice that the registry was rebuilt
        self._folded = -1  # end of the journal at the last fold that succeeded
        self._step = 0
        self.store_error: str | None = None  # why the registry or the journal is behind
        self._thread = threading.Thread(target=self._run, name="tsx-recorder", daemon=True)
        _recorders.add(self)

    @property
    def lost(self) -> int:
        """Events that could be written nowhere."""
        return self._journal.lost

    def emit(self, event: Event) -> None:
        """Record one event; it survives a kill of this process once this returns.

        Raises:
            StoreUnavailable: the first event cannot be written. Later ones never raise.
            ValueError: the recorder is closed.
        """
        if self._started and type(event) is Metrics:
            self._journal.append(event)
            return
        if not self._started:
            self._check_first(event)
        elif type(event) is RunEnded:
            self._step = event.step
        if self._is_owner or type(event) is not RunEnded:
            self._journal.append(event)
        if not isinstance(event, Heartbeat | Metrics | Histogram):
            self._wake.put(None)  # rare, and worth showing at once
        if not self._started:
            self._start()

    @property
    def emit_metrics(self) -> Callable[[Metrics], None]:
        """`emit` for Metrics alone, once a first event was emitted: one call less in a hot loop."""
        return self._journal.append

    def close(self) -> None:
        """Fold what is left and let go, within a bound; what remains is recovery's."""
        if not self._closed:
            with contextlib.suppress(ValueError):  # another thread has closed it just now
                self._report_loss()
        is_done = self._journal.close()
        self._closed = True  # last: the thread then folds what is in the journal, and ends
        self._bell.put(None)
        self._wake.put(None)
        if is_done and self._is_owner and self._thread.ident is not None:
            self._thread.join(self._close_s)

    def leave_parent(self) -> None:
        """In a forked child: neither the thread nor the database is this process's."""
        self._is_owner = False
        self._started = True
        self._lock = threading.RLock()
        self._wake, self._bell = SimpleQueue(), SimpleQueue()
        engine, self._engine = self._engine, None
        if engine is not None:
            _keep_forever(engine)

    def _check_first(self, event: Event) -> None:
        """Refuse a run whose folder has another name: nobody would find it again."""
        if type(event) is RunStarted and event.run_id != self._folder.name:
            raise ValueError(f"run {event.run_id!r} is recorded in folder {self._folder.name!r}")

    def _start(self) -> None:
        """Start the thread, once."""
        with self._lock:
            if self._started:
                return
            self._started = True
            try:
                self._thread.start()
            except RuntimeError as error:  # no more threads to be had: recovery folds
                self.store_error = str(error)

    def _report_loss(self) -> None:
        """Leave a finding that says how many events are missing, if the disk takes it."""
        if self._journal.drain() and self._journal.lost and not self._journal.file.is_gone:
            self._journal.append(
                Finding(
                    time=time.time(),
                    kind="events-lost",
                    severity=Severity.WARNING,
                    step=self._step,
                    cause=f"{self._journal.lost} events could not be written and are lost",
                    fix="make room on the disk that holds TSX_HOME",
                )
            )

    def _run(self) -> None:
        """Fold until closed; the thread's body."""
        while not self._closed:
            folded = self._try_fold(deadline=math.inf)
            _wait(self._bell, _SHORTEST_S)
            _wait(self._wake, _PERIOD_S if folded else _BACK_OFF_S)
        self._journal.close()  # again, for a signal handler's could not
        deadline = time.monotonic() + self._close_s
        while not self._try_fold(deadline=deadline) and time.monotonic() < deadline:
            time.sleep(_SHORTEST_S)
        self._drop_engine()

    def _try_fold(self, *, deadline: float) -> bool:
        """Fold what is new; return whether there is no more to do here."""
        self._journal.drain()
        if self._journal.file.is_gone:
            self.store_error = self._journal.file.fault
            return True
        end = self._find_end()
        if end < 0:  # moved away with its folder: whoever brings it back folds it
            self.store_error = f"{self._folder / JOURNAL_NAME} is not there any more"
            return True
        if end == self._folded:
            return True
        try:
            while self._fold_batch():
                if time.monotonic() >= deadline:
                    return False
        except Exception as error:  # nothing the database does may stop the training
            known = isinstance(error, StoreError)
            fault = error if known else explain(error, self._parsed)
            self.store_error = str(fault)
            self._drop_engine()
            # Waiting mends a lock or a full disk; a broken registry needs its user.
            return self._closed and isinstance(fault, StoreCorrupt | StoreNewer)
        self.store_error = self._journal.file.fault or None
        self._folded = end
        return True

    def _fold_batch(self) -> bool:
        """Fold one batch; return whether there is more. Nobody forks meanwhile."""
        with _fork_gate.closed():
            return fold_batch(self._get_engine(), self._folder)

    def _find_end(self) -> int:
        """Return the journal's size, -1 where it is no more."""
        try:
            return (self._folder / JOURNAL_NAME).stat().st_size
        except OSError:
            return -1

    def _get_engine(self) -> Engine:
        """Return the engine, a fresh one where the registry's file was replaced."""
        file = _find_inode(self._parsed)
        if self._engine is None or file != self._engine_file:
            self._drop_engine()
            self._engine = open_engine(self._url, readonly=False, timeout_s=_STATEMENT_S)
            self._engine_file = _find_inode(self._parsed)
        return self._engine

    def _drop_engine(self) -> None:
        """Let go of the engine; the next fold opens another."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with _fork_gate.closed():
                engine.dispose()


class _ForkGate:
    """Holds a fork back while the thread is inside the database.

    A child has none of its parent's threads, but the locks that they held, SQLite's own too: the
    first use of a database there would wait for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._forking = threading.local()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Let nobody fork, apart from who has waited long enough."""
        with self._lock:
            yield

    def before(self) -> None:
        """Wait until the thread is out of the database."""
        self._forking.is_held = self._lock.acquire(timeout=_FORK_S)

    def after_in_parent(self) -> None:
        """Let the thread go on."""
        if self._forking.is_held:
            self._lock.release()

    def after_in_child(self) -> None:
        """Begin anew: no thread is left that could let go."""
        self._lock = threading.RLock()


_fork_gate = _ForkGate()
os.register_at_fork(
    before=_fork_gate.before,
    after_in_parent=_fork_gate.after_in_parent,
    after_in_child=_fork_gate.after_in_child,
)

_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _leave_parents() -> None:
    """Make every recorder of a forked child its own."""
    for recorder in list(_recorders):
        recorder.leave_parent()


os.register_at_fork(after_in_child=_leave_parents)


def _keep_forever(engine: Engine) -> None:
    """Keep an inherited SQLite connection from ever being closed: that is its owner's to do."""
    with contextlib.suppress(ImportError):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


def _wait(bell: SimpleQueue[None], seconds: float) -> None:
    """Wait until a bell rings, and forget how often."""
    with contextlib.suppress(Empty):
        bell.get(timeout=seconds)
        while True:
            bell.get_nowait()


def _find_inode(url: URL) -> int:
    """Return the inode of the SQLite file, 0 where there is none."""
    if not is_sqlite(url):
        return 0
    try:
        return get_path(url).stat().st_ino
    except OSError:
        return 0
