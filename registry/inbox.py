"""What a recorded program says of itself: JSON lines that it appends to a run's `inbox.jsonl`.

Owns the form of one line, which docs/events.md tells: what is taken, what is refused and why.
Lines come from programs that nobody knows: size, depth and the number of keys are bounded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec

from registry.codec import LineError, decode, encode, restore_floats
from registry.events import Artifact, Event, Finding, Heartbeat, Histogram, Metrics

INBOX_NAME = "inbox.jsonl"
MAX_INBOX_LINE_BYTES = 1024 * 1024

_MAX_VALUES = 10_000  # of one line
_MAX_DEPTH = 16
_MAX_KEY_CHARS = 500
_MAX_TIME_S = 1e11  # the year 5138; more is a time in milliseconds

_SPECIAL = {"nan": math.nan}
_SPECIAL |= dict.fromkeys(("inf", "infinity"), math.inf)
_SPECIAL |= dict.fromkeys(("-inf", "-infinity"), -math.inf)
# How C, awk, Julia and bc print what JSON spells otherwise: nan, -inf, .5
_PRINTED = re.compile(r"(?<=[:,\[\s])(-?)(nan|inf(?:inity)?)(?=\s*[,}\]])", re.IGNORECASE)
_BARE_FRACTION = re.compile(r"(?<=[:,\[\s])(-?)\.(?=\d)")
_KINDS: dict[str, type[Finding | Artifact | Histogram]] = {
    "finding": Finding,
    "artifact": Artifact,
    "histogram": Histogram,
}
_NO_VALUES = frozenset({"type", "step", "time"})


def decode_inbox_line(
    line: bytes,
    end: int,
    *,
    now: float,
    previous_step: int = 0,
    left_out: Callable[[str], None] | None = None,
) -> list[Event]:
    """Return the event of one line as a list; a blank line has none.

    Args:
        line: with or without its newline.
        end: byte offset of the inbox behind the line.
        now: the event's time where the line says none, UTC seconds.
        previous_step: of the last metrics line.
        left_out: told why a value of a line that is taken was not.

    Raises:
        LineError: the line is no event; the message is the reason.
    """
    if len(line) > MAX_INBOX_LINE_BYTES:
        raise LineError(f"longer than {MAX_INBOX_LINE_BYTES:,} bytes")
    if not line.strip():
        return []
    raw = _parse(line)
    kind = raw.get("type", "metrics")
    when = _read_time(raw, now, left_out)
    if kind == "metrics":
        inner = raw.get("values") if "type" in raw else None
        values = _flatten(inner if isinstance(inner, dict) else raw, left_out)
        if values:
            step = _get_step(raw, previous_step + 1)
            return [Metrics(time=when, inbox_end=end, step=step, values=values)]
        kind = "heartbeat"
    step = _get_step(raw, previous_step)
    if kind == "heartbeat":
        return [Heartbeat(time=when, step=step)]
    if not isinstance(kind, str) or kind not in _KINDS:
        known = ", ".join(("metrics", *_KINDS, "heartbeat"))
        raise LineError(f"type {_show(kind)} is none of {known}")
    return [_make_record(kind, raw, {"time": when, "inbox_end": end, "step": step})]


def _parse(line: bytes) -> dict[str, Any]:
    """Return the object of a line, with numbers as other languages print them too."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    try:
        try:
            raw = json.loads(text)
        except json.JSONDecodeError:
            mended = _BARE_FRACTION.sub(r"\g<1>0.", _PRINTED.sub(_respell, text))
            if mended == text:
                raise
            raw = json.loads(mended)
    except (ValueError, RecursionError) as error:
        raise LineError(f"not JSON: {_show_error(error)}") from error
    if not isinstance(raw, dict):
        raise LineError(f"not an object: {_show(raw)}")
    return raw


def _respell(match: re.Match[str]) -> str:
    """Return JSON's usual spelling of a printed NaN or infinity."""
    return "NaN" if match[2].lower() == "nan" else f"{match[1]}Infinity"


