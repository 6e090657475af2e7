"""From `[data]` to a corpus: what is read, what is held out, what is never trained on.

Source: `data.path` where given, else Time-300B under `$TSX_HOME/data/time300b` where it is on
disk, else the built-in demo corpus. Out-of-distribution (OOD) data sets come from `data.ood_path`
or are named by `data.ood_include`; neither they nor a copy of them are trained on.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsx.config import DataConfig, Source
from tsx.data.catalog import Entry, describe_names, iter_paths, list_entries, matches
from tsx.data.demo import ensure_demo
from tsx.data.formats import open_series
from tsx.data.partitions import locate_time300b
from tsx.data.scaling import Mask
from tsx.data.series import DataSet, MapPool
from tsx.data.split import hold_out
from tsx.data.windows import Part, WindowSet
from tsx.errors import DataError

# Up to so many stored values each is looked at before step 0; beyond, when its series is read.
CHECKED_POINTS = 20_000_000


@dataclass(frozen=True)
class Corpus:
    """The windows of a run: to train on, to validate on, and out of distribution."""

    source: str  # "demo", "time300b" or the path
    is_demo: bool
    notice: str  # one line: what is read, and why
    fingerprint: str  # 16 hex digits over every data set that is read
    train: WindowSet
    val: WindowSet | None
    ood: WindowSet | None
    overlap: tuple[str, ...]  # data sets left out of training because they are OOD
    leaks: tuple[str, ...]  # those of them that [data] asks to train on, or names nowhere
    fingerprints: dict[str, dict[str, str]]  # "train" and "ood": data set to its own fingerprint

    def describe(self) -> dict[str, Any]:
        """Return what the registry keeps about the data, as plain JSON data."""
        return {
            "source": self.source,
            "notice": self.notice,
            "fingerprint": self.fingerprint,
            "train": self.train.describe(),
            "val": self.val.describe() if self.val else None,
            "ood": self.ood.describe() if self.ood else None,
            "overlap": list(self.overlap),
            "fingerprints": self.fingerprints,
        }


def open_corpus(
    config: DataConfig, *, home: Path, patch_len: int = 1, origin_stride: int | None = None
) -> Corpus:
    """Open the data a run asks for; the demo corpus is generated on first use.

    Args:
        config: the `[data]` section.
        home: `$TSX_HOME`.
        patch_len: points a token of the model; a series needs one more to hold a target.
        origin_stride: points between the origins that are scored, so a series that is scored
            needs one more: runs of any patch_len then score the same windows. Default patch_len.

    Raises:
        DataError: no data there, nothing selected, or data that cannot be read as it is.
    """
    source, root, notice = _resolve(config, home)
    try:
        floors = _Floors(patch_len, origin_stride or patch_len)
        return _build(config, home, floors, source=source, root=root, notice=notice)
    except DataError as error:
        if source == Source.DEMO and str(root) in error.message:
            # Ours to make again: say so, whatever happened to it.
            raise DataError(error.message, next_command=f"rm -r {root}") from None
        raise


def refuse_missing(config: DataConfig, home: Path) -> None:
    """Raise where Time-300B is what a run asks for and is not on disk.

    Raises:
        DataError: with the command that downloads what the run reads.
    """
    if config.path is None and config.source is Source.TIME300B and _find_time300b(home) is None:
        raise DataError(
            f"data.source=time300b but Time-300B is not on disk at {locate_time300b(home)}",
            next_command=f"tsx data download {_name_parts(config)}; or --data PATH",
        )


def _name_parts(config: DataConfig) -> str:
    """Return the flags of `tsx data download` for all that a run on Time-300B reads."""
    if not config.ood_include:
        return "--partition-set train"
    if all(pattern.startswith("finance") for pattern in config.ood_include):
        return "--partition-set train,finance"
    return f"--partition-set train --partitions {shlex.quote(','.join(config.ood_include))}"


def _find_time300b(home: Path) -> Path | None:
    """Return the folder of Time-300B if it holds a data set."""
    hub = locate_time300b(home)
    return hub if hub.is_dir() and next(iter_paths(hub), None) is not None else None


def _build(
    config: DataConfig, home: Path, floors: _Floors, *, source: str, root: Path, notice: str
) -> Corpus:
    """Open what is selected under `root` and sort it into train, val and OOD."""
    opener = _Opener(home)
    entries = list_entries(root)
    if source == Source.TIME300B:  # files beside the data sets there are about them
        entries = [entry for entry in entries if entry.path.is_dir()]
    ood_entries = _select_ood(config, entries, is_hub=source == Source.TIME300B)
    train_entries = select_train(config, entries)
    ood = [opener.open(entry) for entry in ood_entries]
    train, overlap = _leave_out(train_entries, ood_entries, ood, opener)
    if not train:
        raise DataError(
            "nothing to train on: every data set selected is out of distribution "
            f"({describe_names(train_entries)})"
        )
    if not config.allow_nonfinite:
        _check_finite([*train, *ood])
    train_set, val_set = _split(train, config, floors)
    ood_set = _make_windows(ood, config, floors.scored) if ood else None
    for windows, read, floor in ((train_set, train, floors.trained), (ood_set, ood, floors.scored)):
        if windows is not None and len(windows) == 0:
            names = ", ".join(dataset.name for dataset in read[:20])
            raise DataError(f"no series of {floor + 1} points or more in {names}")
    if overlap:
        notice += f"; out of distribution, not trained on: {', '.join(overlap)}"
    return Corpus(
        source=source,
        is_demo=source == Source.DEMO,
        notice=notice,
        fingerprint=_fingerprint(train, ood),
        train=train_set,
        val=val_set,
        ood=ood_set,
        overlap=overlap,
        leaks=_list_leaks(config, overlap),
        fingerprints={
            "train": {dataset.name: dataset.fingerprint for dataset in train},
            "ood": {dataset.name: dataset.fingerprint for dataset in ood},
        },
    )


class _Floors(NamedTuple):
    """Points a series must exceed: to be trained on, and to be scored."""

    trained: int
    scored: int


class _Opener:
    """Opens each data set once, whatever asks for it."""

    def __init__(self, home: Path) -> None:
        self._cache = home / "cache" / "series"
        self._pool = MapPool()
        self._open: dict[Path, DataSet] = {}

    def open(self, entry: Entry) -> DataSet:
        """Return the data set of an entry."""
        real = Path(os.path.realpath(entry.path))
        if real not in self._open:
            self._open[real] = open_series(entry.name, entry.path, self._pool, cache=self._cache)
        return self._open[real]


def _resolve(config: DataConfig, home: Path) -> tuple[str, Path, str]:
    """Return the source's name, its path and one line that says why it is this one."""
    if config.path == "" or config.ood_path == "":
        raise DataError(
            "data.path or data.ood_path is empty: name a file or folder, or leave it out"
        )
    if config.path is not None:
        return config.path, Path(config.path), f"data: {config.path}"
    refuse_missing(config, home)
    if config.source is Source.DEMO:
        reason = "data.source=demo"
    elif (hub := _find_time300b(home)) is not None:
        return Source.TIME300B.value, hub, f"data: Time-300B at {hub}"
    else:
        reason = f"Time-300B is not on disk at {locate_time300b(home)}"
    root = ensure_demo(home, config.demo_series)
    return Source.DEMO.value, root, f"data: demo corpus ({reason})"


