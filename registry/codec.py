"""One event is one line of strict JSON.

JSON has no NaN and no infinities: they are the strings "NaN", "Infinity" and "-Infinity", and come
back as floats in metric values, in numeric fields and inside evidence, metadata and data.
Secrets are redacted here, on the way out, in every event but Metrics, Histogram and Heartbeat
(which hold numbers, and are on the training loop's path).
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from registry.events import Event, Heartbeat, Histogram, Metrics
from registry.redact import Redactor

MAX_LINE_BYTES = 16 * 1024 * 1024  # a longer line is damage, not an event
MAX_BINS = 4096  # of a histogram; neighbours are joined until there are no more
_MAX_DEPTH = 100
_MAX_ITEMS = 100_000  # of one list or dict; more is left out
_INT64 = range(-(2**63), 2**63)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_INTEGERS = {
    kind: tuple(field.name for field in msgspec.structs.fields(kind) if field.type is int)
    for kind in typing.get_args(Event)
}
_RESTORED_FIELDS = {"evidence", "metadata", "data"}  # Any-typed fields that hold measurements


class LineError(ValueError):
    """A line of a journal is not an event, or an event cannot be a line."""


def encode(event: Event) -> bytes:
    """Return the event as one line, newline included, secrets redacted.

    Raises:
        LineError: it holds something no JSON can express, or is longer than MAX_LINE_BYTES.
    """
    if type(event) is Metrics and (line := _encode_plain(event)):
        return line
    try:
        if isinstance(event, Metrics):
            values = {str(key): _number(value) for key, value in event.values.items()}
            event = msgspec.structs.replace(event, values=values)
        elif isinstance(event, Histogram):
            event = _bound(event)
        line = _encoder.encode(_redact(event)) + b"\n"
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LineError(f"{type(event).__name__} cannot be written as JSON: {error}") from error
    if len(line) > MAX_LINE_BYTES:
        raise LineError(f"{type(event).__name__} of {len(line)} bytes; at most {MAX_LINE_BYTES}")
    return line


def decode(line: bytes) -> Event:
    """Return the event of one line.

    Raises:
        LineError: not JSON, of no known type, or with a field of the wrong type or range.
    """
    if len(line) > MAX_LINE_BYTES:
        raise LineError(f"a line of {len(line)} bytes; at most {MAX_LINE_BYTES}")
    try:
        event = _decode_plain(line)
        if event is None:
            event = msgspec.convert(_restore(msgspec.json.decode(line)), Event)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise LineError(f"not an event: {error}") from error
    for name in _INTEGERS[type(event)]:
        if getattr(event, name) not in _INT64:
            raise LineError(f"{name} is beyond 64 bits")
    if not math.isfinite(event.time):
        raise LineError("time is not finite")
    if type(event) is Histogram and (fault := _find_fault(event)):
        raise LineError(fault)
    return event


def _encode_plain(event: Metrics) -> bytes:
    """Return the line of metrics that are all finite floats or integers; nothing for others."""
    try:
        if not math.isfinite(sum(event.values.values())):
            return b""
        line = _encoder.encode(event) + b"\n"
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        return b""  # a numpy scalar, a tensor, an integer beyond 64 bits
    if b"true" in line or b"false" in line or len(line) > MAX_LINE_BYTES:
        return b""  # JSON's booleans are no numbers
    return line


def _bound(event: Histogram) -> Histogram:
    """Return a histogram of plain numbers and text with at most MAX_BINS bins."""
    edges = tuple(float(edge) for edge in event.edges)
    counts = tuple(int(count) for count in event.counts)
    if len(counts) > MAX_BINS and len(edges) == len(counts) + 1:
        joined = math.ceil(len(counts) / MAX_BINS)
        starts = range(0, len(counts), joined)
        counts = tuple(sum(counts[start : start + joined]) for start in starts)
        edges = (*(edges[start] for start in starts), edges[-1])
    plain = {"key": strict(str(event.key)), "step": strict(event.step)}
    bounded = msgspec.structs.replace(event, edges=edges, counts=counts, **plain)
    if fault := _find_fault(bounded):
        raise ValueError(fault)
    return bounded


def _find_fault(event: Histogram) -> str:
    """Return what is wrong with a histogram's bins; nothing where they are right."""
    bins = len(event.counts)
    if bins > MAX_BINS:
        return f"a histogram of {bins} bins; at most {MAX_BINS}"
    if len(event.edges) != (bins + 1 if bins else 0):
        return f"a histogram of {bins} bins with {len(event.edges)} edges"
    if not all(map(math.isfinite, event.edges)):
        return "a histogram with an edge that is not finite"
    return ""


