"""Why a training process is gone: from its exit status, and from evidence where that is too little.

A SIGKILL counts as `oom` only on evidence: the kernel's out-of-memory counter of the process's
cgroup went up, or the process had grown to most of the machine's memory. Otherwise it is `killed`.
"""

from __future__ import annotations

import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

from registry.events import Status
from tsx.errors import Exit

OOM_SHARE_OF_RAM = 0.9  # a process this large that is SIGKILLed was almost surely the kernel's pick

EXIT_OF_STATUS = {
    Status.COMPLETED: Exit.OK,
    Status.FAILED: Exit.FAILED,
    Status.DIVERGED: Exit.DIVERGED,
    Status.OOM: Exit.OUT_OF_MEMORY,
    Status.INTERRUPTED: Exit.INTERRUPTED,
    Status.KILLED: Exit.KILLED,
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended. `exit_code` is what tsx exits with for it."""

    status: Status
    reason: str
    exit_code: int


def explain_exit(
    returncode: int, *, peak_rss_bytes: int, ram_bytes: int, oom_kills: int, last_line: str = ""
) -> Ending:
    """Say how a process that recorded no end of its own came to it.

    Args:
        returncode: as subprocess gives it, negative for a signal.
        peak_rss_bytes: the largest memory of the process.
        ram_bytes: memory of the machine (or its cgroup's limit where that is less).
        oom_kills: out-of-memory kills that the cgroup counted while the process lived.
        last_line: the last line of its stderr.
    """
    if returncode >= 0:
        tail = f": {last_line}" if last_line else ""
        return _ending(Status.FAILED, f"the process exited with status {returncode}{tail}")
    name = signal.Signals(-returncode).name if -returncode in _SIGNALS else f"signal {-returncode}"
    if name == "SIGKILL":
        if oom_kills > 0:
            return _ending(Status.OOM, "the kernel killed the process: out of memory (cgroup)")
        if ram_bytes and peak_rss_bytes >= OOM_SHARE_OF_RAM * ram_bytes:
            share = f"{peak_rss_bytes / 2**30:.1f} of {ram_bytes / 2**30:.1f} GiB"
            return _ending(Status.OOM, f"the process was killed with {share} of memory in use")
        return _ending(Status.KILLED, "the process was killed with SIGKILL")
    if name in {"SIGTERM", "SIGINT", "SIGHUP"}:
        return _ending(Status.INTERRUPTED, f"{name} before training could answer it")
    return _ending(Status.FAILED, f"the process crashed with {name}; the trace is in stderr.log")


def describe_error(error: BaseException) -> str:
    """Return one line for an error that nobody foresaw: type, message and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an error of the user's own may not be able to say anything
        text = "(its message cannot be shown)"
    return f"{type(error).__name__}: {text}{place}" if text else type(error).__name__ + place


def count_oom_kills() -> int:
    """Return the out-of-memory kills of this process's cgroup so far; 0 where it cannot be read."""
    total = 0
    for path in _list_event_files():
        try:
            lines = path.read_text().split("\n")
        except OSError:
            continue
        counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        total = max([total, *counts])
    return total


def _list_event_files() -> list[Path]:
    """Return where cgroup v2 counts memory events: the process's own group, and the root."""
    root = Path("/sys/fs/cgroup")
    found = [root / "memory.events"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    groups = [line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")]
    return found + [root / group / "memory.events" for group in groups]


def _ending(status: Status, reason: str) -> Ending:
    return Ending(status, reason, EXIT_OF_STATUS[status])


_SIGNALS = {int(member) for member in signal.Signals}
