"""How many bytes lie where: a run's folder by kind of file, and the rest of the home.

Counts the sizes of files, not the blocks they take. Never follows a symbolic link, counts a file
with several names once, and does not mind files that vanish meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.engine import URL

from registry.faults import explained, get_path, is_sqlite
from registry.link import Link
from registry.schema import runs, summaries

_KINDS = {
    "events.jsonl": "journal",
    "inbox.jsonl": "journal",
    "tail": "journal",
    "stdout.log": "logs",
    "stderr.log": "logs",
    "checkpoints": "checkpoints",
    "profiler": "traces",
    "dumps": "dumps",
}

Seen = set[tuple[int, int]]  # device and inode of files that are counted


@dataclass(frozen=True, slots=True)
class RunUse:
    """Bytes of one run. `points` is its share of the database, by its number of points."""

    run: str
    name: str
    journal: int
    logs: int
    checkpoints: int
    traces: int
    dumps: int
    other: int
    points: int

    @property
    def total(self) -> int:
        """All of it."""
        files = self.journal + self.logs + self.checkpoints + self.traces + self.dumps
        return files + self.other + self.points


@dataclass(frozen=True, slots=True)
class HomeUse:
    """Bytes of a home. `registry` is the database wherever it is; `other` is the rest."""

    runs: tuple[RunUse, ...]  # the largest first
    registry: int
    cache: int
    data: int
    other: int  # logs of sweeps, copies of the registry

    @property
    def total(self) -> int:
        """All of it, the database counted once."""
        files = sum(use.total - use.points for use in self.runs)
        return files + self.registry + self.cache + self.data + self.other


def measure_home(home: Path, url: URL) -> HomeUse:
    """Return what every run, the caches and the registry take.

    Raises:
        StoreError: the registry cannot be read.
    """
    seen: Seen = set()
    database = 0
    if is_sqlite(url):
        path = get_path(url)
        for suffix in ("", "-wal", "-shm", "-journal"):
            database += measure(path.with_name(path.name + suffix), seen)
    names, shares = _load_shares(url, database)
    found = []
    for folder in _list_folders(home / "runs"):
        kinds = dict.fromkeys((*_KINDS.values(), "other"), 0)
        for entry in _scan(folder):
            kinds[_KINDS.get(entry.name, "other")] += measure(Path(entry.path), seen)
        run = folder.name
        found.append(RunUse(run, names.get(run, ""), **kinds, points=shares.get(run, 0)))
    here = {use.run for use in found}
    empty = dict.fromkeys((*_KINDS.values(), "other"), 0)
    for run in names.keys() - here:  # known, and its folder elsewhere or gone
        found.append(RunUse(run, names[run], **empty, points=shares.get(run, 0)))
    found.sort(key=lambda use: (-use.total, use.run))
    cache, data = measure(home / "cache", seen), measure(home / "data", seen)
    rest = [entry for entry in _scan(home) if entry.name not in ("runs", "cache", "data")]
    other = sum(measure(Path(entry.path), seen) for entry in rest)
    return HomeUse(tuple(found), database, cache, data, other)


def measure(path: Path, seen: Seen | None = None) -> int:
    """Return the bytes of a file, or of everything below a folder; 0 for what is not there."""
    seen = set() if seen is None else seen
    try:
        status = path.lstat()
    except OSError:
        return 0
    if stat.S_ISDIR(status.st_mode):
        size, folders = 0, [path]
        while folders:
            for entry in _scan(folders.pop()):
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        size += _count(entry.stat(follow_symlinks=False), seen)
        return size
    return _count(status, seen)


def _count(status: os.stat_result, seen: Seen) -> int:
    """Return a file's bytes the first time it is met; 0 for what is no file."""
    if not stat.S_ISREG(status.st_mode):
        return 0
    file = (status.st_dev, status.st_ino)
    if file in seen:
        return 0
    seen.add(file)
    return status.st_size


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


def _list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, links to some left out; none where it is a link itself."""
    if folder.is_symlink():
        return []
    return sorted(Path(e.path) for e in _scan(folder) if e.is_dir(follow_symlinks=False))


def _load_shares(url: URL, database: int) -> tuple[dict[str, str], dict[str, int]]:
    """Return the names of all runs, and their shares of so many bytes."""
    query = (
        select(runs.c.id, runs.c.name, func.coalesce(func.sum(summaries.c.count), 0))
        .outerjoin(summaries, summaries.c.run == runs.c.key)
        .group_by(runs.c.key, runs.c.id, runs.c.name)
    )
    link = Link(url)
    try:
        with link.snapshot() as connection, explained(url):
            found = connection.execute(query).all()
    finally:
        link.close()
    total = sum(int(count) for _, _, count in found) or 1
    shares = {run: database * int(count) // total for run, _, count in found}
    return {run: name for run, name, _ in found}, shares
