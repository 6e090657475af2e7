"""A folder of recipes for one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty recipe folder."""
    made = tmp_path / "tsx-recipes"
    made.mkdir()
    return made


@pytest.fixture
def write(folder: Path) -> Callable[[str, str], Path]:
    """Return a function that writes a recipe of a name and text into the folder."""

    def write_recipe(name: str, text: str) -> Path:
        path = folder / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe
