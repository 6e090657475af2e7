"""Which data sets lie under a path, how they are named, and which of them globs select.

A folder with a meta.json is a data set; so is a file of a known format, refused ones included: what
is selected and cannot be read is told, not passed over. Other folders are walked, hidden names
aside, each once (a symlink loop ends). Nothing is opened here.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsx.data.formats import describe_formats, find_suffix
from tsx.data.series import META_NAME
from tsx.errors import DataError


@dataclass(frozen=True)
class Entry:
    """A data set that can be opened: its name, and its folder or file."""

    name: str  # "<domain>/<dataset>"
    path: Path


def list_entries(root: Path) -> list[Entry]:
    """Return the data sets at or under `root`, ordered by name.

    Names are paths below `root`; where that gives no domain, the folder above lends its name, so
    a data set is called the same whether the path leads to the corpus, the domain or to itself.

    Raises:
        DataError: nothing at that path, nothing readable, or no data set.
    """
    root = Path(os.path.abspath(root.expanduser()))
    if not os.path.exists(root):  # unlike Path.exists, never raises
        raise DataError(
            f"no data at {root}: no such file or folder", next_command="tsx run ... --data PATH"
        )
    entries = [Entry(_name(root, path), path) for path in iter_paths(root)]
    if not entries:
        raise DataError(f"no data set at {root}: {describe_formats()}")
    return sorted(entries, key=lambda entry: entry.name)


def iter_paths(root: Path) -> Iterator[Path]:
    """Yield the folder or file of each data set at or under `root`.

    Raises:
        DataError: a folder that cannot be read.
    """
    try:
        if not root.is_file():
            yield from _walk(root)
        elif find_suffix(root):
            yield root
    except OSError as error:
        raise DataError(f"cannot read {error.filename or root}: {error.strerror}") from None


def _walk(root: Path) -> Iterator[Path]:
    """Yield what `iter_paths` does, for a folder."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if (folder / META_NAME).is_file():
            yield folder
            continue
        with os.scandir(folder) as found:
            for child in sorted(found, key=lambda child: child.name, reverse=True):
                if child.name.startswith("."):
                    continue
                path = Path(child.path)
                if os.path.isdir(path):  # False, not an error, for a link that leads nowhere
                    waiting.append(path)
                elif find_suffix(path) and os.path.isfile(path):
                    yield path


def matches(name: str, globs: Sequence[str]) -> bool:
    """Say whether a data set's name, or its domain alone, matches any of the globs."""
    domain = name.partition("/")[0]
    return any(
        fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(domain, glob) for glob in globs
    )


def describe_names(entries: Sequence[Entry], limit: int = 20) -> str:
    """Return the names of the data sets there are, for an error."""
    names = [entry.name for entry in entries]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).parts
    if len(parts) == 0:
        parts = (root.parent.name, root.name)
    elif len(parts) == 1:
        parts = (root.name, *parts)
    return "/".join(part for part in parts if part)
