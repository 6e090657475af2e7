"""Lines that say a thing, in the source of a model's classes and of functions under way."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from types import CodeType, FrameType

from tsx.diagnostics.tracing.places import shorten

MAX_LINES = 2000  # of one class or function


def find_class_line(kind: type, pattern: re.Pattern[str]) -> tuple[str, str]:
    """Return "file.py:12" of the first line of a class that fits, comments aside, and its text.

    Args:
        kind: a class; one of torch's own has no line of the user's.
        pattern: is searched in each line.

    Returns:
        ("", "") where none fits, or there is no source.
    """
    if kind.__module__.partition(".")[0] == "torch":
        return "", ""
    return _find(kind, pattern)


def find_function_line(frames: Sequence[FrameType], pattern: re.Pattern[str]) -> str:
    """Return the first line that fits in the innermost function under way that has one."""
    for frame in frames:
        where, _ = _find(frame.f_code, pattern)
        if where:
            return where
    return ""


def find_scope_line(frames: Sequence[FrameType], pattern: re.Pattern[str]) -> str:
    """Return the line that the innermost function is at that has a fitting line before it."""
    for frame in frames:
        where, _ = _find(frame.f_code, pattern)
        if where and int(where.rpartition(":")[2]) <= frame.f_lineno:
            return shorten(f"{frame.f_code.co_filename}:{frame.f_lineno}")
    return ""


def _find(thing: type | CodeType, pattern: re.Pattern[str]) -> tuple[str, str]:
    try:
        lines, first = inspect.getsourcelines(thing)
        path = inspect.getsourcefile(thing)
    except (OSError, TypeError, IndexError):
        return "", ""
    for number, line in enumerate(lines[:MAX_LINES]):
        text = line.partition("#")[0]
        if pattern.search(text):
            return shorten(f"{path}:{max(first, 1) + number}"), text.strip()
    return "", ""
