"""Windows over many series: an index of arrays, and batches cut from it.

A context of C points gives windows of N = C + 1: the input is the first C, the target the same
shifted by one. A series of L points has 1 + max(0, (L - N) // stride) windows, so a shorter one
gives a single window, padded on the right with zeros that both masks leave out.

Shapes: S series of this set, B windows, C context, N = C + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tsx.config import DataConfig, Scaling, ScalingScope
from tsx.data.meta import Floats, Ints
from tsx.data.scaling import Mask, SeriesScaler, measure_context
from tsx.data.series import DataSet
from tsx.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Windows side by side, contiguous; zeros wherever a mask is False."""

    input_BC: npt.NDArray[np.float32]
    target_BC: npt.NDArray[np.float32]  # the input one point later
    target_mask_BC: Mask  # False on padding and on points that are not finite
    input_mask_BC: Mask


@dataclass(frozen=True)
class Origin:
    """Where a window was cut."""

    dataset: DataSet
    series: int
    start: int  # its first point


@dataclass(frozen=True)
class Part:
    """The series of one data set that belong to a window set."""

    dataset: DataSet
    series_S: Ints


class WindowSet:
    """All windows of some series, by number: part by part, series by series, in order of time.

    Args:
        parts: data sets with the series taken from each; every series has a point and a target.
        config: context length, stride, scaling and what to do about points that are not finite.
    """

    def __init__(self, parts: Sequence[Part], config: DataConfig) -> None:
        self._parts = [part for part in parts if len(part.series_S)]
        self._config = config
        self._scalers = [self._make_scaler(part.dataset) for part in self._parts]
        self._series_S = _join([part.series_S for part in self._parts])
        self._part_bounds = _bounds(np.array([len(part.series_S) for part in self._parts]))
        length_S = _join([part.dataset.length_S[part.series_S] for part in self._parts])
        self._window_bounds = _bounds(count_windows(length_S, config))
        self.num_points = int(length_S.sum())

    def __len__(self) -> int:
        return int(self._window_bounds[-1])

    @property
    def num_series(self) -> int:
        """Number of series that windows are cut from."""
        return len(self._series_S)

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains the series come from, in order of name."""
        return tuple(sorted({part.dataset.domain for part in self._parts}))

    def get_batch(self, indices: Ints) -> Batch:
        """Cut, mask and scale the windows of these numbers.

        Raises:
            IndexError: a number outside 0 .. len - 1.
            DataError: a point that is not finite where those are not allowed, a value that does
                not fit float32, or a shard that changed.
        """
        rows = self._locate(indices)
        points_BN = np.zeros((len(rows), self._config.context_length + 1))
        shift_B1 = np.zeros((len(rows), 1))
        scale_B1 = np.ones((len(rows), 1))
        count_B = np.zeros(len(rows), np.int64)
        for row, (part, series, start) in enumerate(rows):
            dataset, scaler = self._parts[part].dataset, self._scalers[part]
            out = points_BN[row, : int(dataset.length_S[series]) - start]
            dataset.fill(out, series, start)
            count_B[row] = len(out)
            if scaler is not None:
                shift_B1[row], scale_B1[row] = scaler.get(series)
        usable_BN = np.arange(points_BN.shape[1]) < count_B[:, None]
        self._leave_out_nonfinite(points_BN, usable_BN, rows)
        with np.errstate(all="ignore"):
            if self._by_context:
                shift_B1, scale_B1 = measure_context(points_BN, usable_BN, self._config.scaling)
            scaled_BN = np.where(usable_BN, (points_BN - shift_B1) / scale_B1, 0.0)
            out_BN = scaled_BN.astype(np.float32)
        self._refuse_overflow(out_BN, rows)
        return Batch(
            input_BC=np.ascontiguousarray(out_BN[:, :-1]),
            target_BC=np.ascontiguousarray(out_BN[:, 1:]),
            target_mask_BC=np.ascontiguousarray(usable_BN[:, 1:]),
            input_mask_BC=np.ascontiguousarray(usable_BN[:, :-1]),
        )

    def list_origins(self, indices: Ints) -> list[Origin]:
        """Return where the windows of these numbers are cut.

        Raises:
            IndexError: a number outside 0 .. len - 1.
        """
        return [
            Origin(self._parts[part].dataset, series, start)
            for part, series, start in self._locate(indices)
        ]

    def describe(self) -> dict[str, Any]:
        """Return series, points and windows, whole and by domain, as plain data."""
        domains: dict[str, dict[str, int]] = {}
        window_P = self._window_bounds[self._part_bounds]
        for index, part in enumerate(self._parts):
            domain = domains.setdefault(
                part.dataset.domain, {"series": 0, "points": 0, "windows": 0}
            )
            domain["series"] += len(part.series_S)
            domain["points"] += int(part.dataset.length_S[part.series_S].sum())
            domain["windows"] += int(window_P[index + 1] - window_P[index])
        return {
            "series": self.num_series,
            "points": self.num_points,
            "windows": len(self),
            "domains": dict(sorted(domains.items())),
        }

    @property
    def _by_context(self) -> bool:
        config = self._config
        return config.scaling_scope is ScalingScope.CONTEXT and config.scaling is not Scaling.NONE

    def _make_scaler(self, dataset: DataSet) -> SeriesScaler | None:
        config = self._config
        if config.scaling is Scaling.NONE or config.scaling_scope is ScalingScope.CONTEXT:
            return None
        return SeriesScaler(dataset, config.scaling, allow_nonfinite=config.allow_nonfinite)

    def _locate(self, indices: Ints) -> list[tuple[int, int, int]]:
        """Return (part, series, first point) of each window."""
        index_B = np.asarray(indices, np.int64)
        if len(index_B) and (index_B.min() < 0 or index_B.max() >= len(self)):
            raise IndexError(
                f"window {index_B[(index_B < 0) | (index_B >= len(self))][0]} of {len(self)}"
            )
        row_B = np.searchsorted(self._window_bounds, index_B, side="right") - 1
        start_B = (index_B - self._window_bounds[row_B]) * self._config.stride
        part_B = np.searchsorted(self._part_bounds, row_B, side="right") - 1
        series_B = self._series_S[row_B]
        return list(zip(part_B.tolist(), series_B.tolist(), start_B.tolist(), strict=True))

    def _leave_out_nonfinite(
        self, points_BN: Floats, usable_BN: Mask, rows: list[tuple[int, int, int]]
    ) -> None:
        """Zero and mask points that are not finite, or refuse the first."""
        finite_BN = np.isfinite(points_BN)
        if finite_BN.all():
            return
        if not self._config.allow_nonfinite:
            row, column = np.argwhere(~finite_BN)[0].tolist()
            part, series, start = rows[row]
            raise self._parts[part].dataset.explain_nonfinite(
                series, start + column, float(points_BN[row, column])
            )
        points_BN[~finite_BN] = 0.0
        usable_BN &= finite_BN

    def _refuse_overflow(
        self, out_BN: npt.NDArray[np.float32], rows: list[tuple[int, int, int]]
    ) -> None:
        """Raise DataError where a finite point left float32's range on its way into the batch."""
        finite_BN = np.isfinite(out_BN)
        if finite_BN.all():
            return
        row, column = np.argwhere(~finite_BN)[0].tolist()
        part, series, start = rows[row]
        dataset = self._parts[part].dataset
        raise DataError(
            f"{dataset.place}: series {series} does not fit float32 at point {start + column} "
            f"after scaling '{self._config.scaling}'",
            next_command=f"leave it out: --set 'data.exclude=[\"{dataset.name}\"]'",
        )


def count_windows(length_S: Ints, config: DataConfig) -> Ints:
    """Return the number of windows of series of these lengths."""
    beyond_S = np.maximum(length_S - (config.context_length + 1), 0)
    windows_S: Ints = 1 + beyond_S // config.stride
    return windows_S


def _bounds(count: npt.NDArray[Any]) -> Ints:
    """Return 0 and the running totals."""
    bounds = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=bounds[1:])
    return bounds


def _join(arrays: list[Ints]) -> Ints:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)
