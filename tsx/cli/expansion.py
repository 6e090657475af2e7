"""A recipe's name and the flags of a command line -> checked configs. Shared by the verbs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.files import Settings
    from recipes.loader import Plan
    from tsx.config import RunConfig


def expand_recipe(
    name: str, overrides: Sequence[str], *, smoke: bool
) -> tuple[Plan, list[tuple[str, RunConfig]]]:
    """Return the resolved plan, and suffix and checked config of each of its runs.

    Raises:
        RecipeFileError: no such recipe, or a file that does not hold.
        ConfigError: a value that does not hold, with recipe, key path and value.
    """
    from recipes.loader import get_recipe, resolve
    from tsx.errors import ConfigError

    search = list_recipe_folders()
    plan = resolve(get_recipe(name, search), search, overrides, smoke)
    place = f"recipe {plan.name!r}"
    try:
        runs = _decode_all(plan, place)
        if plan.search is not None:
            from tsx.launch.search import check_key

            check_key(plan.search.key, f"{place} [search] key=")
        return plan, runs
    except ConfigError as error:
        error.next_command = error.next_command or f"tsx recipes show {shlex.quote(name)}"
        raise


def expand_settings(
    name: str, settings: Settings, overrides: Sequence[str], *, smoke: bool
) -> tuple[Plan, list[tuple[str, RunConfig]]]:
    """Return what `expand_recipe` does, for settings that no file holds.

    Raises:
        ConfigError: a value that does not hold; its place is the verb `tsx NAME`.
    """
    from recipes.files import RecipeFile, RecipeInfo
    from recipes.loader import resolve

    info = RecipeInfo(name, "", None, "", "", path=Path(name), source="command line")
    plan = resolve(RecipeFile(info, settings=settings), (), overrides, smoke)
    return plan, _decode_all(plan, f"tsx {name}")


def _decode_all(plan: Plan, place: str) -> list[tuple[str, RunConfig]]:
    """Return suffix and checked config of each run of a plan."""
    from recipes.loader import expand
    from tsx.config import decode

    return [
        (suffix, decode(raw, place=f"{place} ({suffix})" if suffix else place))
        for suffix, raw in expand(plan)
    ]


def list_recipe_folders() -> tuple[Path, ...]:
    """Return the folders of users' own recipes, in the order they are searched.

    Raises:
        ConfigError: the current folder is gone.
    """
    from recipes.loader import list_folders
    from registry.home import find_home
    from tsx.errors import ConfigError

    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current folder no longer exists", next_command="cd") from None
    return list_folders(find_home(), here)
