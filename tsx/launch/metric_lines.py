"""Find the metrics in what a program prints. Pure: bytes in, steps and values out.

Owns the forms of a metric line, which docs/events.md tells by example: `step=10 loss=0.5`,
`iter 100: loss 2.3, time 30.5ms`, dictionaries and JSON objects, the bars of Lightning and Keras. A
line counts where it names a step and a number; the rest is talk. Timestamps, addresses, versions,
hashes and ids are no metrics. The length of a line is bounded and every pattern is linear in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_LINE_CHARS = 4096  # a longer line is no metric line
_MAX_VALUES = 200
_MAX_DEPTH = 8

_STEP_NAMES = ("global_step", "step", "iteration", "iter", "it", "update", "batch", "epoch")
_SPLITS = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"eval": "eval", "evaluation": "eval", "test": "test", "testing": "test", "ood": "ood"},
}
# What numbers are also used for: to say who and where, not how much.
_NO_METRICS = frozenset(
    (
        *("addr", "address", "commit", "date", "device", "eta", "gpu", "hash", "host", "id", "ip"),
        *("job", "line", "local_rank", "md5", "node", "path", "pid", "port", "rank", "rev", "run"),
        *("seed", "sha", "uuid", "v", "v_num", "version", "world_size"),
    )
)
_FILLERS = frozenset(
    (
        *("a", "after", "and", "as", "at", "by", "for", "from", "in", "is", "of", "on", "the"),
        *("then", "to", "took", "until", "was", "were", "with"),
    )
)
# What a number is multiplied by for the unit behind it; any other unit goes into the key.
_SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "%": 1.0, "": 1.0}

_NUMBER = (
    r"(?P<number>[+-]?(?:(?:\d{1,3}(?:,\d{3}){1,6}(?!\d)|\d{1,18})(?:\.\d{0,20})?|\.\d{1,20})"
    r"(?:[eE][+-]?\d{1,3})?|[+-]?(?:nan|inf(?:inity)?)\b)"
)
_UNIT = r"(?P<unit>\s?(?:%|[nuµm]?s(?:ec)?|min|[mh]|[KMGT]i?B|[kKMGBT])(?![\w/%]))?"
_END = r"(?=$|[\s,;|)\]}\"']|\.(?:\s|$))"
_SPLIT = r"(?:(?P<split>train(?:ing)?|val(?:id(?:ation)?)?|eval(?:uation)?|test(?:ing)?|ood)\s+)?"
_NAME = r"[\"']?(?P<name>[A-Za-z_][\w./%@-]{0,63})[\"']?"
_FLAGS = re.IGNORECASE

# `name=1`, `name: 1`, `train name: 1`, `'name': '1'`; anywhere in a line
_PAIR = re.compile(
    rf"(?<![\w./%@-]){_SPLIT}{_NAME}\s{{0,3}}[=:]\s{{0,8}}[\"'\[]?{_NUMBER}{_UNIT}{_END}", _FLAGS
)
# `name 1`, `val name 1 (2)`; one after the other, the whole of what is between two commas
_SPACED = re.compile(
    rf"\s*{_SPLIT}{_NAME}(?P<more>(?:\s(?![+-]?(?:nan|inf)\b)[A-Za-z_]\w{{0,31}}){{0,2}})\s{{0,3}}[=:]?\s{{1,8}}"
    rf"{_NUMBER}{_UNIT}{_END}(?:\s*\(\s*[^\s()]{{1,40}}\s*\))?\.?\s*",
    _FLAGS,
)
_STEP = re.compile(
    rf"(?<![\w./%@-])(?:(?P<split>{'|'.join(_SPLITS)})\s+)?"
    r"[\"']?(?P<name>global[_ ]step|step|iteration|iter|it|update|batch|epoch)[\"']?"
    r"(?:\s{0,3}[=:#]\s{0,8}|\s{1,8}#?|(?=[\[(]))[\[(\"']?\s{0,8}"
    r"(?P<number>\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?P<fraction>\.\d{1,20})?"
    r"(?:\s{0,2}/\s{0,2}(?P<total>\d{1,18}))?"
    r"(?=$|[\s,:;|)\]}\"'\[(>]|\.(?:\s|$)|-\s)[\])\"']{0,2}:?",
    _FLAGS,
)
# Where in an epoch a bar or a bracket stands: `| 4/10 [`, `[ 10/5005]`, `10/100 [===>`
_POSITION = re.compile(
    r"(?:^|[|\[(\s])\s{0,8}(?P<number>\d{1,18})/(?P<total>\d{1,18})(?=$|[\s\])])"
)
_KERAS = re.compile(r"\s{0,8}\d{1,18}/\d{1,18}\s.{0,400}?\s-\s", re.DOTALL)
_BETWEEN = re.compile(r",\s|[|;\t\[\]]|\s-\s|:\s*$")
_STAMP = re.compile(
    r"\W{0,3}(?:\d{4}[-/]\d\d[-/]\d\d[T ]?)?(?:\d\d:\d\d(?::\d\d)?(?:[.,]\d{1,9})?Z?)?\W{0,3}"
)
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]{0,32}[ -/]{0,8}[@-~]|[@-Z\\-_])|[\x08\x00]")
_COUNTER_WORDS = ("step", "iter", "epoch", "batch", "update")
_MAY_COUNT = re.compile(r"\bit\b|\d/\d")


class MetricLine(NamedTuple):
    """What one line says."""

    step: int
    values: dict[str, float]


class _Said(NamedTuple):
    """The counters and values of a line, before they become a step."""

    counters: dict[str, int]
    totals: dict[str, int]
    values: dict[str, float]


class MetricLines:
    """Reads a stream piece by piece; remembers what a line's step is counted from.

    A line without a step of its own follows the last one when it has the same keys. With an epoch
    and a place in it (`Epoch 3: 4/10`) steps count on through the epochs.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._skipping = False  # the rest of a line that is too long
        self._last = MetricLine(0, {})
        self._epoch: int | None = None
        self._first_epoch = 0
        self._new_epoch = False  # since the last count
        self._count = 0
        self._base = 0  # steps before the epoch, where nothing better is known
        self._restarts = False

    def feed(self, data: bytes) -> Iterator[MetricLine]:
        """Yield the metric lines that end in a piece of the stream; a bar's redraws are lines."""
        text = self._rest + data.decode("utf-8", "replace").replace("\r", "\n")
        *lines, self._rest = text.split("\n")
        for line in lines:
            if not self._skipping and (found := self.find(line)) is not None:
                yield found
            self._skipping = False
        if len(self._rest) > MAX_LINE_CHARS:
            self._rest, self._skipping = "", True

    def finish(self) -> Iterator[MetricLine]:
        """Yield the last line if it never ended."""
        if not self._skipping and (found := self.find(self._rest)) is not None:
            yield found
        self._rest = ""

    def find(self, line: str) -> MetricLine | None:
        """Return what a line says, None where it is no metric line or says nothing new."""
        if len(line) > MAX_LINE_CHARS or not self._may_count(line):
            return None
        text = _ESCAPES.sub("", line).strip()
        said = _read_object(text) or _read_text(text)
        if "epoch" in said.counters:
            self._note_epoch(said.counters["epoch"])
        values = said.values
        if not values or len(values) > _MAX_VALUES:
            return None
        step = self._find_step(said)
        if step is None or (step, values) == self._last:
            return None
        self._last = MetricLine(step, values)
        return self._last

    def _may_count(self, line: str) -> bool:
        """Tell quickly whether a line is worth reading."""
        lowered = line.lower()
        return (
            any(word in lowered for word in _COUNTER_WORDS)
            or _MAY_COUNT.search(lowered) is not None
            or ("=" in line and any(key in line for key in self._last.values))
        )

    def _find_step(self, said: _Said) -> int | None:
        """Return the step of a line, None where it has none and does not follow the last one."""
        counters = said.counters
        name = next((name for name in (*_STEP_NAMES[:-1], "position") if name in counters), "")
        if name == "global_step" or (not name and "epoch" in counters):
            return counters[name or "epoch"]
        if name:
            return self._count_on(name, counters[name], said.totals.get(name, 0))
        if said.values.keys() == self._last.values.keys():
            return self._last.step + 1
        return self._follow_fraction(said)

    def _note_epoch(self, epoch: int) -> None:
        """Remember the epoch, and whether epochs count from 0 or from 1."""
        if self._epoch is None:
            self._first_epoch = min(epoch, 1)
        self._new_epoch = self._new_epoch or (self._epoch is not None and epoch > self._epoch)
        self._epoch = epoch

    def _count_on(self, name: str, count: int, total: int) -> int | None:
        """Return the step of a count that may begin anew with each epoch.

        A bar and a batch always do; another counter does once it has gone back with an epoch.
        """
        if self._new_epoch and count <= self._count:
            self._restarts, self._base = True, self._last.step
        self._count, self._new_epoch = count, False
        step = count
        if self._epoch is not None and total >= count:
            if self._restarts or name in ("position", "batch"):
                step += max(0, self._epoch - self._first_epoch) * total
        elif self._restarts:
            step += self._base
        return step if step < 2**63 else None

    def _follow_fraction(self, said: _Said) -> int | None:
        """Return the step of a line whose epoch is a fraction: one more, the same at the same."""
        if "epoch" not in said.values:
            return None
        same = said.values["epoch"] == self._last.values.get("epoch")
        return self._last.step + (0 if same else 1)