def _decode_plain(line: bytes) -> Event | None:
    """Return the event of a line whose numbers are all finite, None where some may not be."""
    try:
        event: Event = _decoder.decode(line)
    except msgspec.ValidationError:
        return None
    if type(event) is Metrics or not (b"NaN" in line or b"nfinity" in line):
        return event
    return None


def to_json(data: Any) -> str:
    """Return plain data as strict JSON text, non-finite numbers as strings."""
    return _encoder.encode(strict(data)).decode("utf-8", "replace")


def from_json(text: str) -> Any:
    """Return plain data from `to_json`'s text; measurements get their non-finite floats back."""
    return msgspec.json.decode(text)


def restore_floats(data: Any) -> Any:
    """Return `data` with "NaN", "Infinity" and "-Infinity" turned into floats."""
    if isinstance(data, str):
        return _SPECIAL.get(data, data)
    if isinstance(data, dict):
        return {key: restore_floats(value) for key, value in data.items()}
    if isinstance(data, list):
        return [restore_floats(item) for item in data]
    return data


def strict(data: Any, depth: int = _MAX_DEPTH) -> Any:
    """Return `data` as what strict JSON can hold: non-finite floats and unknown things as text.

    Depth and the number of items are bounded: what a diagnostic collects must not stop a run.
    """
    if data is None or isinstance(data, bool):
        return data
    if isinstance(data, str):
        return str(data).encode("utf-8", "replace").decode()  # lone surrogates become "?"
    if isinstance(data, int):
        return int(data) if int(data) in _INT64 else str(int(data))
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else _name(data)
    if depth == 0:
        return "[nested too deep]"
    if isinstance(data, msgspec.Struct):
        tag = {"type": data.__struct_config__.tag} if data.__struct_config__.tag else {}
        return tag | {key: strict(getattr(data, key), depth - 1) for key in data.__struct_fields__}
    if isinstance(data, Mapping):
        some = itertools.islice(data.items(), _MAX_ITEMS)
        return {strict(str(key)): strict(value, depth - 1) for key, value in some}
    if isinstance(data, list | tuple | set | frozenset):
        return [strict(item, depth - 1) for item in itertools.islice(data, _MAX_ITEMS)]
    return _foreign(data)


def _foreign(data: Any) -> Any:
    """Return a number for whatever is one (numpy and torch scalars), else its text."""
    try:
        return strict(operator.index(data))
    except (TypeError, ValueError, RuntimeError):
        pass
    try:
        return strict(float(data))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return strict(str(data)[:1000])


def _name(value: float) -> str:
    """Return the text that stands for a non-finite float."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _number(value: Any) -> float:
    """Return a metric value as a float; what is none (None, text) is NaN, and never an error."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _redact(event: Event) -> Any:
    """Return the event as strict plain data with every text in it redacted."""
    if isinstance(event, Histogram):
        return event
    plain: dict[str, Any] = strict(event)
    if isinstance(event, Metrics | Heartbeat):
        return plain
    redactor = Redactor.from_environ(os.environ)
    return {
        field: redactor.argv(value) if field == "command" else redactor.data(value)
        for field, value in plain.items()
    }


def _restore(raw: Any) -> Any:
    """Return a raw event with its non-finite floats as floats."""
    if not isinstance(raw, dict):
        return raw
    kind = raw.get("type")
    restored = dict(raw)
    if kind == "metrics" and isinstance(raw.get("values"), dict):
        restored["values"] = {key: _SPECIAL.get(v, v) for key, v in raw["values"].items()}
        return restored
    for name in ("flops_per_token", "peak_tflops", "expected_s"):
        if isinstance(raw.get(name), str):
            restored[name] = _SPECIAL.get(raw[name], raw[name])
    for name in _RESTORED_FIELDS & restored.keys():
        restored[name] = restore_floats(restored[name])
    return restored
