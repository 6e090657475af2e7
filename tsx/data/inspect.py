"""Looks at every point under a path once, and says what training would meet there.

Everything is streamed: memory does not grow with the number of points. What cannot be read becomes
a fault of the report, not an error, so that one broken data set does not hide the others.

Shapes: S series of a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsx.config import DataConfig
from tsx.data.catalog import Entry, list_entries
from tsx.data.corpus import select_train
from tsx.data.formats import open_series
from tsx.data.meta import Floats, Ints
from tsx.data.series import DataSet, MapPool
from tsx.data.tally import Tally
from tsx.data.windows import count_windows
from tsx.errors import DataError

SAMPLE_CELLS = 60  # means that a sampled series is reduced to
_SAMPLES_PER_SET, _MAX_SAMPLES = 3, 24
_RELEASE_POINTS = 1 << 23  # mapped pages count as resident memory; they are let go so often

Watch = Callable[[float, str], None]  # told the share that is done and the data set under way


@dataclass(frozen=True)
class SeriesSample:
    """One series, reduced to be drawn."""

    label: str
    length: int
    means: tuple[float, ...]  # of equal parts; not finite where any point of a part is not


@dataclass(frozen=True)
class DataSetReport:
    """What one data set holds, and what windows come of it."""

    name: str
    domain: str
    path: str
    dtype: str
    fingerprint: str
    series: int
    points: int
    shortest: int
    median: float
    longest: int
    too_short: int  # series without a token and a target
    windows: int
    padding_share: float  # of the windows' targets
    unused_points: int  # behind a series' last window, or between windows
    nonfinite: int
    nonfinite_series: int
    constant: int  # series of one value
    constant_named: tuple[str, ...]  # the first of them
    huge: int  # points beyond HUGE in size
    largest: float  # size of the largest finite value
    samples: tuple[SeriesSample, ...]


@dataclass(frozen=True)
class Fault:
    """Something that a run would stop at."""

    dataset: str
    message: str
    next_command: str


@dataclass(frozen=True)
class Inspection:
    """What lies under a path."""

    path: str
    context_length: int
    stride: int
    datasets: tuple[DataSetReport, ...]
    faults: tuple[Fault, ...]


def inspect_path(
    path: Path, config: DataConfig, *, home: Path, patch_len: int = 1, watch: Watch
) -> Inspection:
    """Read everything under a path.

    Args:
        path: a folder or file.
        config: context, stride, `include` and `exclude`, and whether points that are not finite
            are a fault.
        home: `$TSX_HOME`, for parsed copies.
        patch_len: points a token; a series needs one more to hold a target.
        watch: told how far it is.

    Raises:
        DataError: nothing at that path, or nothing selected.
    """
    entries = select_train(config, list_entries(path))
    progress = _Progress(entries, watch)
    reports: list[DataSetReport] = []
    faults: list[Fault] = []
    for number, entry in enumerate(entries):
        progress.begin(number)
        samples = max(0, min(_SAMPLES_PER_SET, _MAX_SAMPLES - _SAMPLES_PER_SET * number))
        try:
            dataset, tally = _read(entry, home / "cache" / "series", progress)
            reports.append(_describe(entry, dataset, tally, config, patch_len, samples))
            if tally.first_nonfinite and not config.allow_nonfinite:
                raise dataset.explain_nonfinite(*tally.first_nonfinite)
        except DataError as error:
            faults.append(Fault(entry.name, error.message, error.next_command))
    if not faults and not any(report.windows for report in reports):
        message = f"no series of {patch_len + 1} points or more at {path}"
        faults.append(Fault(reports[0].name, message, ""))
    return Inspection(
        str(path), config.context_length, config.stride, tuple(reports), tuple(faults)
    )


class _Progress:
    """How far the inspection is: bytes on disk, parsing one half where there is any."""

    def __init__(self, entries: Sequence[Entry], watch: Watch) -> None:
        self._names = [entry.name for entry in entries]
        self._sizes = [_find_size(entry.path) for entry in entries]
        self._watch = watch
        self._number = 0
        self._is_parsed = False

    def begin(self, number: int) -> None:
        """Go on to a data set."""
        self._number, self._is_parsed = number, False
        self._tell(0.0)

    def tell_parsed(self, share: float) -> None:
        """Take the share of the file that is parsed."""
        self._is_parsed = True
        self._tell(share / 2)

    def tell_read(self, share: float) -> None:
        """Take the share of the points that are read."""
        self._tell(0.5 + share / 2 if self._is_parsed else share)

    def _tell(self, share: float) -> None:
        done = sum(self._sizes[: self._number]) + share * self._sizes[self._number]
        self._watch(done / max(sum(self._sizes), 1), self._names[self._number])


def _find_size(path: Path) -> int:
    """Return the bytes of a data set on disk; 0 where they cannot be told."""
    try:
        files = list(path.iterdir()) if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0


def _read(entry: Entry, cache: Path, progress: _Progress) -> tuple[DataSet, Tally]:
    """Open a data set and look at all of it."""
    pool = MapPool()
    dataset = open_series(entry.name, entry.path, pool, cache=cache, report=progress.tell_parsed)
    tally = Tally(dataset.length_S)
    points, done, mapped = max(int(dataset.length_S.sum()), 1), 0, 0
    for span in dataset.iter_spans():
        tally.add(span)
        done += len(span.values)
        mapped += len(span.values)
        if mapped > _RELEASE_POINTS:
            pool.clear()
            mapped = 0
        progress.tell_read(done / points)
    return dataset, tally


def _describe(
    entry: Entry,
    dataset: DataSet,
    tally: Tally,
    config: DataConfig,
    patch_len: int,
    num_samples: int,
) -> DataSetReport:
    """Return what was found, and what windows come of it."""
    length_S, context = dataset.length_S, config.context_length
    eligible_S = length_S[length_S > patch_len]
    windows_S = count_windows(eligible_S, config)
    windows = int(windows_S.sum())
    padding = int(np.maximum(context - (eligible_S - 1), 0).sum())
    covered_S = (windows_S - 1) * min(config.stride, context + 1) + context + 1
    return DataSetReport(
        name=dataset.name,
        domain=dataset.domain,
        path=str(entry.path),
        dtype=dataset.dtype.name,
        fingerprint=dataset.fingerprint,
        series=len(length_S),
        points=int(length_S.sum()),
        shortest=int(length_S.min()) if len(length_S) else 0,
        median=float(np.median(length_S)) if len(length_S) else 0.0,
        longest=int(length_S.max(initial=0)),
        too_short=len(length_S) - len(eligible_S),
        windows=windows,
        padding_share=padding / (windows * context) if windows else 0.0,
        unused_points=int(np.maximum(eligible_S - covered_S, 0).sum()),
        nonfinite=tally.nonfinite,
        nonfinite_series=tally.nonfinite_series,
        constant=tally.constant,
        constant_named=tuple(dataset.label(series) for series in tally.constant_first),
        huge=tally.huge,
        largest=tally.largest,
        samples=tuple(_sample(dataset, series) for series in _choose(length_S, tally, num_samples)),
    )


def _choose(length_S: Ints, tally: Tally, wanted: int) -> list[int]:
    """Return the series to draw: one for each oddity, then first, middle and last."""
    count = len(length_S)
    odd = [tally.first_nonfinite[0] if tally.first_nonfinite else None, tally.first_huge]
    odd += tally.constant_first[:1]
    series = [number for number in odd if number is not None] + [0, count // 2, count - 1]
    drawn = dict.fromkeys(number for number in series if count and length_S[number])
    return sorted(list(drawn)[:wanted])


def _sample(dataset: DataSet, series: int) -> SeriesSample:
    """Return the means of equal parts of a series."""
    length = int(dataset.length_S[series])
    cells = min(length, SAMPLE_CELLS)
    total, count = np.zeros(cells), np.zeros(cells)
    start = 0
    with np.errstate(all="ignore"):
        for chunk in dataset.iter_chunks(series):
            cell = np.arange(start, start + len(chunk)) * cells // length
            total += np.bincount(cell, weights=chunk, minlength=cells)
            count += np.bincount(cell, minlength=cells)
            start += len(chunk)
        means: Floats = total / count
    return SeriesSample(dataset.label(series), length, tuple(means.tolist()))
