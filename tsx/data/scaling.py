"""How values are scaled: by their series, or by the input of their window.

`zero` is (x - mean) / std, only centred where std is 0; `max` is x / max|x|, unchanged where that
is 0. As in the official code, except that the arithmetic is float64 (the official statistics are
in the data's own dtype) and that a constant series has std exactly 0.

Scaling by series looks ahead: statistics cover the whole series, as the reference's do. Scaling by
context sees only the points of the window's own input, never the targets beyond it.

Shapes: S series, B windows, N = C + 1 points of a window.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tsx.config import Scaling
from tsx.data.meta import Floats
from tsx.data.series import DataSet

Mask = npt.NDArray[np.bool_]


class SeriesScaler:
    """Shift and scale per series of one data set, computed when a series is first asked for.

    Kept in arrays of 17 bytes a series, of which only touched pages take memory.
    """

    def __init__(self, dataset: DataSet, scaling: Scaling, *, allow_nonfinite: bool) -> None:
        self._dataset = dataset
        self._scaling = scaling
        self._allow_nonfinite = allow_nonfinite
        self._known_S = np.zeros(dataset.num_series, np.bool_)
        self._shift_S = np.zeros(dataset.num_series)
        self._scale_S = np.zeros(dataset.num_series)

    def get(self, series: int) -> tuple[float, float]:
        """Return (shift, scale): a point is scaled to (x - shift) / scale.

        Raises:
            DataError: the series has a point that is not finite, and those are not allowed.
        """
        if not self._known_S[series]:
            self._shift_S[series], self._scale_S[series] = self._measure(series)
            self._known_S[series] = True
        return float(self._shift_S[series]), float(self._scale_S[series])

    def _measure(self, series: int) -> tuple[float, float]:
        """Read the series once, in pieces; merge mean and variance of the pieces.

        Source: Chan, Golub, LeVeque, "Updating formulae" (1979), eq. 2.1.
        """
        count, mean, square = 0, 0.0, 0.0
        lowest, highest = math.inf, -math.inf
        position = 0
        with np.errstate(all="ignore"):
            for chunk in self._dataset.iter_chunks(series):
                values = self._keep_finite(chunk, series, position)
                position += len(chunk)
                if not len(values):
                    continue
                lowest = min(lowest, float(values.min()))
                highest = max(highest, float(values.max()))
                part_mean = float(values.mean())
                values -= part_mean
                part_square = float(values @ values)
                total = count + len(values)
                delta = part_mean - mean
                mean += delta * len(values) / total
                square += part_square + delta * delta * count * len(values) / total
                count = total
        if not count:
            return 0.0, 1.0
        if self._scaling is Scaling.MAX:
            return 0.0, max(abs(lowest), abs(highest)) or 1.0
        if lowest == highest:
            return lowest, 1.0
        return mean, math.sqrt(square / count) or 1.0

    def _keep_finite(self, chunk: Floats, series: int, position: int) -> Floats:
        finite = np.isfinite(chunk)
        if finite.all():
            return chunk
        if not self._allow_nonfinite:
            first = int(np.argmin(finite))
            raise self._dataset.explain_nonfinite(series, position + first, float(chunk[first]))
        return chunk[finite]


def measure_context(points_BN: Floats, usable_BN: Mask, scaling: Scaling) -> tuple[Floats, Floats]:
    """Return shift and scale [B, 1] over the usable points of each window's input.

    The last of the N points is only ever a target and is left out.
    """
    points_BC, usable_BC = points_BN[:, :-1], usable_BN[:, :-1]
    if scaling is Scaling.MAX:
        top_B1 = np.abs(np.where(usable_BC, points_BC, 0.0)).max(axis=1, keepdims=True)
        return np.zeros_like(top_B1), np.where(top_B1 > 0, top_B1, 1.0)
    count_B1 = np.maximum(usable_BC.sum(axis=1, keepdims=True), 1)
    mean_B1 = np.where(usable_BC, points_BC, 0.0).sum(axis=1, keepdims=True) / count_B1
    centred_BC = np.where(usable_BC, points_BC - mean_B1, 0.0)
    std_B1 = np.sqrt((centred_BC**2).sum(axis=1, keepdims=True) / count_B1)
    lowest_B1 = np.where(usable_BC, points_BC, np.inf).min(axis=1, keepdims=True)
    highest_B1 = np.where(usable_BC, points_BC, -np.inf).max(axis=1, keepdims=True)
    # Rounding in the mean would give a constant input a tiny std, and its targets a huge value.
    constant_B1 = lowest_B1 >= highest_B1
    mean_B1 = np.where(constant_B1 & np.isfinite(lowest_B1), lowest_B1, mean_B1)
    return mean_B1, np.where(constant_B1 | (std_B1 == 0), 1.0, std_B1)
