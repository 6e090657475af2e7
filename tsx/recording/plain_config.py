"""A user's config, whatever it is, as plain data that a run can be recorded with. No torch.

Owns what counts as a config (a mapping, a dataclass, a Namespace, any object or class with
attributes) and the bounds of what is kept: a config is read by people and compared key by key, so a
vocabulary or a data set that was put into one is cut, and the caller is told where.
Secrets are taken out later, where the journal writes (registry.redact).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import Any

from tsx.errors import ConfigError

MAX_VALUES = 10_000  # values in all
MAX_CHARS = 1_000_000  # characters of text in all, keys included
MAX_TEXT = 10_000  # characters of one text
MAX_DEPTH = 20
MAX_NAMED = 5  # cut places that are named; the rest are counted

_ATTRIBUTES = ("__struct_fields__", "model_fields", "__attrs_attrs__")  # msgspec, pydantic, attrs


def to_plain_config(config: object) -> tuple[dict[str, Any], str]:
    """Return a config as a plain dict, and what was cut from it in one line ("" for nothing).

    Raises:
        ConfigError: it is nothing with named values, such as a list or a number.
    """
    if config is None:
        return {}, ""
    fields = _find_fields(config) or _find_attributes(config)
    if fields is None:
        raise ConfigError(
            f"config={_show(config, 60)} ({type(config).__name__}) has no named values",
            next_command='tsx.init(config={"lr": 1e-3})',
        )
    reading = _Reading()
    return reading.take_fields(fields, "", MAX_DEPTH, (id(config),)), reading.explain()


class _Reading:
    """Reads one config within the bounds and notes where it had to cut."""

    def __init__(self) -> None:
        self._values = MAX_VALUES
        self._chars = MAX_CHARS
        self._cuts: list[str] = []
        self._num_cuts = 0

    def explain(self) -> str:
        """Return what was cut, "" for nothing."""
        if not self._num_cuts:
            return ""
        more = self._num_cuts - len(self._cuts)
        return "; ".join(self._cuts) + (f"; and {more:,} more places" if more else "")

    def take_fields(
        self, fields: Iterable[tuple[Any, Any]], path: str, depth: int, above: tuple[int, ...]
    ) -> dict[str, Any]:
        """Return named values as a dict; `above` are the ids of what they are within."""
        taken: dict[str, Any] = {}
        iterator = iter(fields)
        for key, value in iterator:
            if not self._values or self._chars <= 0:
                left = 1 + sum(1 for _ in iterator)
                self._cut(path, f"{left:,} keys or more left out")
                break
            name = self._text(key if isinstance(key, str) else _show(key), path)
            taken[name] = self._take(value, f"{path}.{name}" if path else name, depth - 1, above)
        return taken

    def _take(self, value: Any, path: str, depth: int, above: tuple[int, ...]) -> Any:
        """Return one value as plain data."""
        self._values -= self._values > 0
        if isinstance(value, Enum):
            value = value.value
        if value is None or type(value) in (bool, int, float):
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if id(value) in above or depth <= 0:
            self._cut(path, "holds itself" if id(value) in above else "nested too deep")
            return "[left out]"
        within = (*above, id(value))
        if isinstance(value, list | tuple | set | frozenset):
            return self._take_items(value, path, depth, within)
        fields = _find_fields(value)
        if fields is not None:
            return self.take_fields(fields, path, depth, within)
        return _find_number(value, self._text(_show(value), path))

    def _take_items(
        self, values: Collection[Any], path: str, depth: int, above: tuple[int, ...]
    ) -> list[Any]:
        """Return the items of a list, as many as there is room for."""
        items: list[Any] = []
        for index, value in enumerate(values):
            if not self._values or self._chars <= 0:
                self._cut(path, f"{index:,} of {len(values):,} items kept")
                break
            items.append(self._take(value, f"{path}[{index}]", depth - 1, above))
        return items

    def _text(self, text: str, path: str) -> str:
        """Return a text within the bounds."""
        room = max(min(MAX_TEXT, self._chars), 0)
        self._chars -= min(len(text), room)
        if len(text) <= room:
            return str(text)
        self._cut(path, f"{room:,} of {len(text):,} characters kept")
        return f"{text[:room]}[{len(text) - room} characters left out]"

    def _cut(self, path: str, what: str) -> None:
        """Note that something was cut."""
        self._num_cuts += 1
        if len(self._cuts) < MAX_NAMED:
            self._cuts.append(f"{path[:80] or 'config'}: {what}")


def _find_fields(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the named values of a mapping or of a record of a known kind, else None."""
    try:
        if isinstance(value, Mapping):
            return list(itertools.islice(value.items(), 2 * MAX_VALUES))
        if isinstance(value, type):
            return None
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
        elif type(value).__name__ in ("Namespace", "SimpleNamespace"):
            return list(vars(value).items())
        elif any(hasattr(type(value), name) for name in _ATTRIBUTES):
            fields = next(getattr(type(value), n) for n in _ATTRIBUTES if hasattr(type(value), n))
            names = [name if isinstance(name, str) else name.name for name in fields]
        elif hasattr(value, "keys") and hasattr(type(value), "__getitem__"):
            return [(key, value[key]) for key in value.keys()]  # noqa: SIM118 - no Mapping
        else:
            return None
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    except Exception:  # a config may run code of its own when it is read
        return None


def _find_attributes(config: Any) -> list[tuple[str, Any]] | None:
    """Return the public values of any other object or class, those of its bases first."""
    kind = config if isinstance(config, type) else type(config)
    if kind.__module__ == "builtins":
        return None
    found: dict[str, Any] = {}
    for holder in (*reversed(kind.__mro__), config):
        with_values = getattr(holder, "__dict__", {})
        found.update({name: value for name, value in with_values.items() if name[:1] != "_"})
    for name in getattr(kind, "__slots__", ()):
        if isinstance(name, str) and name[:1] != "_":
            found[name] = getattr(config, name, None)
    return [(name, value) for name, value in found.items() if not _is_code(value)]


def _is_code(value: object) -> bool:
    """Return whether a class's attribute is a method or property, not a value."""
    return callable(value) or isinstance(value, property | classmethod | staticmethod)


def _find_number(value: Any, text: str) -> Any:
    """Return a numpy scalar and its like as a plain number, else `text`."""
    try:
        number = value.item() if getattr(value, "shape", None) == () else None
    except Exception:  # a config may run code of its own when it is read
        return text
    return number if type(number) in (bool, int, float) else text


def _show(value: object, limit: int = 1000) -> str:
    """Return a short text for anything; an array by its shape, code by its name."""
    try:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is not None and dtype is not None and shape != ():
            return f"{type(value).__name__}(shape={tuple(shape)}, dtype={dtype})"
        name = getattr(value, "__qualname__", None)
        if callable(value) and isinstance(name, str):
            return f"{getattr(value, '__module__', '')}.{name}"[:limit]
        return str(value)[:limit]
    except Exception:  # whatever a value does when it is shown, the run begins
        return f"[a {type(value).__name__} that cannot be shown]"
