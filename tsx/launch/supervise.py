"""The parent of training processes: starts them one after another and records how each ended.

It never imports torch, so a crash, an out-of-memory kill or a hung driver stays in the child. It
follows the child's journal and hands each event to an observer: what a person sees is what the
registry has.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec

from registry.captured import read_output
from registry.errors import StoreError
from registry.events import Event, RunEnded, RunStarted, Status
from registry.journal import iter_events
from registry.liveness import LockHeld, RunLock
from registry.store import Recorder
from registry.tail import complete
from tsx import config as configs
from tsx.config import RunConfig
from tsx.errors import Exit, TsxError
from tsx.launch.begin import begin_run, lock_run
from tsx.launch.exit_reason import Ending
from tsx.launch.plan import RunPlan
from tsx.launch.process import TrainingProcess
from tsx.launch.provenance import Provenance
from tsx.launch.worker import Order, Report

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
        self._signal = signal.SIGTERM  # the last one that asked to stop
        self._fault = ""  # why there is no process

    def run_all(self, plans: Sequence[RunPlan], provenance: Provenance) -> list[Ending]:
        """Run every plan; a failed one does not stop the rest, a stop signal does."""
        endings = []
        with self._signals():
            for plan in plans:
                if self._stopping:
                    break
                endings.append(self._run(plan, provenance))
        return endings

    def leave_out(self, plan: RunPlan, provenance: Provenance, ending: Ending) -> None:
        """Record a run that is never started, and why.

        Raises:
            StoreError: folder or registry cannot be written.
        """
        folder = self._home / "runs" / plan.run_id
        self._record_start(folder, plan, provenance).release()
        _record_end(folder, self._url, ending)

    def resume(
        self, run_id: str, name: str, config: RunConfig, command: tuple[str, ...] = ()
    ) -> Ending:
        """Continue a run from its last checkpoint; `command` is recorded as what was typed.

        Raises:
            TsxError: the run is still going, or it ended before it began (refused, interrupted);
                the run is left as it was.
        """
        folder = self._home / "runs" / run_id
        lock = lock_run(folder, run_id)
        start = _size(folder / "events.jsonl")
        order = self._order(config, folder, lock)
        order = msgspec.structs.replace(order, resume=True, command=command)
        self._observer.begin(run_id, name, config)
        with self._signals():
            self._start(order, folder, lock)
            said = self._follow(folder, start)
        report = self._process.read_report() if self._process else None
        if _size(folder / "events.jsonl") == start and (report is None or not report.begun):
            raise _refusal(self._explain(report))  # the run stays as it was
        ending = self._conclude(folder, said, report)
        self._observer.finish(run_id, ending)
        return ending

    def _run(self, plan: RunPlan, provenance: Provenance) -> Ending:
        """Record that the run exists, train it in a child, record how it ended."""
        folder = self._home / "runs" / plan.run_id
        lock = self._record_start(folder, plan, provenance)
        self._observer.begin(plan.run_id, plan.name, plan.config)
        self._start(self._order(plan.config, folder, lock), folder, lock)
        said = self._follow(folder, 0)
        report = self._process.read_report() if self._process else None
        ending = self._conclude(folder, said, report)
        self._observer.finish(plan.run_id, ending)
        return ending

    def _start(self, order: Order, folder: Path, lock: RunLock) -> None:
        """Start the worker, which holds the lock from then on."""
        self._process = None
        try:
            self._process = TrainingProcess(order, folder)
        except OSError as error:
            self._fault = f"cannot start a process: {error.strerror or error}"
        lock.release()
        if self._process is not None and self._stopping:  # asked while it was being started
            self._process.send(self._signal)

    def _record_start(self, folder: Path, plan: RunPlan, provenance: Provenance) -> RunLock:
        """Make the run's folder and first line; return its lock, for the child to take over."""
        lock, recorder = begin_run(folder, self._url, _run_started(plan, provenance))
        recorder.close()
        return lock

    def _order(self, config: RunConfig, folder: Path, lock: RunLock) -> Order:
        """Put together what a worker is told."""
        return Order(
            config=configs.to_plain(config),
            folder=str(folder),
            home=str(self._home),
            url=self._url,
            lock_fd=lock.fd,
            detached=self._detached,
        )

    def _follow(self, folder: Path, offset: int) -> Ending | None:
        """Show the journal as it grows until the process has exited; return its own last word."""
        journal = folder / "events.jsonl"
        ended: RunEnded | None = None
        while True:
            # Asked before reading: the last words come first.
            gone = self._process is None or self._process.poll()
            if gone:
                complete(journal)  # a killed process may have left its last lines in the tail
            for event, end in iter_events(journal, offset):
                offset = end
                ended = event if isinstance(event, RunEnded) else ended
                self._observer.see(event)
            if gone:
                break
            self._observer.tick()
            time.sleep(POLL_S)
        return None if ended is None else Ending(ended.status, ended.reason, ended.exit_code)

    def _conclude(self, folder: Path, said: Ending | None, report: Report | None) -> Ending:
        """Return how the run ended, with what of it is not in the registry; record what can be.

        Args:
            folder: the run's folder.
            said: the end that is in its journal.
            report: what the process said through the pipe.
        """
        ending, faults = said or self._explain(report), []
        if report is not None and report.lost:
            faults.append(f"{report.lost} events could not be written and are lost")
        if said is None:
            try:
                _record_end(folder, self._url, ending)
            except (StoreError, TsxError, OSError) as error:
                faults.append(f"its end is not recorded: {error}")
        if not faults:
            return ending
        reason = "; ".join([*filter(None, [ending.reason]), *faults])
        return Ending(ending.status, reason, ending.exit_code or Exit.REGISTRY)

    def _explain(self, report: Report | None) -> Ending:
        """Return the process's own last word, or what its exit tells."""
        if report is not None:
            return Ending(report.status, report.reason, report.exit_code)
        if self._process is None:
            return Ending(Status.FAILED, self._fault, Exit.FAILED)
        return self._process.ending()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass stop signals on to the child; a second Ctrl-C kills it."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in STOP_SIGNALS:
            # Under nohup a hangup is ignored already, and stays so.
            unheard = self._detached or before[number] is signal.SIG_IGN
            ignore = unheard and number == signal.SIGHUP
            signal.signal(number, signal.SIG_IGN if ignore else self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stopping += 1
        self._signal = signal.Signals(number)
        if self._process is not None:
            again = self._stopping > 1 and number == signal.SIGINT
            self._process.send(signal.SIGKILL if again else self._signal)


def _record_end(folder: Path, url: str, ending: Ending) -> None:
    """Write the end that a process could not write; nothing where a resume goes on with it."""
    try:
        lock = RunLock.acquire(folder)
    except LockHeld:
        return
    try:
        with closing(Recorder(folder, url)) as recorder:
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
    finally:
        lock.release()


def _refusal(ending: Ending) -> TsxError:
    """Return the error for a resume that did not begin, with the status the process ended with."""
    error = TsxError(ending.reason)
    error.exit_code = Exit(ending.exit_code)
    return error


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
