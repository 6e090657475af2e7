"""What a download request comes to, before anything is fetched.

Compares the Hub's listing with names and sizes on disk and with the record of earlier downloads;
no content is read, and nothing is written.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tsx.data.hub import Listing, RemoteFile
from tsx.data.partitions import find_partitions, select_partitions
from tsx.data.parts import count_kept
from tsx.data.record import find_record
from tsx.errors import ConfigError, TsxError

MAX_FILE_BYTES = 50_000_000_000  # beyond, the Hub answers no plain request


@dataclass(frozen=True)
class Partition:
    """A data set as the Hub has it."""

    name: str  # "<domain>/<dataset>"
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Plan:
    """What a request comes to, before anything is fetched."""

    folder: Path
    listing: Listing
    patterns: tuple[str, ...]
    partitions: tuple[Partition, ...]
    whole: frozenset[str]  # files known to be on disk
    unchecked: frozenset[str]  # files on disk of the right size that no record vouches for
    parts: dict[str, int]  # file -> bytes of it that an earlier download left

    @property
    def files(self) -> list[RemoteFile]:
        """All files asked for."""
        return [file for partition in self.partitions for file in partition.files]

    @property
    def missing(self) -> list[RemoteFile]:
        """Files to fetch, if those that are unchecked turn out to be whole."""
        return [file for file in self.files if file.path not in self.whole | self.unchecked]

    @property
    def bytes(self) -> int:
        """Size of all files asked for."""
        return sum(file.size for file in self.files)

    def count_missing(self, files: Sequence[RemoteFile]) -> int:
        """Return the bytes that files lack, their parts counted as there."""
        return sum(file.size - self.parts.get(file.path, 0) for file in files)


def make_plan(folder: Path, listing: Listing, patterns: Sequence[str]) -> Plan:
    """Compare what is asked for with what is on disk; reads names and sizes only.

    Raises:
        ConfigError: a pattern without a partition, or the folder holds another repository.
        TsxError: a file name that leads elsewhere or through another file, or a file too large
            to be served.
    """
    record = find_record(folder)
    if record is not None and record.repo != listing.repo and record.files:
        raise ConfigError(
            f"{folder} holds {record.repo}; {listing.repo} would be mixed into it",
            next_command="--time300b-dir ANOTHER",
        )
    place = f"{listing.repo} at {listing.commit[:12]}"
    names = find_partitions(file.path for file in listing.files)
    chosen = set(select_partitions(names, patterns, place))
    held: dict[str, list[RemoteFile]] = {name: [] for name in names if name in chosen}
    known = frozenset(names)
    for file in listing.files:
        owner = find_owner(file.path, known)
        if owner in held and _is_plain(file, place):
            held[owner].append(file)
    _refuse_nested(held, place)
    partitions = tuple(Partition(name, tuple(files)) for name, files in held.items())
    whole, unchecked, parts = set(), set(), {}
    for file in (file for partition in partitions for file in partition.files):
        if record is not None and record.trusts(folder, file.path, file.digest):
            whole.add(file.path)
        elif _find_size(folder / file.path) == file.size:
            unchecked.add(file.path)
        else:
            parts[file.path] = count_kept(folder, file)
    return Plan(
        folder, listing, tuple(patterns), partitions, frozenset(whole), frozenset(unchecked), parts
    )


def check_space(plan: Plan) -> int:
    """Return the free bytes where the plan would write.

    Raises:
        TsxError: fewer than it would need.
    """
    place = plan.folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = plan.count_missing(plan.missing)
    if needed > free:
        raise TsxError(
            f"not enough room in {plan.folder}: {needed:,} bytes to fetch, {free:,} free, "
            f"{needed - free:,} missing",
            next_command="free some, or --time300b-dir on another disk, or fewer --partitions",
        )
    return free


def find_owner(path: str, names: Container[str]) -> str | None:
    """Return the innermost partition that a file lies in."""
    parents = (str(parent) for parent in PurePosixPath(path).parents)
    return next((parent for parent in parents if parent in names), None)


def _is_plain(file: RemoteFile, place: str) -> bool:
    """Tell whether a file is to be fetched: hidden ones are not.

    Raises:
        TsxError: a name that leads out of the folder, or a size that is not served.
    """
    steps = file.path.split("/")
    if any(step in ("", ".", "..") or "\\" in step or not step.isprintable() for step in steps):
        raise TsxError(f"{place} lists a file whose name leads elsewhere: {file.path!r}")
    if file.size > MAX_FILE_BYTES:
        raise TsxError(
            f"{file.path} of {place} has {file.size:,} bytes; the Hub serves files over "
            f"{MAX_FILE_BYTES:,} by its xet protocol only",
            next_command="hf download --repo-type dataset, or leave this partition out",
        )
    return not any(step.startswith(".") for step in steps)


def _refuse_nested(held: dict[str, list[RemoteFile]], place: str) -> None:
    """Raise TsxError where one file's name is the folder of another: no disk can hold both."""
    paths = {file.path for files in held.values() for file in files}
    for path in sorted(paths):
        if (owner := find_owner(path, paths)) is not None:
            raise TsxError(f"{place} lists {owner!r} both as a file and as the folder of {path!r}")


def _find_size(path: Path) -> int | None:
    """Return the size of a plain file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
