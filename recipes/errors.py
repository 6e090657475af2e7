"""The one error of recipe files, and the text that offers the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SHOWN = 80  # characters of a value in a message
MAX_NAMES = 12  # valid names listed when none is near


class RecipeFileError(Exception):
    """A recipe is missing, malformed or out of bounds.

    `message` has the value and its place, `next_command` what the user can type to go on.
    """

    def __init__(self, message: str, *, next_command: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_command = next_command


def offer(name: str, valid: Iterable[str]) -> str:
    """Return '; did you mean ...?' for a near name, or '; valid: ...' when none is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(name[:MAX_SHOWN], names, n=2, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(repr(near) for near in close)}?"
    shown = ", ".join(names[:MAX_NAMES])
    return f"; valid: {shown}{', ...' if len(names) > MAX_NAMES else ''}" if names else ""


def show(value: object) -> str:
    """Return a value's repr, cut to what fits in a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a nest
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
