"""Names of modules: "blocks.0.attention" is inside "blocks.0"; the root is ""."""

from __future__ import annotations

from collections.abc import Sequence


def is_inside(name: str, other: str) -> bool:
    """Return whether a module is below another one."""
    return name != other and (not other or name.startswith(f"{other}."))


def is_related(name: str, other: str) -> bool:
    """Return whether one of two modules is the other, or inside it."""
    return name == other or is_inside(name, other) or is_inside(other, name)


def find_enclosing(names: Sequence[str]) -> str:
    """Return the innermost module that several are in, or are; "" for the root."""
    shared: list[str] = []
    for level in zip(*(name.split(".") for name in names), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)
