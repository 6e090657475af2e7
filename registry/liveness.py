"""Is the process of a run still there?

A run's process holds an OS lock on `lock` in the run's folder; the kernel drops it with the
process, however it ends. Where that cannot be asked (no lock file, a file system without locks) the
process id decides, and another host's run is judged by the age of its last event alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
import weakref
from pathlib import Path

LOCK_NAME = "lock"

REMOTE_SILENCE_S = 600.0  # a run on another host is given up after so long without an event:
# compilation and a long validation may say nothing for minutes
START_GRACE_S = 30.0  # a run that has no process yet is given this long to get one
_CLOCK_SLACK_S = 2.0  # boot time and wall clock disagree by less than this


class LockHeld(Exception):
    """Another process trains, resumes or recovers this run."""


class RunLock:
    """The lock that says "this run's process is here". It goes with the last copy of its fd.

    The launcher acquires it and hands `fd` to the child through `pass_fds`; the child makes it its
    own with `from_fd`, the launcher releases its copy, and from then on the lock lives exactly as
    long as the child. Processes forked by the child let go of it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        _held.add(self)

    @classmethod
    def acquire(cls, folder: Path, *, wait_s: float = 1.0) -> RunLock:
        """Take the lock of a run's folder; waits a little, for others only look at it briefly.

        Raises:
            LockHeld: it is held for longer than `wait_s`.
            OSError: the folder cannot be written, or its file system has no locks.
        """
        fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + wait_s
        try:
            while not _try_lock(fd, fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    raise LockHeld(f"{folder / LOCK_NAME} is held by another process")
                time.sleep(0.01)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def from_fd(cls, fd: int) -> RunLock:
        """Adopt a lock that was inherited through `pass_fds`; later children do not get it."""
        os.set_inheritable(fd, False)
        return cls(fd)

    @property
    def fd(self) -> int:
        """The file descriptor to pass on; -1 once released."""
        return self._fd

    def release(self) -> None:
        """Close this copy. Unlocking it would take the lock from a child that has a copy too."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _release_in_child() -> None:
    """Let go of every lock after a fork: a data loader must not keep a dead run alive."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


def is_alive(folder: Path, *, pid: int, host: str, heartbeat: float, now: float) -> bool:
    """Tell whether the process of a run is still there.

    Args:
        folder: the run's folder.
        pid: of the process that trains; 0 is unknown.
        host: where it runs; empty is unknown and taken for here.
        heartbeat: UTC seconds of the newest event of the run.
        now: UTC seconds.
    """
    held = is_locked(folder)
    return bool(held) or seems_alive(
        pid=pid, host=host, heartbeat=heartbeat, now=now, has_lock_file=held is False
    )


def seems_alive(*, pid: int, host: str, heartbeat: float, now: float, has_lock_file: bool) -> bool:
    """Tell whether a run may be alive though nobody holds its lock; see is_alive.

    `has_lock_file` says that it once had a lock: then its process, if it was here, has let go.
    """
    if host and host != socket.gethostname():
        return now - heartbeat < REMOTE_SILENCE_S  # its locks may not reach this host
    if has_lock_file:
        return False
    if pid <= 0:
        return now - heartbeat < START_GRACE_S
    return has_process(pid, known_at=heartbeat)


def is_locked(folder: Path) -> bool | None:
    """Tell whether a process holds the run's lock; None where no lock can tell."""
    try:
        fd = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    except OSError:
        return None
    finally:
        os.close(fd)


def has_process(pid: int, *, known_at: float) -> bool:
    """Tell whether the process that had this id at `known_at` (UTC seconds) still has it.

    A process that started later was given the same id after the first one was gone.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(process.create_time() <= known_at + _CLOCK_SLACK_S)
    except psutil.AccessDenied:
        return True
    except (psutil.Error, OSError, OverflowError, ValueError):
        return False


def _try_lock(fd: int, kind: int) -> bool:
    """Take the lock without waiting; False when another holds it."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
