"""Record a program of any kind: its inbox, its metric lines, its output and its end.

Two threads pass its output on; this one takes the inbox over, passes signals on and waits. What the
inbox says goes before what is printed: once it has had a metric line, stdout is read no more.
The program outlives a kill of this process (exec_guard keeps its pipes, the lock is its own too);
whoever reads the registry then takes the rest of the inbox over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from registry.captured import read_output
from registry.events import Event, Heartbeat, Metrics, RunEnded, RunStarted, Status
from registry.inbox import INBOX_NAME
from registry.inbox_reader import BadInboxLine, InboxReader
from registry.liveness import RunLock
from registry.redact import Redactor
from tsx.errors import Exit
from tsx.launch.begin import begin_run
from tsx.launch.capture import LOG_NAMES
from tsx.launch.exec_program import ForeignProcess, ProgramPlan, guarded
from tsx.launch.exec_signals import MESSAGES, Caught, HeldSignals
from tsx.launch.exec_streams import Pump, StreamLog
from tsx.launch.exit_reason import Ending
from tsx.launch.metric_lines import MetricLine, MetricLines
from tsx.launch.provenance import Provenance

POLL_S = 0.05  # how often the inbox is looked at
_LAST_POLL_S = 0.01  # while the last words of a program that is gone are passed on
BAD_LINES_TOLD = 5  # of the inbox, one by one; the rest is counted
_HEARTBEAT_S = 60.0  # between two signs of life of a silent program
_ECHO_S = 0.2  # the same stop signal within this is one, sent to us and to our group


class ProgramRun:
    """One recorded program.

    Args:
        plan: what to run.
        home: TSX_HOME.
        url: the registry's SQLAlchemy URL.
        tell: shows one line to the user.
    """

    def __init__(
        self, plan: ProgramPlan, home: Path, url: str, tell: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._folder = home / "runs" / plan.run_id
        self._url = url
        self._tell = tell
        self._lines = MetricLines()
        self._inbox = InboxReader(self._folder / INBOX_NAME, on_bad=self._tell_bad)
        self._stops: list[tuple[float, Caught]] = []
        self._step = 0
        self._said_at = 0.0
        self.lost = 0  # events that could be written nowhere

    def record(self, provenance: Provenance, title: str) -> Ending:
        """Run the program and record it; return how it ended, with the exit status to pass on.

        Args:
            provenance: where the command was given.
            title: shown once the run is recorded, before the program starts.

        Raises:
            StoreError, RegistryError: the run cannot be recorded; nothing was started.
        """
        with HeldSignals() as signals:
            lock, self._recorder = begin_run(self._folder, self._url, self._make_start(provenance))
            try:
                self._tell(title)
                ending = self._run(lock, signals)
                self._emit(read_output(self._folder))
                self._recorder.emit(
                    RunEnded(
                        time=time.time(),
                        status=ending.status,
                        reason=ending.reason,
                        exit_code=ending.exit_code,
                        step=self._step,
                    )
                )
            finally:
                self._recorder.close()
                self.lost = self._recorder.lost
                with suppress(OSError):  # whom the program left behind has copies of it
                    fcntl.flock(lock.fd, fcntl.LOCK_UN)
                lock.release()
        return ending

    def _make_start(self, provenance: Provenance) -> RunStarted:
        """Put together the first line of the run's journal."""
        plan = self._plan
        return RunStarted(
            time=time.time(),
            run_id=plan.run_id,
            name=plan.name,
            project=plan.project,
            tags=plan.tags,
            note=plan.note,
            steps=plan.steps,
            config=plan.config,
            command=plan.command,
            cwd=provenance.cwd,
            git_commit=provenance.git_commit,
            git_branch=provenance.git_branch,
            git_diff=provenance.git_diff,
            host=provenance.host,
            versions=provenance.versions,
            pid=os.getpid(),
        )

    def _run(self, lock: RunLock, signals: HeldSignals) -> Ending:
        """Start the program, follow it to its end and finish its streams."""
        early = signals.wait(0.0)
        if early is not None and early.number not in MESSAGES:
            reason = f"{early.number.name} before the program was started"
            return Ending(Status.INTERRUPTED, reason, 128 + early.number)
        with suppress(OSError):  # a full disk: the program may still make it
            (self._folder / INBOX_NAME).touch()
            self._emit(self._inbox.iter_new(time.time()))
        (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe()
        with guarded(out_read, err_read, self._folder):
            try:
                process = ForeignProcess(
                    self._plan, self._folder, lock, (out_write, err_write), signals.mask
                )
            except OSError as error:
                os.close(out_read)
                os.close(err_read)
                return Ending(Status.FAILED, self._explain_fault(error), Exit.NOT_EXECUTABLE)
            finally:
                os.close(out_write)
                os.close(err_write)
            pumps = self._start_pumps(out_read, err_read)
            self._follow(process, pumps, signals)
        self._finish(pumps)
        stopped_by = self._stops[-1][1].number if self._stops else None
        return process.ending(stopped_by, pumps[1].log.find_last_line())

    def _explain_fault(self, error: OSError) -> str:
        """Say why the program could not be started."""
        hint = "; a script begins with #! and its interpreter" * (error.errno == errno.ENOEXEC)
        return f"cannot start {self._plan.path}: {error.strerror or error}{hint}"

    def _start_pumps(self, out_read: int, err_read: int) -> tuple[Pump, Pump]:
        """Begin to pass stdout and stderr on."""
        redactor = Redactor.from_environ(os.environ)
        out, err = (StreamLog(self._folder / name, redactor) for name in LOG_NAMES)
        see = self._read_output if self._plan.parse else None
        pumps = Pump(out_read, 1, out, see), Pump(err_read, 2, err)
        for pump in pumps:
            pump.start()
        return pumps

    def _follow(self, process: ForeignProcess, pumps: Sequence[Pump], signals: HeldSignals) -> None:
        """Take the inbox over and pass signals on until program and streams are at their end."""
        self._said_at = time.monotonic()
        while True:
            gone = process.poll()  # asked before reading: the last words come first
            self._emit(self._inbox.iter_new(time.time()))
            if gone:
                for pump in pumps:
                    pump.end_soon()
                if not any(pump.is_alive() for pump in pumps):
                    return
            elif time.monotonic() - self._said_at > _HEARTBEAT_S:
                self._emit([Heartbeat(time=time.time(), step=self._step)])
            caught = signals.wait(_LAST_POLL_S if gone else POLL_S)
            if caught is None:
                continue
            if caught.number in MESSAGES:
                if not caught.from_terminal:
                    process.send(caught.number)
            elif gone:  # whoever reads our output does not: nothing more to wait for
                return
            else:
                self._stop(caught, process)

    def _stop(self, stop: Caught, process: ForeignProcess) -> None:
        """Pass a stop signal on to a program that did not get it; a second Ctrl-C kills it."""
        now = time.monotonic()
        if any(now - when < _ECHO_S and stop.number == other.number for when, other in self._stops):
            return
        interrupted = any(other.number == signal.SIGINT for _, other in self._stops)
        self._stops.append((now, stop))
        if stop.number == signal.SIGINT and interrupted:
            process.send(signal.SIGKILL)
            return
        if not stop.from_terminal:
            process.send(stop.number)
        if stop.number == signal.SIGINT:
            self._tell("waiting for the program to end; Ctrl-C again kills it")

    def _finish(self, pumps: Sequence[Pump]) -> None:
        """Take over what is left, say how much was left out, close the logs."""
        now = time.time()
        self._emit(self._inbox.iter_rest(now))
        if not self._inbox.has_metrics and self._plan.parse:
            self._emit_lines(self._lines.finish())
        if (more := self._inbox.bad_count - BAD_LINES_TOLD) > 0:
            self._tell(f"{INBOX_NAME}: {more:,} more lines or values left out")
        for pump in pumps:
            pump.log.finish()

    def _read_output(self, data: bytes) -> None:
        """Record the metric lines in a piece of stdout; in the thread that passes it on."""
        if not self._inbox.has_metrics:
            self._emit_lines(self._lines.feed(data))

    def _emit_lines(self, lines: Iterable[MetricLine]) -> None:
        """Record metric lines."""
        self._emit(Metrics(time=time.time(), step=line.step, values=line.values) for line in lines)

    def _emit(self, events: Iterable[Event]) -> None:
        """Record events; remember the last step and when there was anything."""
        for event in events:
            self._recorder.emit(event)
            self._step = max(self._step, getattr(event, "step", 0))
            self._said_at = time.monotonic()

    def _tell_bad(self, bad: BadInboxLine) -> None:
        """Show why a line of the inbox was left out, the first few times."""
        if self._inbox.bad_count <= BAD_LINES_TOLD:
            self._tell(f"{INBOX_NAME} line {bad.number}: {bad.reason}")