def _read_object(text: str) -> _Said | None:
    """Return what a JSON object says, None where the line is none."""
    if not (text.startswith('{"') and text.endswith("}")):
        return None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return None
    counters = {
        name: value
        for name in _STEP_NAMES
        if type(value := raw.get(name)) is int and 0 <= value < 2**63
    }
    chosen = next((name for name in _STEP_NAMES if name in counters), "")
    values: dict[str, float] = {}
    waiting: list[tuple[str, dict[str, Any], int]] = [("", raw, 1)]
    while waiting and len(values) <= _MAX_VALUES:
        prefix, found, depth = waiting.pop()
        for name, value in found.items():
            if isinstance(value, dict) and depth < _MAX_DEPTH:
                waiting.append((f"{prefix}{name}/", value, depth + 1))
            elif type(value) in (int, float) and not _is_no_metric(prefix + name, chosen):
                values[prefix + name] = _to_float(value)
    return _Said(counters, {}, values)


def _is_no_metric(key: str, step_name: str) -> bool:
    """Tell a key that says which, not how much; an epoch is both, beside a finer count."""
    if key in _STEP_NAMES:
        return key == step_name or key != "epoch"
    return not key or key in ("time", "timestamp") or key in _NO_METRICS


def _read_text(text: str) -> _Said:
    """Return what a line of text says."""
    counters: dict[str, int] = {}
    totals: dict[str, int] = {}
    values: dict[str, float] = {}
    split, rest, end = "", [], 0
    for match in _STEP.finditer(text):
        if match["fraction"]:
            continue
        name = match["name"].lower().replace(" ", "_")
        counters.setdefault(name, int(match["number"].replace(",", "")))
        if match["total"]:
            totals.setdefault(name, int(match["total"]))
        split = split or _SPLITS.get((match["split"] or "").lower(), "")
        rest.append(text[end : match.start()])
        end = match.end()
    rest.append(text[end:])
    if "epoch" in counters or "|" in text or _KERAS.match(text):
        for piece in rest:
            if (place := _POSITION.search(piece)) is not None:
                counters.setdefault("position", int(place["number"]))
                totals.setdefault("position", int(place["total"]))
                break
    rest[0] = rest[0][_STAMP.match(rest[0]).end() :] if rest[0] else ""  # type: ignore[union-attr]
    for piece in rest:
        _read_values(piece, split, values)
    if set(counters) & set(_STEP_NAMES[:-2]) and "epoch" in counters:
        values.setdefault("epoch", float(counters["epoch"]))
    return _Said(counters, totals, values)