def _flatten(raw: dict[str, Any], left_out: Callable[[str], None] | None) -> dict[str, float]:
    """Return the numbers below `raw` by path, parts joined with "/"; the last of equal keys wins.

    Raises:
        LineError: too many, or nested too deep.
    """
    values: dict[str, float] = {}
    waiting = [("", raw, 1)]
    while waiting:
        prefix, found, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise LineError(f"nested deeper than {_MAX_DEPTH} levels")
        for name, value in found.items():
            if not prefix and name in _NO_VALUES:
                continue
            key = prefix + name
            if not name or len(key) > _MAX_KEY_CHARS:
                if left_out is not None:
                    what = f"a key of {len(key)} characters; 1 to {_MAX_KEY_CHARS} can be"
                    left_out(f"{what}: left out")
            elif isinstance(value, dict):
                waiting.append((f"{key}/", value, depth + 1))
            elif (number := _find_number(value)) is not None:
                values[key] = number
            elif left_out is not None:
                left_out(f"{_show(key)} is {_show(value)}, no number: left out")
        if len(values) > _MAX_VALUES:
            raise LineError(f"more than {_MAX_VALUES:,} values")
    return values


def _find_number(value: object) -> float | None:
    """Return a value as a float: true is 1, null is NaN; None for what is no number."""
    if isinstance(value, float):
        return value
    if isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if value is None:
        return math.nan
    return _SPECIAL.get(value.lower()) if isinstance(value, str) else None


def _get_step(raw: dict[str, Any], default: int) -> int:
    """Return the step of a line; LineError where it is no whole number from 0 on."""
    step = raw.get("step")
    if step is None:
        return min(default, 2**63 - 1)
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
        raise LineError(f"step {_show(step)} is no whole number from 0 on")
    return step


def _read_time(
    raw: dict[str, Any], default: float, left_out: Callable[[str], None] | None
) -> float:
    """Return the time of a line; the default where it says none, or one that is wrong."""
    when = raw.get("time")
    if when is None:
        return default
    if not isinstance(when, bool) and isinstance(when, int | float) and 0 <= when < _MAX_TIME_S:
        return float(when)
    if left_out is not None:
        left_out(f"time {_show(when)} is no number of seconds since 1970: left out")
    return default


def _make_record(kind: str, raw: dict[str, Any], facts: dict[str, Any]) -> Event:
    """Return a finding, artifact or histogram; LineError where a field is missing or wrong."""
    given = {"severity": "info"} if kind == "finding" else {}
    names = _KINDS[kind].__struct_fields__
    given |= {name: restore_floats(raw[name]) for name in names if name in raw}
    try:
        event = msgspec.convert(given | facts | {"type": kind}, _KINDS[kind])
        if isinstance(event, Histogram):
            _check_histogram(event)
        if isinstance(event, Artifact):
            _check_path(event.path)
        decode(encode(event))  # what the journal could not give back is told here
    except (msgspec.ValidationError, LineError, RecursionError) as error:
        raise LineError(f"{kind}: {_show_error(error)}") from error
    return event


def _check_histogram(event: Histogram) -> None:
    """Raise LineError for edges and counts that do not fit."""
    edges, counts = event.edges, event.counts
    if len(edges) != (len(counts) + 1 if counts else 0):
        raise LineError(f"{len(edges)} edges for {len(counts)} counts; one more")
    if len(counts) > _MAX_VALUES:
        raise LineError(f"more than {_MAX_VALUES:,} counts")
    rising = all(low < high for low, high in pairwise(edges))
    if not rising or not all(map(math.isfinite, edges)):
        raise LineError("edges must be finite and rise")
    if event.nonfinite_count < 0 or any(not 0 <= count < 2**63 for count in counts):
        raise LineError("a count is below 0 or beyond 64 bits")
    if not event.key or len(event.key) > _MAX_KEY_CHARS:
        raise LineError(f"a key of {len(event.key)} characters")


def _check_path(path: str) -> None:
    """Raise LineError for a path that does not stay in the run's folder."""
    parts = path.split("/")
    if not path or path.startswith("/") or ".." in parts or "\x00" in path or len(path) > 4096:
        raise LineError(f"path {_show(path)} is not inside the run's folder")


def _show(value: object) -> str:
    """Return a value as short text."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _show_error(error: Exception) -> str:
    """Return a parser's complaint as one short line."""
    text = str(error).partition("\n")[0] or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
