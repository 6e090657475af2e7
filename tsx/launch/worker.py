"""The process that trains: `python -m tsx.launch.worker`, started by the supervisor.

It inherits the run's lock and stdout/stderr that already point into the run's folder, reads its
config from stdin, and leaves RunEnded as its last word. Signals ask the trainer to stop after the
step under way; a detached run ignores SIGHUP. An error before the run has begun to train on a
resume (`refused`) goes back to the supervisor and leaves the run as it was.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from registry.captured import read_output
from registry.events import Event, EventSink, RunEnded, RunResumed, Status
from registry.journal import encode
from registry.liveness import RunLock
from registry.redact import Redactor
from registry.store import Recorder
from tsx import config as configs
from tsx.errors import Diverged, Exit, OutOfMemory, TsxError
from tsx.launch.capture import redirect, seal
from tsx.launch.exit_reason import EXIT_OF_STATUS, Ending, describe_error

REASON_CHARS = 4000  # far below what a pipe holds, so that writing it never waits


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor asks for, sent as JSON on stdin."""

    config: dict[str, Any]
    folder: str = ""
    home: str = ""
    url: str = ""
    lock_fd: int = -1
    report_fd: int = -1
    resume: bool = False
    detached: bool = False
    dry_run: bool = False
    examine: bool = False  # a dry run that looks at one step as well
    command: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor is told through a pipe at the end, should the disk be full."""

    status: Status
    reason: str
    exit_code: int
    begun: bool = True  # False: it refused before it changed anything
    lost: int = 0  # events that could be written nowhere


class StopRequest(threading.Event):
    """Set by a signal; carries which one."""

    reason = ""

    def install(self, *, ignore_hangup: bool) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP of this process."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignore_hangup else self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        self.set()


class DryRunSink:
    """Prints what the trainer would have recorded, for the supervisor to show."""

    def emit(self, event: Event) -> None:
        """Print one event as a line of JSON."""
        sys.stdout.write(encode(event).decode())

    def close(self) -> None:
        """Flush what was printed."""
        sys.stdout.flush()


class StepWatch:
    """Passes events on; remembers whether the trainer has said anything, and the last step."""

    def __init__(self, sink: EventSink, command: tuple[str, ...]) -> None:
        self._sink = sink
        self._command = command
        self.begun = False
        self.step = 0

    def emit(self, event: Event) -> None:
        """Pass one event on."""
        self.begun = True
        self.step = max(self.step, getattr(event, "step", 0))
        if isinstance(event, RunResumed):  # the trainer does not know what was typed
            event = msgspec.structs.replace(event, command=self._command)
        self._sink.emit(event)

    def close(self) -> None:
        """Close the sink below."""
        self._sink.close()


def main() -> int:
    """Train as the order on stdin says; return the exit status."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    stop = StopRequest()
    stop.install(ignore_hangup=order.detached)
    if order.dry_run:
        return _rehearse(order)
    folder = Path(order.folder)
    lock = RunLock.from_fd(order.lock_fd)
    redactor = Redactor.from_environ(os.environ)
    faulthandler.enable(file=2)
    streams = redirect(redactor)
    recorder = Recorder(folder, order.url)
    sink = StepWatch(recorder, order.command)
    ending = _train(order, sink, stop)
    for stream in streams:
        stream.finish()
    if order.resume and not sink.begun:
        sink.close()
        _report(order, ending, recorder.lost, begun=False)
        return ending.exit_code
    seal(folder, redactor)
    for output in read_output(folder):
        sink.emit(output)
    sink.emit(
        RunEnded(
            time=time.time(),
            status=ending.status,
            reason=ending.reason,
            exit_code=ending.exit_code,
            step=sink.step,
        )
    )
    sink.close()
    _report(order, ending, recorder.lost)
    lock.release()
    return ending.exit_code


def _report(order: Order, ending: Ending, lost: int, *, begun: bool = True) -> None:
    """Tell the supervisor, if it is still there; bounded, for nobody reads before the end."""
    report = Report(
        status=ending.status,
        reason=ending.reason[:REASON_CHARS],
        exit_code=ending.exit_code,
        begun=begun,
        lost=lost,
    )
    with suppress(OSError):
        os.write(order.report_fd, msgspec.json.encode(report))


def _train(order: Order, sink: EventSink, stop: StopRequest) -> Ending:
    """Run the trainer and turn whatever comes out of it into an ending."""
    try:
        from tsx.perf.allocator import keep_freed_memory

        keep_freed_memory()  # before torch takes its first block
        from tsx.trainer.loop import train

        outcome = train(
            configs.decode(order.config, place="run"),
            sink,
            folder=Path(order.folder),
            home=Path(order.home),
            stop=stop,
            resume=order.resume,
        )
    except (OutOfMemory, MemoryError) as error:
        return _failure(Status.OOM, error)
    except Diverged as error:
        return _failure(Status.DIVERGED, error)
    except TsxError as error:
        ending = _failure(Status.FAILED, error)
        return Ending(ending.status, ending.reason, error.exit_code)
    except BaseException as error:  # whatever a run dies of is recorded
        traceback.print_exc()
        if stop.is_set():
            return Ending(Status.INTERRUPTED, stop.reason, Exit.INTERRUPTED)
        return _failure(Status.FAILED, error)
    return Ending(outcome.status, outcome.reason, EXIT_OF_STATUS[outcome.status])


def _failure(status: Status, error: BaseException) -> Ending:
    """Say in one line what happened and, for an error nobody foresaw, where."""
    if not isinstance(error, TsxError):
        return Ending(status, describe_error(error), EXIT_OF_STATUS[status])
    text = " ".join(str(error).split())
    if error.next_command:
        text = f"{text}; next: {error.next_command}"
    return Ending(status, text, EXIT_OF_STATUS[status])


def _rehearse(order: Order) -> int:
    """Prepare everything, train nothing, print what would be recorded."""
    from tsx.trainer.loop import rehearse
    from tsx.trainer.preflight import examine

    sink, go = DryRunSink(), examine if order.examine else rehearse
    try:
        go(configs.decode(order.config, place="run"), sink, home=Path(order.home))
    except TsxError as error:
        sys.stderr.write(f"{_failure(Status.FAILED, error).reason}\n")
        return error.exit_code
    sink.close()
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
