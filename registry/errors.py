"""Errors of the registry. tsx's boundary maps each to a message and an exit status.

StoreError           exit 3   any trouble with the registry itself
|-- StoreLocked      another process holds it; the message names the holder where it can
|-- StoreNewer       written by a newer tsx; both versions named
|-- StoreOutdated    older schema, opened for reading; names the command that migrates it
|-- StoreCorrupt     not a database, or a damaged one; names `tsx registry rebuild`
`-- StoreUnavailable folder not writable, disk full, engine not installed, host unreachable
UnknownRun           exit 1   no run of that reference, with the nearest names
"""

from __future__ import annotations


class StoreError(Exception):
    """Trouble with the registry. `next_command` is what the user can type to go on."""

    def __init__(self, message: str, *, next_command: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_command = next_command


class StoreLocked(StoreError):
    """Another process holds the registry and did not let go in time."""


class StoreNewer(StoreError):
    """The registry was written by a newer version."""


class StoreOutdated(StoreError):
    """The registry has an older schema and a reader may not change it."""


class StoreCorrupt(StoreError):
    """The file is not a registry, or is damaged."""


class StoreUnavailable(StoreError):
    """The registry cannot be opened or written at all."""


class UnknownRun(Exception):
    """No run, or more than one, answers to a reference; the message does not repeat `nearest`."""

    def __init__(self, message: str, *, reference: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.reference = reference
        self.nearest = nearest
