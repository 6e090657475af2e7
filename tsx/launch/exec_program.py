"""A program that is not ours: found, started in the user's terminal, watched, its end explained.

It gets the user's folder, stdin, environment and process group, and three words more: TSX_EVENTS
(where it may append what it has to say), TSX_RUN (the run's id), and PYTHONUNBUFFERED, without
which the lines of a Python program would come when it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.events import Status
from registry.inbox import INBOX_NAME
from registry.liveness import RunLock
from tsx.errors import Exit, TsxError
from tsx.launch.exit_reason import Ending
from tsx.launch.process import Child, make_line

_INTERPRETERS = ("python", "pypy", "bash", "sh", "zsh", "dash", "julia", "Rscript", "node", "perl")
_RESTORED = [signal.SIGPIPE, signal.SIGXFSZ]  # Python ignores these two; nobody else does


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """A program to be recorded, with everything the registry keeps of who asked for it."""

    run_id: str
    name: str
    words: tuple[str, ...]  # program and arguments as given
    path: str  # of the program
    project: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    command: tuple[str, ...] = ()
    parse: bool = True  # look for metric lines on stdout


class ForeignProcess(Child):
    """A running program; it holds a copy of the run's lock.

    Args:
        plan: what to start.
        folder: the run's.
        lock: the run's; the program inherits it, and whom it starts may too.
        out: write ends of the pipes for stdout and stderr.
        mask: the signals that are to be blocked in it.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        plan: ProgramPlan,
        folder: Path,
        lock: RunLock,
        out: tuple[int, int],
        mask: set[int],
    ) -> None:
        super().__init__()
        os.set_inheritable(lock.fd, True)
        try:
            self.pid = os.posix_spawn(
                plan.path,
                plan.words,
                make_environment(os.environ, plan.run_id, folder),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fd, to) for fd, to in zip(out, (1, 2), strict=True)
                ],
                setsigmask=mask,
                setsigdef=_RESTORED,
            )
        finally:
            os.set_inheritable(lock.fd, False)

    def ending(self, stopped_by: signal.Signals | None, last_line: str) -> Ending:
        """Say how the program ended; the exit code is the one a shell would give.

        Args:
            stopped_by: the stop signal that the program got, if any.
            last_line: the last of its stderr.
        """
        assert self.returncode is not None, "ask after poll() returned True"
        code = self.returncode
        if code == 0:
            return Ending(Status.COMPLETED, "", Exit.OK)
        if code > 0:
            tail = f": {last_line}" if last_line else ""
            reason = f"the program exited with status {code}{tail}"
            if stopped_by is not None:
                return Ending(Status.INTERRUPTED, f"{stopped_by.name}; {reason}", code)
            return Ending(Status.FAILED, reason, code)
        explained, name = self.explain(last_line), _name_signal(-code)
        reason = explained.reason if name == "SIGKILL" else f"the program ended with {name}"
        return Ending(explained.status, reason, 128 - code)


def _name_signal(number: int) -> str:
    """Return a signal's name; real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def find_program(word: str) -> str:
    """Return the path of a program as a shell would find it.

    Raises:
        TsxError: there is none (exit 127), or it cannot be executed (126).
    """
    if found := shutil.which(word):
        return found
    place = word if os.sep in word else shutil.which(word, os.F_OK)
    if not place or not os.path.lexists(place):
        error = TsxError(
            f"no program {word!r} {'there' if os.sep in word else 'on PATH'}",
            next_command=f"tsx exec -- bash -c '{word} ...', where it is a shell's own command",
        )
        error.exit_code = Exit.NOT_FOUND
        raise error
    if os.path.isdir(place):
        error = TsxError(f"{place} is a folder", next_command="tsx exec -- python train.py")
    else:
        advice = f"chmod +x {place}, or name its interpreter: tsx exec -- python {place}"
        error = TsxError(f"{place} is not executable", next_command=advice)
    error.exit_code = Exit.NOT_EXECUTABLE
    raise error


def name_program(words: Sequence[str]) -> str:
    """Return a name for a run: the script's where an interpreter runs one, else the program's."""
    program = os.path.basename(words[0])
    if program.rstrip("0123456789.") in _INTERPRETERS:
        for word in words[1:]:
            if word in ("-c", "-m", "-e"):
                break
            if not word.startswith("-"):
                return os.path.basename(word) or program
    return program or words[0]


def make_environment(environ: Mapping[str, str], run_id: str, folder: Path) -> dict[str, str]:
    """Return the program's environment."""
    added = {"TSX_EVENTS": str(folder / INBOX_NAME), "TSX_RUN": run_id}
    return {"PYTHONUNBUFFERED": "1", **environ, **added}


@contextmanager
def guarded(out_fd: int, err_fd: int, folder: Path) -> Iterator[None]:
    """Have another process stand by that keeps a program's output going should we be killed.

    Args:
        out_fd: read end of the program's stdout.
        err_fd: read end of its stderr.
        folder: the run's, for the logs.
    """
    life_read, life_write = os.pipe()  # nobody else can write to it: its end is ours
    fds = (out_fd, err_fd, life_read)
    guard = None
    with suppress(OSError):  # no room for one more process: the program runs without this net
        guard = subprocess.Popen(
            [*make_line("tsx.launch.exec_guard"), *map(str, fds), str(folder)],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,  # a Ctrl-C is not for it
        )
    os.close(life_read)
    try:
        yield
    finally:
        if guard is not None:
            guard.kill()
            guard.wait()
        os.close(life_write)
