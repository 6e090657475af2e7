"""The built-in corpus: series made by seeded processes, in the layout of Time-300B.

Generated once into `$TSX_HOME/data/demo/v<version>-<series>`; another number of series per data
set, or another version of this file's processes, is another folder. Series i of a data set is the
same whatever the number of series. They are made to be learned by a small model in minutes, not
to resemble any real corpus.

Shapes: S series of a block, T points.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tsx.data.layout import SeriesWriter
from tsx.data.meta import Floats
from tsx.data.shuffle import hash_name
from tsx.errors import DataError

VERSION = 1  # rises with any change to what is generated
_SEED = 300
_BLOCK = 32  # series generated at a time; bounds memory
_MIN_POINTS, _MAX_POINTS = 300, 6000
_POINTS_PER_SHARD = 1 << 16  # small, so that series cross shards as they do in Time-300B
_LOCK_WAIT_S = 30.0

Process = Callable[[np.random.Generator, int, int], Floats]


def ensure_demo(home: Path, num_series: int) -> Path:
    """Return the folder of the demo corpus, generated now if it is not there.

    Args:
        home: `$TSX_HOME`.
        num_series: per data set.

    Raises:
        DataError: the folder cannot be written.
    """
    parent = home / "data" / "demo"
    folder = parent / f"v{VERSION}-{num_series}"
    if folder.is_dir():
        return folder
    partial = parent / f".partial-{os.getpid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _hold_lock(parent / ".lock"):
            if not folder.is_dir():
                _generate(partial, num_series)
                partial.rename(folder)
    except OSError as error:
        # Another process may have put the same corpus there first.
        if not folder.is_dir():
            raise DataError(
                f"cannot write the demo corpus to {folder}: {error.strerror}",
                next_command="TSX_HOME=<a folder with room> tsx run ...",
            ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Keep others from generating the same corpus; only saves work, so never waits for ever."""
    with path.open("wb") as file:
        give_up = time.monotonic() + _LOCK_WAIT_S
        while time.monotonic() < give_up:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield


def _generate(folder: Path, num_series: int) -> None:
    """Write every data set."""
    for name, process in _PROCESSES.items():
        dtype = "float32"
        with SeriesWriter(folder / name, dtype=dtype, points_per_shard=_POINTS_PER_SHARD) as writer:
            for start in range(0, num_series, _BLOCK):
                rng = np.random.default_rng([_SEED, hash_name(name), start])
                ratio = _MAX_POINTS / _MIN_POINTS
                length_S = (_MIN_POINTS * ratio ** rng.random(_BLOCK)).astype(int)
                values_ST = process(rng, _BLOCK, _MAX_POINTS)
                for row in range(min(_BLOCK, num_series - start)):
                    _write(writer, values_ST[row, : length_S[row]], name in _STANDARDISED)
            writer.finish()


def _write(writer: SeriesWriter, values: Floats, standardise: bool) -> None:
    """Write one series, as it is or with its mean and std taken out and kept in the meta."""
    if standardise:
        mean, std = float(values.mean()), float(values.std())
        writer.append((values - mean) / std, mean=mean, std=std)
    else:
        writer.append(values)


def _each(rng: np.random.Generator, count: int, low: float, high: float) -> Floats:
    """Return one number per series as a column."""
    return rng.uniform(low, high, (count, 1))


def _wave(time_T: Floats, period: Floats | float, phase: Floats) -> Floats:
    """Return sines of a period in points; phase in periods."""
    wave: Floats = np.sin(2 * np.pi * (time_T / period + phase))
    return wave


def _correlated(rng: np.random.Generator, count: int, points: int, memory: float) -> Floats:
    """Return noise of variance 1 where a point keeps `memory` of the one before."""
    noise_TS = rng.standard_normal((points, count))
    noise_TS[1:] *= np.sqrt(1 - memory**2)
    for step in range(1, points):
        noise_TS[step] += memory * noise_TS[step - 1]
    return noise_TS.T


