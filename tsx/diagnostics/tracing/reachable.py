"""Modules that a function of the program knows of: others than the one that is watched, perhaps."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

DEPTH = 3  # functions that functions call


def list_modules(fn: Any) -> list[nn.Module]:
    """Return the modules in a function's closure, globals and defaults, and on its object."""
    found = {id(module): module for module in _iter_modules(fn, DEPTH)}
    return list(found.values())


def _iter_modules(value: Any, depth: int) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, MethodType):
        own = value.__self__
        yield from _iter_modules(value.__func__, depth)
        for inner in [own, *getattr(own, "__dict__", {}).values()]:
            if isinstance(inner, nn.Module):
                yield inner
    elif isinstance(value, FunctionType) and depth:
        for inner in _iter_known(value):
            yield from _iter_modules(inner, depth - 1)


def _iter_known(fn: FunctionType) -> Iterator[Any]:
    """Yield what a function has at hand."""
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from fn.__defaults__ or ()
    for name in fn.__code__.co_names:
        if name in fn.__globals__:
            yield fn.__globals__[name]
