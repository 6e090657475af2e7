"""Names the parts of Time-300B: which partitions a repository holds, and which of them are asked.

A partition is a folder with a meta.json, `<domain>/<dataset>`. Sets are the ones that the research
notes name, but for one: their `train` held finance, the very series that they then called out of
distribution. No file is opened here and nothing is asked of the network.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath

from tsx.data.catalog import matches
from tsx.data.series import META_NAME
from tsx.errors import ConfigError, TsxError


class PartitionSet(StrEnum):
    """A named choice of partitions."""

    DEBUG = "debug"
    TRAIN = "train"
    FINANCE = "finance"


PATTERNS: dict[PartitionSet, tuple[str, ...]] = {
    PartitionSet.DEBUG: ("other/m4_daily", "healthcare/hospital", "sales/dominick"),
    PartitionSet.TRAIN: ("energy*", "nature*", "synthetic*", "web*", "sales*"),
    PartitionSet.FINANCE: ("finance*",),
}
PURPOSES = {
    PartitionSet.DEBUG: "sanity checks; no finance series, so an OOD check on it reads nothing",
    PartitionSet.TRAIN: "training; the notes' set held finance as well, which leaks the OOD series",
    PartitionSet.FINANCE: "out-of-distribution (OOD) validation, never trained on",
}


def locate_time300b(home: Path) -> Path:
    """Return the folder under `$TSX_HOME` where Time-300B is kept and looked for."""
    return home / "data" / "time300b"


def parse_sets(names: Iterable[str]) -> tuple[PartitionSet, ...]:
    """Return the sets of these names, each once; a name may hold several, split by commas.

    Raises:
        ConfigError: a name that is none of them.
    """
    chosen: dict[PartitionSet, None] = {}
    for name in _split(names):
        if name not in PATTERNS:
            raise ConfigError(
                f"--partition-set {name!r} is none of {', '.join(PATTERNS)}",
                next_command="--partitions takes other names, domains and globs",
            )
        chosen[PartitionSet(name)] = None
    return tuple(chosen)


def list_patterns(sets: Sequence[PartitionSet], partitions: Iterable[str]) -> tuple[str, ...]:
    """Return all that is asked for as globs, each once.

    Raises:
        ConfigError: nothing is asked for.
    """
    patterns = [pattern for chosen in sets for pattern in PATTERNS[chosen]]
    patterns += [name.strip("/") for name in _split(partitions)]
    if not patterns:
        raise ConfigError(
            f"nothing is asked for: --partition-set {'|'.join(PATTERNS)} or --partitions a,b",
            next_command="tsx data download --partition-set debug",
        )
    return tuple(dict.fromkeys(patterns))


def list_notices(sets: Sequence[PartitionSet]) -> list[str]:
    """Return what somebody who knows the notes' sets must be told."""
    notices = []
    if PartitionSet.TRAIN in sets:
        notices.append(
            "train leaves finance* out: the notes' set trained on the very series that they used "
            "as OOD"
        )
    if PartitionSet.FINANCE in sets:
        if len(sets) > 1:
            notices.append(
                "finance lies in the same folder: keep it out of training with "
                "--set 'data.ood_include=[\"finance*\"]' or --set 'data.exclude=[\"finance*\"]'"
            )
    elif sets:
        names = " and ".join(sets)
        verb = "hold" if len(sets) > 1 else "holds"
        notices.append(
            f"{names} {verb} no finance series, so an OOD check on finance has nothing to read; "
            "add --partition-set finance"
        )
    return notices


def find_partitions(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the folders among a repository's files that hold a meta.json, ordered by name.

    Hidden ones are none: readers pass them over.
    """
    parents = (PurePosixPath(path) for path in paths)
    return tuple(
        sorted(
            str(path.parent)
            for path in parents
            if path.name == META_NAME and path.parent.name and not _is_hidden(path)
        )
    )


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)


def select_partitions(there: Sequence[str], patterns: Sequence[str], place: str) -> tuple[str, ...]:
    """Return the partitions that the patterns choose.

    Raises:
        ConfigError: a pattern that chooses none; names the nearest.
        TsxError: there are no partitions at all.
    """
    if not there:
        raise TsxError(f"{place} holds no partition: no folder of it has a {META_NAME}")
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in there):
            domains = sorted({name.partition("/")[0] for name in there})
            near = difflib.get_close_matches(pattern, [*there, *domains], n=3, cutoff=0.4)
            offer = f"nearest: {', '.join(near)}" if near else f"domains: {', '.join(domains)}"
            raise ConfigError(
                f"no partition of {place} matches {pattern!r}; {offer}",
                next_command=f"--partitions {(near or domains)[0]}",
            )
    return tuple(name for name in there if matches(name, patterns))


def render_sets() -> str:
    """Return the sets as a Markdown table, for the documentation."""
    rows = [
        f"| `{name}` | {', '.join(f'`{pattern}`' for pattern in patterns)} | {PURPOSES[name]} |"
        for name, patterns in PATTERNS.items()
    ]
    return "\n".join(["| set | partitions | for |", "|---|---|---|", *rows])


def _split(values: Iterable[str]) -> list[str]:
    """Return the words of comma-separated values, without the empty ones."""
    return [word for value in values for part in value.split(",") if (word := part.strip())]
