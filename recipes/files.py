"""One TOML file -> one RecipeFile, within bounds.

Owns the size and nesting bounds, the head table [recipe], [sweep] and the plain sections; [search]
is recipes.search's. It does not know which config sections and keys exist: tsx.config.decode does.
Nothing in a file is executed.
"""

from __future__ import annotations

import math
import re
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.errors import RecipeFileError, offer, show
from recipes.search import Search, read_search

MAX_FILE_BYTES = 256 * 1024  # the longest shipped recipe is under 2 KiB
MAX_DEPTH = 8  # of nested tables and arrays
MAX_VALUES = 20_000  # keys and list elements of one file
MAX_KEY_PARTS = 16  # of one dotted key; tomllib takes quadratic time in it
MAX_INTEGER = 2**63 - 1
MAX_SWEEP_RUNS = 1000

TEXT_KEYS = ("summary", "device", "expect")
HEAD_KEYS = (*TEXT_KEYS, "minutes", "extends")

Settings = dict[str, dict[str, Any]]  # section -> key -> value

_STRING_OR_COMMENT = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|' + r"'''.*?'''|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class RecipeInfo:
    """The head of a recipe, for lists. `error` tells why a file of a folder cannot be used."""

    name: str
    summary: str
    minutes: float | None
    device: str
    expect: str
    path: Path
    source: str  # "built-in", "preset" or the folder
    error: str = ""


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """One file as it stands, before `extends` is followed."""

    info: RecipeInfo
    extends: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    axes: dict[str, list[Any]] = field(default_factory=dict)  # "section.key" -> values
    search: Search | None = None

    @property
    def place(self) -> str:
        """Return how messages name this file."""
        kind = "preset" if self.info.source == "preset" else "recipe"
        return f"{kind} {self.info.name!r}"


def read_recipe(path: Path, source: str) -> RecipeFile:
    """Read one file.

    Raises:
        RecipeFileError: unreadable, too large, not TOML, too deep, or a wrong [recipe], [sweep] or
            [search].
    """
    place = f"recipe {path.stem!r} ({path})"
    tables = _parse(_read_text(path, place), place)
    _check_plain(tables, place)
    head = tables.pop("recipe", {})
    sweep = tables.pop("sweep", {})
    search = read_search(tables.pop("search", {}), place)
    for section, keys in tables.items():
        if not isinstance(keys, dict):
            raise RecipeFileError(
                f"{place}: {section}={show(keys)} stands outside any section",
                next_command="put it under its section, such as [train]",
            )
    info, extends = _read_head(head, path, source, place)
    axes = _read_axes(sweep, place)
    _check_contradiction("sweep", axes, tables, place)
    if search is not None:
        _check_contradiction("search", [search.key], tables, place)
        if search.key in axes:
            raise RecipeFileError(
                f"{place} [search] key={show(search.key)} is also in [sweep]",
                next_command="keep one of the two",
            )
    return RecipeFile(info=info, extends=extends, settings=tables, axes=axes, search=search)


def _read_text(path: Path, place: str) -> str:
    """Return the file's text; never reads more than the bound, nor from a pipe or device."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RecipeFileError(f"{place} is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecipeFileError(f"{place}: {error.strerror or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise RecipeFileError(f"{place} is larger than {MAX_FILE_BYTES // 1024} KiB")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise RecipeFileError(f"{place} is not UTF-8 text: byte {error.start}") from None


def _parse(text: str, place: str) -> dict[str, Any]:
    """Return the TOML tables of `text`."""
    bare = re.sub(r"[ \t]+", "", _STRING_OR_COMMENT.sub("s", text))
    for chunk in re.split(r"[^\w.-]+", bare):
        if chunk.count(".") >= MAX_KEY_PARTS:
            raise RecipeFileError(f"{place}: {show(chunk)} has over {MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise RecipeFileError(f"{place} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # TOMLDecodeError, and integers of thousands of digits
        raise RecipeFileError(f"{place} is not valid TOML: {error}") from None


def _check_plain(tables: dict[str, Any], place: str) -> None:
    """Refuse what no config value can be: deep nests, dates, integers beyond 64 bits."""
    count = 0
    stack: list[tuple[Any, str, int]] = [(tables, "", 0)]
    while stack:
        value, path, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise RecipeFileError(f"{place}: {path} is nested deeper than {MAX_DEPTH} levels")
        if count > MAX_VALUES:
            raise RecipeFileError(f"{place} has more than {MAX_VALUES} values")
        if isinstance(value, dict):
            stack += [(item, f"{path}.{key}"[-60:], depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            stack += [(item, path, depth + 1) for item in value]
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise RecipeFileError(f"{place}: {path.lstrip('.')} is beyond 64 bits")
        elif not isinstance(value, str | int | float):
            raise RecipeFileError(
                f"{place}: {path.lstrip('.')}={value} is a date or time; no key takes one",
                next_command="put it in quotes if it is text",
            )


def _read_head(
    head: object, path: Path, source: str, place: str
) -> tuple[RecipeInfo, tuple[str, ...]]:
    """Check [recipe] and return the info and what is extended."""
    if not isinstance(head, dict):
        raise RecipeFileError(f"{place}: [recipe] is {show(head)}; expected a table")
    extends = head.get("extends", [])
    names = [extends] if isinstance(extends, str) else extends
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise RecipeFileError(
            f"{place} [recipe] extends={show(extends)}: a name, or a list of names"
        )
    for key, value in head.items():
        if key != "extends":
            _check_head_key(key, value, place)
    minutes = head.get("minutes")
    info = RecipeInfo(
        name=path.stem,
        summary=head.get("summary", ""),
        minutes=None if minutes is None else float(minutes),
        device=head.get("device", ""),
        expect=head.get("expect", ""),
        path=path,
        source=source,
    )
    return info, tuple(names)


def _check_head_key(key: str, value: object, place: str) -> None:
    """Refuse an unknown or mistyped key of [recipe]."""
    if key not in HEAD_KEYS:
        near = offer(key, HEAD_KEYS)
        raise RecipeFileError(f"{place} [recipe] {key}={show(value)}: unknown key{near}")
    if key in TEXT_KEYS:
        if not isinstance(value, str):
            raise RecipeFileError(f"{place} [recipe] {key}={show(value)}: expected text")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeFileError(f"{place} [recipe] {key}={show(value)}: expected a number")
    elif not (math.isfinite(value) and value >= 0):
        raise RecipeFileError(f"{place} [recipe] {key}={value}: expected 0 or more minutes")


def _read_axes(sweep: object, place: str) -> dict[str, list[Any]]:
    """Check [sweep] and return its axes; `model.top_k` may be quoted or not."""
    if not isinstance(sweep, dict):
        raise RecipeFileError(f"{place}: [sweep] is {show(sweep)}; expected a table")
    axes: dict[str, Any] = {}
    for name, value in sweep.items():
        inner = {f"{name}.{key}": item for key, item in value.items()} if _is(value) else {}
        axes |= inner or {name: value}
    for key, values in axes.items():
        if key.count(".") != 1:
            raise RecipeFileError(
                f"{place} [sweep] {key!r}: an axis is a section and a key, such as 'model.top_k'"
            )
        if not isinstance(values, list) or not values:
            raise RecipeFileError(
                f"{place} [sweep] {key}={show(values)}: expected a list of one or more values"
            )
        if any(value in values[:i] for i, value in enumerate(values[:MAX_SWEEP_RUNS])):
            raise RecipeFileError(f"{place} [sweep] {key}={show(values)}: a value stands twice")
    check_sweep_size(axes, place)
    return axes


def check_sweep_size(axes: dict[str, list[Any]], place: str) -> None:
    """Refuse a sweep of more runs than anyone means."""
    runs = math.prod(len(values) for values in axes.values())
    if runs > MAX_SWEEP_RUNS:
        raise RecipeFileError(
            f"{place} [sweep] asks for {runs} runs; at most {MAX_SWEEP_RUNS}",
            next_command="take values off an axis, or split the sweep over several recipes",
        )


def _check_contradiction(table: str, axes: Iterable[str], settings: Settings, place: str) -> None:
    """Refuse a key that one file both sets and sweeps or searches."""
    for axis in axes:
        section, _, key = axis.partition(".")
        if key in settings.get(section, {}):
            raise RecipeFileError(
                f"{place} [{table}] {axis} is also set: [{section}] {key}="
                f"{show(settings[section][key])}",
                next_command="keep one of the two",
            )


def _is(value: object) -> bool:
    """Return whether `value` is a table with keys."""
    return isinstance(value, dict) and bool(value)