def select_train(config: DataConfig, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that `include` and `exclude` leave, OOD or not."""
    chosen = [
        entry
        for entry in entries
        if (not config.include or matches(entry.name, config.include))
        and not matches(entry.name, config.exclude)
    ]
    if not chosen:
        raise DataError(
            f"data.include={list(config.include)} and data.exclude={list(config.exclude)} select "
            f"none of the data sets there are: {describe_names(entries)}"
        )
    return chosen


def _select_ood(config: DataConfig, entries: Sequence[Entry], *, is_hub: bool) -> list[Entry]:
    """Return the OOD entries: those of `ood_path`, else those `ood_include` matches."""
    if config.ood_path is not None:
        return list_entries(Path(config.ood_path))
    if not config.ood_include:
        return []
    chosen = [entry for entry in entries if matches(entry.name, config.ood_include)]
    if not chosen:
        wanted = shlex.quote(",".join(config.ood_include))
        raise DataError(
            f"data.ood_include={list(config.ood_include)} selects none of the data sets there "
            f"are: {describe_names(entries)}",
            next_command=f"tsx data download --partitions {wanted}"
            if is_hub
            else "name another folder with --set data.ood_path=PATH",
        )
    return chosen


def _leave_out(
    train_entries: Iterable[Entry],
    ood_entries: Iterable[Entry],
    ood: Sequence[DataSet],
    opener: _Opener,
) -> tuple[list[DataSet], tuple[str, ...]]:
    """Open the training data sets but those that are OOD, by place or by fingerprint."""
    places = {os.path.realpath(entry.path) for entry in ood_entries}
    copies = {dataset.fingerprint for dataset in ood}
    train, overlap = [], []
    for entry in train_entries:
        inside = os.path.realpath(entry.path) in places
        dataset = None if inside else opener.open(entry)
        if dataset is None or dataset.fingerprint in copies:
            overlap.append(entry.name)
        else:
            train.append(dataset)
    return train, tuple(overlap)


def _list_leaks(config: DataConfig, overlap: tuple[str, ...]) -> tuple[str, ...]:
    """Return the data sets left out of training that `ood_include` alone did not set apart.

    Where `include` is empty, `ood_include` says how one folder is divided: nothing leaks but a
    copy under another name.
    """
    if config.include or config.ood_path is not None:
        return overlap
    return tuple(name for name in overlap if not matches(name, config.ood_include))


def _check_finite(datasets: Sequence[DataSet]) -> None:
    """Look at every point of a corpus small enough, so that a fault shows before step 0."""
    if sum(dataset.num_elements for dataset in datasets) <= CHECKED_POINTS:
        for dataset in datasets:
            dataset.check_finite()


def _eligible(dataset: DataSet, floor: int) -> Mask:
    """Return which series hold more points than `floor`."""
    mask: Mask = dataset.length_S > floor
    return mask


def _make_windows(datasets: Sequence[DataSet], config: DataConfig, floor: int) -> WindowSet:
    parts = [Part(dataset, np.flatnonzero(_eligible(dataset, floor))) for dataset in datasets]
    return WindowSet(parts, config)


def _split(
    datasets: Sequence[DataSet], config: DataConfig, floors: _Floors
) -> tuple[WindowSet, WindowSet | None]:
    """Return windows to train on and, on other series, windows to validate on."""
    if config.val_split == 0:
        return _make_windows(datasets, config, floors.trained), None
    originals: dict[str, str] = {}
    names = [originals.setdefault(dataset.fingerprint, dataset.name) for dataset in datasets]
    eligible = [_eligible(dataset, floors.trained) for dataset in datasets]
    held = hold_out(names, eligible, config.val_split)
    train, val = [], []
    for dataset, able, out in zip(datasets, eligible, held, strict=True):
        train.append(Part(dataset, np.flatnonzero(able & ~out)))
        val.append(Part(dataset, np.flatnonzero(out & _eligible(dataset, floors.scored))))
    val_set = WindowSet(val, config)
    return WindowSet(train, config), val_set if len(val_set) else None


def _fingerprint(train: Sequence[DataSet], ood: Sequence[DataSet]) -> str:
    """Return a digest over names, fingerprints and roles of every data set."""
    digest = hashlib.sha256()
    for role, datasets in (("train", train), ("ood", ood)):
        for dataset in datasets:
            digest.update(f"{role} {dataset.name!r} {dataset.fingerprint}\n".encode())
    return digest.hexdigest()[:16]
