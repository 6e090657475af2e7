"""What `log` takes: numbers in every dress, nested dicts, histograms. No torch unless it is loaded.

Sorts the values of one call into numbers that can be written at once, tensors on a device that are
not waited for, histograms, and what is none of these, with the reason. Never raises for a value:
training does not stop for telemetry.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tsx.cli.output import clean

if TYPE_CHECKING:
    from torch import Tensor

MAX_LEAVES = 100_000  # values of one call; a dict that refers to itself has no end
MAX_DEPTH = 20
MAX_BINS = 1024
_NOT_REAL = frozenset("cmM")  # numpy's complex numbers, durations and dates


class Refused(Exception):
    """A value that cannot be recorded; the message says what it is and what to log instead."""


class HistogramValue(NamedTuple):
    """What `tsx.histogram` returns. See registry.events.Histogram for the fields."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    nonfinite_count: int
    fault: str = ""  # why there is none: told by the `log` call that it is handed to


@dataclass(slots=True)
class SortedValues:
    """The values of one `log` call by what is to be done with them."""

    numbers: dict[str, float] = field(default_factory=dict)
    late: dict[str, Tensor] = field(default_factory=dict)  # on a device; copied, then read
    histograms: dict[str, HistogramValue] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # key to reason


def sort_values(values: Any) -> SortedValues:
    """Return what one `log` call was given, flat: {"a": {"b": 1}} is "a/b". Never raises."""
    found = SortedValues()
    try:
        if not isinstance(values, Mapping):
            raise Refused(f'is {_name(values)}, log takes a dict: log({{"loss": loss}})')
        leaves = _iter_leaves(values, "", ())
        for key, value in itertools.islice(leaves, MAX_LEAVES):
            _sort(key, value, found)
        if next(leaves, None) is not None:
            raise Refused(f"has more than {MAX_LEAVES:,} values in one call; the rest is left out")
    except Refused as refusal:
        found.refused["log"] = str(refusal)
    except Exception as error:  # a mapping of the user's own
        found.refused["log"] = f"cannot be read: {clean(error, limit=200)}"
    return found


def histogram(values: Any, bins: int = 64) -> HistogramValue:
    """Return how the values of an array, tensor or list are spread, to be logged under a key.

    Args:
        values: anything numpy makes an array of; a tensor is copied to the host, which waits for
            its device. NaN and infinities are counted apart.
        bins: of equal width from the least to the largest finite value, 1 to 1024.
    """
    try:
        return _count(values, bins)
    except Exception as error:  # told where it is logged: training does not stop for it
        return HistogramValue((), (), 0, f"{_name(values)}: {clean(error, limit=200)}")


def read_number(value: Any) -> float | Tensor:
    """Return a number as a float; a 0-d tensor on a device as it is, not waited for.

    Raises:
        Refused: it is no single number.
    """
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    torch = sys.modules.get("torch")
    is_tensor = torch is not None and kind is torch.Tensor
    if is_tensor and value.ndim == 0 and value.is_floating_point() and not is_late(value):
        return float(value.item())  # a loss, each step: the short way
    if kind is int or kind is bool:
        return to_float(value)
    if isinstance(value, str | bytes) or value is None:
        raise Refused(f"is {_name(value)}, not a number")
    shape = getattr(value, "shape", None)
    if shape is not None:
        if tuple(shape) != ():
            advice = "log its .mean(), one of its numbers, or tsx.histogram(...) of it"
            raise Refused(f"is {_name(value)} of shape {tuple(shape)}: {advice}")
        return _read_scalar(value)
    if isinstance(value, complex) or not (
        hasattr(value, "__float__") or hasattr(value, "__index__")
    ):
        raise Refused(f"is {_name(value)}, not a number")
    return to_float(value)


def _iter_leaves(
    values: Mapping[Any, Any], prefix: str, within: tuple[int, ...]
) -> Iterator[tuple[str, Any]]:
    """Yield ("a/b", value) of nested mappings; one that holds itself comes out as a value."""
    inside = (*within, id(values))
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and id(value) not in inside and len(inside) < MAX_DEPTH:
            yield from _iter_leaves(value, f"{name}/", inside)
        else:
            yield name, value


def _sort(key: str, value: Any, found: SortedValues) -> None:
    """Put one value where it belongs."""
    if isinstance(value, HistogramValue):
        if value.fault:
            found.refused[key] = f"is no histogram of {value.fault}"
        else:
            found.histograms[key] = value
        return
    try:
        number = read_number(value)
    except Refused as refusal:
        found.refused[key] = str(refusal)
    except Exception as error:  # a number of the user's own that is none
        found.refused[key] = f"is {_name(value)} and gives no number: {clean(error, limit=200)}"
    else:
        if isinstance(number, float):
            found.numbers[key] = number
        else:
            found.late[key] = number


def _read_scalar(value: Any) -> float | Tensor:
    """Return the number of a 0-d array; a tensor on a device as it is."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.is_complex() or value.device.type == "meta":
            raise Refused(f"is a {value.dtype} tensor on {value.device}, not a number")
        if is_late(value):
            return value  # type: ignore[no-any-return]
    if type(value).__name__ == "MaskedConstant":
        raise Refused("is a masked value, not a number")  # its item() is 0
    if getattr(getattr(value, "dtype", None), "kind", "") in _NOT_REAL:
        raise Refused(f"is {_name(value)}, not a number")
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, complex | str | bytes) or not hasattr(number, "__float__"):
        raise Refused(f"is {_name(value)} that holds {_name(number)}, not a number")
    return to_float(number)


def is_late(tensor: Tensor) -> bool:
    """Return whether reading a tensor would wait for a device."""
    return not tensor.is_cpu


def to_float(value: Any) -> float:
    """Return a number as a float, an infinity for one that is larger than any."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _count(values: Any, bins: int) -> HistogramValue:
    """Count values by bins; see `histogram`."""
    import numpy as np

    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins={bins!r}: an integer from 1 to {MAX_BINS}")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        held = values.detach()
        values = (held if held.dtype == torch.float64 else held.float()).cpu().numpy()
    flat = np.asarray(values).ravel()
    if flat.dtype.kind not in "fiub":
        raise TypeError(f"holds {flat.dtype}, not numbers")
    flat = flat.astype(np.float64)
    finite = flat[np.isfinite(flat)]
    nonfinite_count = int(flat.size - finite.size)
    if not finite.size:
        return HistogramValue((), (), nonfinite_count)
    low, high = float(finite.min()), float(finite.max())
    with np.errstate(all="ignore"):
        try:
            counts, edges = np.histogram(finite, bins=bins)
        except ValueError:  # a range too narrow or too wide for so many bins
            counts, edges = np.array([finite.size]), np.array([low, high])
    if not (np.isfinite(edges).all() and (edges[1:] > edges[:-1]).all()):
        ends = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
        largest = sys.float_info.max
        counts = np.array([finite.size])
        edges = np.array([max(ends[0], -largest), min(ends[1], largest)])
    return HistogramValue(tuple(edges.tolist()), tuple(counts.tolist()), nonfinite_count)


def _name(value: Any) -> str:
    """Return what a value is, to tell its owner."""
    return "None" if value is None else f"a {type(value).__name__}"
