"""`--set section.key=VALUE` -> settings: a TOML value, or a bare string where it is none."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any, NamedTuple

from recipes.errors import RecipeFileError, show
from recipes.files import MAX_DEPTH, MAX_INTEGER

MAX_TEXT = 4096  # characters of one override

_KEY = re.compile(r"([A-Za-z][A-Za-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")
_EXAMPLE = "--set model.top_k=1"


class Overrides(NamedTuple):
    """What the --set flags say together."""

    values: dict[str, Any]  # "section.key" -> value; the last of a repeated key
    repeated: tuple[str, ...]  # keys given more than once


def parse_overrides(texts: Sequence[str]) -> Overrides:
    """Parse all --set flags of a command line, in order.

    Raises:
        RecipeFileError: a flag without `=`, a key that is not `section.key`, a bad value.
    """
    values: dict[str, Any] = {}
    repeated: dict[str, None] = {}
    for text in texts:
        key, value = parse_override(text)
        if key in values:
            repeated[key] = None
        values[key] = value
    return Overrides(values, tuple(repeated))


def parse_override(text: str) -> tuple[str, Any]:
    """Return the key and value of one `section.key=VALUE`.

    Raises:
        RecipeFileError: as `parse_overrides`.
    """
    if len(text) > MAX_TEXT:
        raise RecipeFileError(f"--set {show(text)} is longer than {MAX_TEXT} characters")
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeFileError(f"--set {show(text)} has no '='", next_command=_EXAMPLE)
    key = key.strip()
    if not _KEY.fullmatch(key):
        raise RecipeFileError(
            f"--set {show(key)}: expected a section and a key joined by a dot",
            next_command=_EXAMPLE,
        )
    return key, parse_value(value.strip(), place=f"--set {key}")


def parse_value(text: str, *, place: str) -> Any:
    """Return `text` as the TOML value it spells, or itself where it spells none.

    Raises:
        RecipeFileError: an integer beyond 64 bits or a list nested too deep.
    """
    if text.count("[") > MAX_DEPTH * 4 or text.count("{") or text.count("\n"):
        return text
    try:
        parsed = tomllib.loads(f"v = {text}")
    except ValueError:
        return text
    value = parsed["v"]
    if isinstance(value, bool | int) and abs(value) > MAX_INTEGER:
        raise RecipeFileError(f"{place}={show(text)} is beyond 64 bits")
    return value if isinstance(value, str | int | float | list) else text
