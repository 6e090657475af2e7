"""One training process: started with the run's lock, watched, and its end explained.

The child gets a session of its own, so a Ctrl-C in the terminal reaches only the supervisor, which
passes it on; and a supervisor that dies takes nobody with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec
import psutil

import tsx
from tsx.launch.exit_reason import Ending, count_oom_kills, explain_exit
from tsx.launch.worker import Order, Report


class Child:
    """A child process, whoever starts it: `poll` looks at it and `explain` says how it ended."""

    def __init__(self) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self._oom_kills_before = count_oom_kills()
        self._usage_kib = 0

    def poll(self) -> bool:
        """Return whether the process has exited, collecting its status and peak memory."""
        if self.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self._usage_kib = usage.ru_maxrss
        return self.returncode is not None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still there. Safe inside a signal handler."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def explain(self, last_line: str) -> Ending:
        """Explain its exit; `last_line` is the last of its stderr."""
        assert self.returncode is not None, "ask after poll() returned True"
        scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
        return explain_exit(
            self.returncode,
            peak_rss_bytes=self._usage_kib * scale,
            ram_bytes=_memory_limit_bytes(),
            oom_kills=count_oom_kills() - self._oom_kills_before,
            last_line=last_line,
        )


class TrainingProcess(Child):
    """A running worker. `poll` looks at it; `ending` is there once it has exited."""

    def __init__(self, order: Order, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
            self._report_fd, write_end = os.pipe()
            try:
                order = msgspec.structs.replace(order, report_fd=write_end)
                self._process = _spawn(order, out, err)
            finally:
                os.close(write_end)
        self.pid = self._process.pid

    def poll(self) -> bool:
        """Return whether the process has exited, collecting its status and peak memory."""
        gone = super().poll()
        self._process.returncode = self.returncode  # subprocess must not wait again
        return gone

    def read_report(self) -> Report | None:
        """Return, once, what the process said at its very end; None if it could not."""
        os.set_blocking(self._report_fd, False)  # whom it forked may hold the other end open
        try:
            with os.fdopen(self._report_fd, "rb") as pipe:
                said = pipe.read() or b""
            return msgspec.json.decode(said, type=Report)
        except (OSError, msgspec.MsgspecError):
            return None

    def ending(self) -> Ending:
        """Explain an exit that left no RunEnded behind."""
        return self.explain(_last_line(self._folder / "stderr.log"))


def make_line(module: str) -> list[str]:
    """Return the command that runs one of our modules with this interpreter.

    `-m` alone looks in the current folder first, where a user's `random.py` or `registry.py` would
    be taken for the real one; -P leaves that folder out, unless it is where tsx itself is.
    """
    ours = Path(tsx.__file__).resolve().parent.parent
    return [sys.executable, *([] if Path.cwd() == ours else ["-P"]), "-m", module]


def _spawn(order: Order, out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the worker and hand it its order."""
    keep = tuple(fd for fd in (order.lock_fd, order.report_fd) if fd >= 0)
    process = subprocess.Popen(
        make_line("tsx.launch.worker"),
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=err,
        pass_fds=keep,
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it died at once; its exit status says why
        process.stdin.write(msgspec.json.encode(order))
        process.stdin.close()
    return process


def _memory_limit_bytes() -> int:
    """Return the machine's memory, or the cgroup's limit where that is less."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _last_line(path: Path) -> str:
    """Return the last line of a log that says anything, bounded."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 8192))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
