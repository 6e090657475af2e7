"""Configs as flat keys, and where they differ. Pure; tsx.config only for the defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class Difference:
    """A config key whose value is not the same everywhere.

    `values` has one text per config and `raw` the value itself, None where the key is absent.
    """

    key: str
    values: tuple[str, ...]
    raw: tuple[Any, ...]


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return "section.key" to value; lists stay whole."""
    flat: dict[str, Any] = {}
    # A stack, not recursion: a config in a registry may be nested deeper than Python's limit.
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, Mapping) and (value or not path):
            prefix = f"{path}." if path else ""
            pending += [(f"{prefix}{key}", inner) for key, inner in reversed(list(value.items()))]
        else:
            flat[path] = value
    return flat


def find_differences(configs: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return the keys that are not equal in all configs, in the order they are first met."""
    flats = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    found = []
    for key in keys:
        values = tuple(show_value(flat[key]) if key in flat else ABSENT for flat in flats)
        if len(set(values)) > 1:
            found.append(Difference(key, values, tuple(flat.get(key) for flat in flats)))
    return found


def find_changes(config: Mapping[str, Any]) -> list[Difference]:
    """Return the keys of a run that are not at their default: (default, the run's value).

    A config that is not ours has no defaults, and so no changes.
    """
    if not is_run_config(config):
        return []
    return find_differences([_get_defaults(), config])


def is_run_config(config: Mapping[str, Any]) -> bool:
    """Return whether a config is one of our trainer's, not what another program said of itself."""
    return bool(config) and flatten(config).keys() <= flatten(_get_defaults()).keys()


def _get_defaults() -> dict[str, Any]:
    """Return the default config as plain data."""
    from tsx.config import RunConfig, to_plain

    return to_plain(RunConfig())


def show_value(value: Any) -> str:
    """Return a config value as it is written in a recipe: 0.001, "cosine", [1, 8]."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
