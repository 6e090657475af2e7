"""The parent of training processes: starts them one after another and records how each ended.

It never imports torch, so a crash, an out-of-memory kill or a hung driver stays in the child. It
follows the child's journal and hands each event to an observer: what a person sees is what the
registry has.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec

from registry.captured import read_output
from registry.events import Event, RunEnded, RunStarted
from registry.journal import iter_events
from registry.liveness import LockHeld, RunLock
from registry.store import Recorder
from tsx import config as configs
from tsx.config import RunConfig
from tsx.errors import ConfigError, Exit, RegistryError, TsxError
from tsx.launch.exit_reason import Ending
from tsx.launch.plan import RunPlan
from tsx.launch.process import TrainingProcess
from tsx.launch.provenance import Provenance
from tsx.launch.worker import Order

POLL_S = 0.05
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Observer(Protocol):
    """Who is told what happens, in order."""

    def begin(self, run_id: str, name: str, config: RunConfig) -> None:
        """A run is about to start."""

    def see(self, event: Event) -> None:
        """The run recorded an event."""

    def tick(self) -> None:
        """Nothing happened for a moment (a progress display redraws)."""

    def finish(self, run_id: str, ending: Ending) -> None:
        """The run is over."""


class Supervisor:
    """Runs plans one after another in processes of their own.

    Args:
        home: TSX_HOME.
        url: the registry's SQLAlchemy URL.
        observer: who is told.
        detached: nobody waits at a terminal; SIGHUP is ignored.
    """

    def __init__(self, home: Path, url: str, observer: Observer, *, detached: bool = False) -> None:
        self._home = home
        self._url = url
        self._observer = observer
        self._detached = detached
        self._process: TrainingProcess | None = None
        self._stopping = 0

    def run_all(self, plans: Sequence[RunPlan], provenance: Provenance) -> list[Ending]:
        """Run every plan; a failed one does not stop the rest, a stop signal does."""
        endings = []
        with self._signals():
            for plan in plans:
                if self._stopping:
                    break
                endings.append(self._run(plan, provenance))
        return endings

    def resume(
        self, run_id: str, name: str, config: RunConfig, command: tuple[str, ...] = ()
    ) -> Ending:
        """Continue a run from its last checkpoint; `command` is recorded as what was typed.

        Raises:
            ConfigError: the run is still going, or the trainer refused before it began; the run
                is left as it was.
        """
        folder = self._home / "runs" / run_id
        lock = _lock(folder, run_id)
        start = _size(folder / "events.jsonl")
        read_end, write_end = os.pipe()
        order = self._order(config, folder, lock, report_fd=write_end)
        order = msgspec.structs.replace(order, resume=True, command=command)
        self._observer.begin(run_id, name, config)
        with self._signals():
            self._process = TrainingProcess(order, folder)
            lock.release()
            os.close(write_end)
            ending = self._follow(folder, start)
        with os.fdopen(read_end, "rb") as report:
            refused = report.read().decode()
        if _size(folder / "events.jsonl") == start:  # it never began: the run stays as it was
            reason = refused or self._process.ending().reason
            raise (
                ConfigError(reason) if self._process.returncode == Exit.USAGE else TsxError(reason)
            )
        ending = ending or self._record_end(folder)
        self._observer.finish(run_id, ending)
        return ending

    def _run(self, plan: RunPlan, provenance: Provenance) -> Ending:
        """Record that the run exists, train it in a child, record how it ended."""
        folder = self._home / "runs" / plan.run_id
        lock = self._record_start(folder, plan, provenance)
        self._observer.begin(plan.run_id, plan.name, plan.config)
        self._process = TrainingProcess(self._order(plan.config, folder, lock), folder)
        lock.release()  # the child holds it now
        ending = self._follow(folder, 0) or self._record_end(folder)
        self._observer.finish(plan.run_id, ending)
        return ending

    def _record_start(self, folder: Path, plan: RunPlan, provenance: Provenance) -> RunLock:
        """Make the run's folder and first line; a registry that refuses leaves no trace.

        Raises:
            StoreError: folder or registry cannot be written.
        """
        try:
            folder.mkdir(parents=True)
            lock = _lock(folder, plan.run_id)
        except OSError as error:
            raise RegistryError(
                f"cannot make the run's folder {folder}: {error.strerror}",
                next_command="TSX_HOME=/a/folder/with/room tsx run ...",
            ) from error
        try:
            with closing(Recorder(folder, self._url)) as recorder:
                recorder.emit(_run_started(plan, provenance))
        except BaseException:
            lock.release()
            with suppress(OSError):
                shutil.rmtree(folder)
            raise
        return lock

    def _order(
        self, config: RunConfig, folder: Path, lock: RunLock, *, report_fd: int = -1
    ) -> Order:
        """Put together what a worker is told."""
        return Order(
            config=configs.to_plain(config),
            folder=str(folder),
            home=str(self._home),
            url=self._url,
            lock_fd=lock.fd,
            report_fd=report_fd,
            detached=self._detached,
        )

    def _follow(self, folder: Path, offset: int) -> Ending | None:
        """Show the journal as it grows until the process has exited; return its own last word."""
        assert self._process is not None
        journal = folder / "events.jsonl"
        ended: RunEnded | None = None
        while True:
            gone = self._process.poll()  # before reading: the last words come first
            for event, end in iter_events(journal, offset):
                offset = end
                ended = event if isinstance(event, RunEnded) else ended
                self._observer.see(event)
            if gone:
                break
            self._observer.tick()
            time.sleep(POLL_S)
        return None if ended is None else Ending(ended.status, ended.reason, ended.exit_code)

    def _record_end(self, folder: Path) -> Ending:
        """Write the end that a dead process could not write."""
        assert self._process is not None
        ending = self._process.ending()
        lock = _lock(folder, folder.name)
        with closing(Recorder(folder, self._url)) as recorder:
            for output in read_output(folder):
                recorder.emit(output)
            recorder.emit(
                RunEnded(
                    time=time.time(),
                    status=ending.status,
                    reason=ending.reason,
                    exit_code=ending.exit_code,
                )
            )
        lock.release()
        return ending

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass stop signals on to the child; a second Ctrl-C kills it."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in STOP_SIGNALS:
            ignore = self._detached and number == signal.SIGHUP
            signal.signal(number, signal.SIG_IGN if ignore else self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stopping += 1
        if self._process is not None:
            again = self._stopping > 1 and number == signal.SIGINT
            self._process.send(signal.SIGKILL if again else signal.Signals(number))


def _lock(folder: Path, run_id: str) -> RunLock:
    """Take the run's lock or say that it is still going."""
    try:
        return RunLock.acquire(folder)
    except LockHeld:
        raise ConfigError(
            f"run {run_id} is still going", next_command=f"tsx show {run_id}"
        ) from None


def _run_started(plan: RunPlan, provenance: Provenance) -> RunStarted:
    """Put together the first line of a run's journal."""
    return RunStarted(
        time=time.time(),
        run_id=plan.run_id,
        name=plan.name,
        recipe=plan.recipe,
        tags=plan.tags,
        note=plan.note,
        parent=plan.parent,
        seed=plan.config.train.seed,
        smoke=plan.smoke,
        steps=plan.config.train.steps,
        config=configs.to_plain(plan.config),
        fingerprint=configs.fingerprint(plan.config),
        command=plan.command,
        cwd=provenance.cwd,
        git_commit=provenance.git_commit,
        git_branch=provenance.git_branch,
        git_diff=provenance.git_diff,
        host=provenance.host,
        versions=provenance.versions,
    )


def _size(path: Path) -> int:
    """Return a file's size, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
