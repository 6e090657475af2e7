"""The project's own source, parsed once."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("tsx", "registry", "recipes")


class Source(NamedTuple):
    """One Python file; `path` is relative to the root."""

    path: str
    text: str
    tree: ast.Module


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def sources() -> tuple[Source, ...]:
    """Return every Python file of the three packages."""
    files = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    parsed = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        parsed.append(Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    assert len(parsed) > 20
    return tuple(parsed)


@pytest.fixture(scope="session")
def list_nodes(sources: tuple[Source, ...]) -> Callable[..., list[tuple[Source, ast.AST]]]:
    """Return a function that lists every node of given types with its file."""

    def find(*types: type[ast.AST]) -> list[tuple[Source, ast.AST]]:
        return [
            (source, node)
            for source in sources
            for node in ast.walk(source.tree)
            if isinstance(node, types)
        ]

    return find