def _load(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Hourly demand: a day, its half, a week, a slow drift."""
    time_T = np.arange(points, dtype=float)
    day = _each(rng, count, 0, 1)
    shape = (
        _each(rng, count, 0.15, 0.4) * _wave(time_T, 24, day)
        + _each(rng, count, 0.02, 0.15) * _wave(time_T, 12, 2 * day + 0.1)
        + _each(rng, count, 0.05, 0.2) * _wave(time_T, 168, _each(rng, count, 0, 1))
    )
    drift = 0.1 * _correlated(rng, count, points, 0.999)
    noise = 0.03 * rng.standard_normal((count, points))
    return _each(rng, count, 50, 500) * (1.5 + shape + drift + noise)


def _solar(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Hourly sunshine: nothing at night, clouds by day."""
    time_T = np.arange(points, dtype=float)
    sun = np.maximum(_wave(time_T, 24, _each(rng, count, 0, 1)) + 0.2, 0)
    clouds = np.clip(0.8 + 0.25 * _correlated(rng, count, points, 0.97), 0.05, 1)
    return _each(rng, count, 5, 80) * sun * clouds


def _temperature(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Daily temperature: a year, a trend, weather that lasts."""
    time_T = np.arange(points, dtype=float)
    year = _each(rng, count, 4, 14) * _wave(time_T, 365.25, _each(rng, count, 0, 1))
    trend = _each(rng, count, -1e-3, 2e-3) * time_T
    weather = _each(rng, count, 1, 4) * _correlated(rng, count, points, 0.8)
    return _each(rng, count, -5, 22) + year + trend + weather


def _visits(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Daily counts: a week, growth, a burst now and then."""
    time_T = np.arange(points, dtype=float)
    week = 1 + _each(rng, count, 0.3, 0.7) * _wave(time_T, 7, _each(rng, count, 0, 1))
    growth = np.exp(_each(rng, count, -0.5, 1.0) * time_T / points)
    burst = np.where(rng.random((count, points)) < 0.005, 2.0, 1.0)
    return rng.poisson(_each(rng, count, 100, 2000) * week * growth * burst).astype(float)


def _intermittent(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Daily sales of slow goods: mostly none, a few at a time, more at the week's end."""
    time_T = np.arange(points, dtype=float)
    chance = _each(rng, count, 0.15, 0.4) * (1 + 0.95 * _wave(time_T, 7, _each(rng, count, 0, 1)))
    sold = rng.random((count, points)) < chance
    return np.where(sold, 1.0 + rng.poisson(_each(rng, count, 0.5, 3), (count, points)), 0.0)


def _admissions(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Daily counts of a clinic: a quiet weekend, a winter wave."""
    day_T = np.arange(points)
    weekday = np.where((day_T + rng.integers(0, 7, (count, 1))) % 7 < 5, 1.0, 0.45)
    winter = 1 + 0.35 * _wave(day_T.astype(float), 365.25, _each(rng, count, 0, 1))
    return rng.poisson(_each(rng, count, 30, 200) * weekday * winter).astype(float)


def _prices(rng: np.random.Generator, count: int, points: int) -> Floats:
    """A random walk of logarithms whose volatility clusters: GARCH(1,1)."""
    shock_TS = rng.standard_normal((points, count))
    base_S = rng.uniform(0.004, 0.02, count) ** 2
    variance_S = base_S.copy()
    for step in range(points):
        shock_TS[step] *= np.sqrt(variance_S)
        variance_S = 0.04 * base_S + 0.10 * shock_TS[step] ** 2 + 0.86 * variance_S
    walk_ST: Floats = np.clip(shock_TS.T.cumsum(axis=1), -6, 6)
    price_ST: Floats = _each(rng, count, 5, 200) * np.exp(walk_ST)
    return price_ST


def _rates(rng: np.random.Generator, count: int, points: int) -> Floats:
    """An exchange rate that wanders slowly about its level."""
    return _each(rng, count, 0.5, 2) * (1 + 0.08 * _correlated(rng, count, points, 0.998))


def _regimes(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Level, amplitude and period change at random moments and hold until the next."""
    start = rng.random((count, points)) < 1 / 250
    regime = start.cumsum(axis=1) % 8
    level, amplitude = rng.normal(0, 2, (count, 8)), rng.uniform(0.2, 2, (count, 8))
    step = 1 / rng.uniform(8, 60, (count, 8))
    phase = np.take_along_axis(step, regime, axis=1).cumsum(axis=1)
    wave = np.take_along_axis(amplitude, regime, axis=1) * np.sin(2 * np.pi * phase)
    noise = 0.1 * rng.standard_normal((count, points))
    values: Floats = np.take_along_axis(level, regime, axis=1) + wave + noise
    return values


def _sines(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Three sines of any period, and a little noise."""
    time_T = np.arange(points, dtype=float)
    total = 0.05 * rng.standard_normal((count, points))
    for _ in range(3):
        period = np.exp(_each(rng, count, np.log(6), np.log(200)))
        total += _each(rng, count, 0.3, 1) * _wave(time_T, period, _each(rng, count, 0, 1))
    return total


def _traffic(rng: np.random.Generator, count: int, points: int) -> Floats:
    """Hourly road use: two rushes on workdays, one hump on the others."""
    hour_T = np.arange(points) + rng.integers(0, 168, (count, 1))
    clock, workday = hour_T % 24, (hour_T // 24) % 7 < 5
    rush = np.exp(-(((clock - 8) / 2.0) ** 2)) + 0.9 * np.exp(-(((clock - 17.5) / 2.5) ** 2))
    hump = 0.6 * np.exp(-(((clock - 14) / 4.0) ** 2))
    noise = 0.04 * np.abs(_correlated(rng, count, points, 0.5))
    return _each(rng, count, 0.2, 1) * (0.05 + np.where(workday, rush, hump) + noise)


_PROCESSES: dict[str, Process] = {
    "energy/load": _load,
    "energy/solar": _solar,
    "finance/prices": _prices,
    "finance/rates": _rates,
    "healthcare/admissions": _admissions,
    "nature/temperature": _temperature,
    "sales/intermittent": _intermittent,
    "synthetic/regimes": _regimes,
    "synthetic/sines": _sines,
    "transport/traffic": _traffic,
    "web/visits": _visits,
}
_STANDARDISED = {"finance/rates", "nature/temperature"}  # as Time-300B stores some of its data sets
