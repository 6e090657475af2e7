"""Who has a file open, by /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def list_holders(path: Path) -> list[int]:
    """Return the other processes that have a file open."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # the process is gone, or another user's
                if any(_read_link(fd) == str(path) for fd in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
    return found


def _read_link(path: Path) -> str:
    """Return where a link leads; "" where it is gone: who works opens and closes files."""
    try:
        return os.readlink(path)
    except OSError:
        return ""