def _read_values(text: str, split: str, values: dict[str, float]) -> None:
    """Add the values of a piece of a line."""
    for piece in _BETWEEN.split(text):
        matches = list(_iter_spaced(piece)) or list(_PAIR.finditer(piece))
        for match in matches:
            found = _read_value(match, split)
            if found is not None and len(values) <= _MAX_VALUES:
                values.setdefault(*found)


def _iter_spaced(piece: str) -> Iterator[re.Match[str]]:
    """Yield the `name 1` of a piece that has nothing else; nothing where it has."""
    matches, end = [], 0
    while end < len(piece):
        match = _SPACED.match(piece, end)
        if match is None or match.end() == end:
            return
        matches.append(match)
        end = match.end()
    if len(matches) > 1 and any(match["more"] for match in matches):
        return  # several words before a number are a name only where they stand alone
    yield from matches


def _read_value(match: re.Match[str], split: str) -> tuple[str, float] | None:
    """Return key and value of a match, None for what is no metric."""
    fields = match.groupdict()
    words = [fields["name"].lower(), *(fields.get("more") or "").lower().split()]
    name = "_".join(words)
    if words[-1] in _NO_METRICS or not _FILLERS.isdisjoint(words):
        return None
    literal = match["number"].replace(",", "")
    value, unit = float(literal), (match["unit"] or "").strip()
    if not math.isfinite(value) and literal.lower().lstrip("+-")[0] not in "ni":
        return None  # 1e999 is a hash more likely than a loss
    name = re.sub(r"/(?=(?:s|sec|step|it)$)", "_per_", name)
    if unit in _SCALES:
        value *= _SCALES[unit]
    elif unit and not name.endswith(f"_{unit.lower()}"):
        name = f"{name}_{unit.lower()}"
    own = _SPLITS.get((match["split"] or "").lower(), split)
    return (f"{own}/{name}" if own else name), value


def _to_float(value: float) -> float:
    """Return a JSON number as a float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
