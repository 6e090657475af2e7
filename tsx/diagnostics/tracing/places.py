"""Places in source files, as they are told: "file.py:12"."""

from __future__ import annotations

import os


def shorten(where: str) -> str:
    """Return a place with a path that is relative to here, where it is below."""
    path, _, line = where.rpartition(":")
    try:
        relative = os.path.relpath(path) if path else ""
    except ValueError:
        return where
    return (
        f"{path if relative.startswith('..') or not relative else relative}:{line}" if path else ""
    )
