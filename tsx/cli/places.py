"""Where things lie, for verbs that must not pay for SQLAlchemy to know it."""

from __future__ import annotations

import os
from pathlib import Path


def find_home() -> Path:
    """Return TSX_HOME or the platform's data folder; it need not exist.

    The same answer as `registry.connection.find_home`, which imports the database library.
    """
    named = os.environ.get("TSX_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("tsx"))


def list_recipe_folders() -> tuple[Path, ...]:
    """Return the folders of users' own recipes, in the order they are searched."""
    from recipes.loader import list_folders

    return list_folders(find_home(), Path.cwd())
