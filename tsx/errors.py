"""The error tree and the exit codes of every command.

    TsxError                exit 1   anything tsx can explain
    |-- ConfigError         exit 2   a config, recipe, flag or data path the user gave
    |   `-- RecipeError     exit 2   a recipe file (place: "recipe 'x' [model] top_k")
    |-- DataError           exit 2   series that cannot be read as the run needs them
    |-- RegistryError       exit 3   the registry is locked, newer, corrupt, unreachable
    |-- RunNotFound         exit 1   no run of that id, prefix, name or position
    |-- RunClosed           exit 1   the Python API without a run, or after its end
    |-- Diverged            exit 4   the loss or a gradient is not finite
    `-- OutOfMemory         exit 5   the device or the host ran out of memory

Every message names the value, its place and the next command. `cli/main.py` is the one place
that turns these into text and an exit status; nothing else prints or exits.
`registry` and `recipes` never import tsx: they raise their own errors, which the boundary maps.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit status of a tsx command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REGISTRY = 3
    DIVERGED = 4
    OUT_OF_MEMORY = 5
    NOT_EXECUTABLE = 126  # `tsx exec`, as a shell has it; otherwise it exits as its program did
    NOT_FOUND = 127
    INTERRUPTED = 130
    KILLED = 137


class TsxError(Exception):
    """Anything tsx can explain. `next_command` is what the user can type to go on."""

    exit_code = Exit.FAILED

    def __init__(self, message: str, *, next_command: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_command = next_command


class ConfigError(TsxError):
    """A config key, flag or path the user gave is wrong."""

    exit_code = Exit.USAGE


class RecipeError(ConfigError):
    """A recipe file is missing, malformed or inconsistent."""


class DataError(TsxError):
    """Series that cannot be read, or not as the run needs them."""

    exit_code = Exit.USAGE


class RegistryError(TsxError):
    """The registry is locked, newer than this tsx, corrupt or out of reach."""

    exit_code = Exit.REGISTRY


class RunNotFound(TsxError):
    """No run answers to that id, prefix, name or position."""


class RunClosed(TsxError, RuntimeError):
    """`tsx.log` and its like were called without a run, or after it was finished."""


class Diverged(TsxError):
    """The loss or a gradient stopped being finite and the policy is to halt."""

    exit_code = Exit.DIVERGED


class OutOfMemory(TsxError):
    """The device or the host ran out of memory."""

    exit_code = Exit.OUT_OF_MEMORY
