"""How a recorded run comes to be: its folder, its lock, the first line of its journal.

Whoever records (the supervisor of a recipe, `tsx.init`, `tsx exec`) begins here; a run whose
beginning cannot be written leaves no trace.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from registry.events import RunStarted
from registry.liveness import LockHeld, RunLock
from registry.store import Recorder
from tsx.errors import ConfigError, RegistryError


def begin_run(folder: Path, url: str, started: RunStarted) -> tuple[RunLock, Recorder]:
    """Make a run's folder, take its lock and record its first event.

    Args:
        folder: of the run, named by its id; must not exist yet.
        url: the registry's SQLAlchemy URL.
        started: the first event.

    Raises:
        StoreError, RegistryError: folder or registry cannot be written; nothing is left behind.
    """
    try:
        folder.mkdir(parents=True)
        lock = lock_run(folder, started.run_id)
    except OSError as error:
        raise RegistryError(
            f"cannot make the run's folder {folder}: {error.strerror}",
            next_command="set TSX_HOME to a folder that can be written",
        ) from error
    try:
        recorder = Recorder(folder, url)
        try:
            recorder.emit(started)
        except BaseException:
            recorder.close()
            raise
    except BaseException:
        lock.release()
        with suppress(OSError):
            shutil.rmtree(folder)
        raise
    return lock, recorder


def lock_run(folder: Path, run_id: str) -> RunLock:
    """Take the lock of a run that exists.

    Raises:
        ConfigError: another process has it: the run is still going.
        RegistryError: its folder cannot be written.
    """
    try:
        return RunLock.acquire(folder)
    except LockHeld:
        raise ConfigError(
            f"run {run_id} is still going", next_command=f"tsx show {run_id}"
        ) from None
    except OSError as error:
        raise RegistryError(
            f"run {run_id} cannot be locked: {folder}: {error.strerror}",
            next_command="make its folder writable, or set TSX_HOME to the one that holds it",
        ) from error
