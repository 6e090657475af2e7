"""What the benchmark asks of the registry and of each rival, and the values that all are given."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

KEYS = tuple(f"train/value{index}" for index in range(8))
PROJECT = "rivals"


class Curve(NamedTuple):
    """What a reader gave back of one key."""

    steps: Sequence[int]
    values: Sequence[float]


class Rival:
    """What every adapter offers. One instance records or reads in one folder.

    Args:
        folder: the only place that is written to.
    """

    name = ""  # as the table shows it
    packages: tuple[str, ...] = ()  # distributions whose versions the table shows
    modules: tuple[str, ...] = ()  # must be there, else the rival is left out
    slow = False  # a log call takes milliseconds: fewer of them are made
    lists = True  # can list runs with their last values offline
    shares = False  # writers and readers of several processes meet in one file
    promises = False  # has targets of its own: this project
    outline_note = "the whole curve"  # what read_outline gives

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def is_installed(cls) -> bool:
        """Tell whether the libraries are there, without importing them."""
        return all(importlib.util.find_spec(module) is not None for module in cls.modules)

    @classmethod
    def list_versions(cls) -> str:
        """Return the installed versions for the table."""
        return " + ".join(f"{package} {version(package)}" for package in cls.packages)

    @classmethod
    def list_settings(cls, folder: Path) -> dict[str, str]:
        """Return the environment variables that keep it offline and in its folder."""
        return {}

    def load(self) -> None:
        """Import what recording needs."""
        raise NotImplementedError

    def load_reader(self) -> None:
        """Import what reading needs."""
        self.load()

    def start(self, run: str) -> None:
        """Begin a run of this name."""
        raise NotImplementedError

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values of one step, as a training loop would."""
        raise NotImplementedError

    def finish(self) -> None:
        """End the run and wait until it is stored."""
        raise NotImplementedError

    def fill(self, run: str, rows: Iterator[dict[str, float]]) -> None:
        """Record a whole run at once; steps count from 1."""
        self.start(run)
        for step, values in enumerate(rows, start=1):
            self.log(values, step)
        self.finish()

    def read_series(self, run: str, key: str) -> Curve:
        """Return one whole curve."""
        raise NotImplementedError

    def read_outline(self, run: str, key: str, width: int) -> Curve:
        """Return what a chart of this many columns is drawn from."""
        return self.read_series(run, key)

    def list_runs(self, limit: int) -> dict[str, dict[str, float]]:
        """Return the newest runs by name, each with the last value of every key."""
        raise NotImplementedError

    def count_bytes(self) -> dict[str, int]:
        """Return the bytes on disk by what they are: "store", and "journal" beside it."""
        return {"store": sum(path.stat().st_size for path in list_files(self.folder))}


def list_files(folder: Path) -> list[Path]:
    """Return every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def make_values(step: int, count: int = len(KEYS)) -> dict[str, float]:
    """Return the values that every rival is given at a step; exact in fp32 up to 2**23 steps."""
    return {KEYS[index]: step * 0.5 + index * 0.25 for index in range(count)}


def is_same(left: float, right: float) -> bool:
    """Tell whether a value came back: TensorBoard keeps fp32."""
    return math.isclose(left, right, rel_tol=1e-6)
