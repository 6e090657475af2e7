"""Names -> recipes -> plain dicts: listing, `extends`, presets, --set, --smoke, sweeps, searches.

A recipe is data. Later wins: what it extends (left to right), its own sections, a sweep's values,
the smoke bounds, --set. Whether the result is a valid config is for tsx.config.decode to say.

Built-in recipes lie beside this file, presets in presets/. Users' own are found by name in the
`search` folders (see `list_folders`), or by path.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recipes.errors import RecipeFileError, offer, show
from recipes.files import (
    RecipeFile,
    RecipeInfo,
    Settings,
    check_sweep_size,
    read_recipe,
)
from recipes.overrides import Overrides, parse_overrides
from recipes.search import Search
from recipes.smoke import MAX_RUNS as MAX_SMOKE_RUNS
from recipes.smoke import shrink, shrink_search

__all__ = [
    "Plan",
    "Recipe",
    "RecipeFileError",
    "RecipeInfo",
    "Search",
    "expand",
    "find_recipe",
    "get_recipe",
    "list_folders",
    "list_presets",
    "list_recipes",
    "resolve",
]

BUILT_IN = Path(__file__).resolve().parent
PRESETS = BUILT_IN / "presets"
PRESET_PREFIX = "preset:"
MAX_EXTENDS = 16  # files one recipe may draw in, itself included
MAX_FOLDER = 1000  # recipes listed of one folder

Recipe = RecipeFile


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with everything it extends, the overrides and the smoke bounds applied.

    Attributes:
        raw: section -> key -> value of the first run; what the recipe leaves out is default.
        axes: the sweep that is left, "section.key" -> values; empty for a single run.
        search: the search that is left; its key has its start in `raw`. Never beside `axes`.
        origins: "section.key" -> who set it: "recipe 'x'", "preset 'base'", "--set", "--smoke".
        repeated: keys given twice to --set; the last one won.
    """

    name: str
    info: RecipeInfo
    raw: Settings
    axes: dict[str, list[Any]] = field(default_factory=dict)
    search: Search | None = None
    smoke: bool = False
    origins: dict[str, str] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)  # before sweep, smoke and --set


def list_folders(home: Path, cwd: Path) -> tuple[Path, ...]:
    """Return where users' own recipes are looked for, in order."""
    return cwd / "tsx-recipes", home / "recipes"


def list_recipes(search: Sequence[Path] = ()) -> list[RecipeInfo]:
    """Return every recipe: built-in ones first, then by folder, each by name.

    A file that cannot be read is listed with its `error`. A name that an earlier place has is left
    out: it can be had by path.
    """
    listed: dict[str, RecipeInfo] = {}
    for folder in (BUILT_IN, *search):
        files = itertools.islice(_iter_files(folder), MAX_FOLDER)
        for path in sorted(files, key=lambda path: path.stem):
            if path.stem not in listed:
                listed[path.stem] = _read_info(path)
    return list(listed.values())


def list_presets() -> list[RecipeInfo]:
    """Return the presets, which recipes name as `extends = "preset:NAME"`."""
    return [_read_info(path) for path in sorted(_iter_files(PRESETS))]


def find_recipe(name_or_path: str, search: Sequence[Path] = ()) -> Recipe | None:
    """Return the recipe of that name or path, or "preset:NAME"; None when there is none.

    Raises:
        RecipeFileError: it is there and cannot be read.
    """
    path = _find_path(name_or_path, search)
    return None if path is None else read_recipe(path, _get_source(path))


def get_recipe(name_or_path: str, search: Sequence[Path] = ()) -> Recipe:
    """Return the recipe of that name or path, or "preset:NAME".

    Raises:
        RecipeFileError: there is none (with the nearest names), or it cannot be read.
    """
    recipe = find_recipe(name_or_path, search)
    if recipe is not None:
        return recipe
    if name_or_path.startswith(PRESET_PREFIX):
        preset, known = name_or_path.removeprefix(PRESET_PREFIX), _iter_files(PRESETS)
        nearest = offer(preset, {path.stem for path in known})
        raise RecipeFileError(f"no preset {show(preset)}{nearest}", next_command="tsx recipes")
    if _is_path(name_or_path):
        raise RecipeFileError(f"no recipe file {show(name_or_path)}", next_command="tsx recipes")
    names = [path.stem for folder in (BUILT_IN, *search) for path in _iter_files(folder)]
    raise RecipeFileError(
        f"no recipe {show(name_or_path)}{offer(name_or_path, set(names))}",
        next_command="tsx recipes",
    )


def resolve(
    recipe: Recipe,
    search: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    smoke: bool = False,
) -> Plan:
    """Follow `extends` and apply sweep, smoke bounds and overrides.

    Args:
        recipe: from `get_recipe`.
        search: folders of users' own recipes, for names in `extends`.
        overrides: texts of --set, in order.
        smoke: bound every size.

    Raises:
        RecipeFileError: a name that is not there, a cycle, a chain or sweep too long, a bad --set,
            or a sweep beside a search.
    """
    given = parse_overrides(overrides)
    merged = _Merge()
    for file in _list_chain(recipe, search):
        merged.add(file)
    merged.pin(given)
    check_sweep_size(merged.axes, recipe.place)
    merged.check_search(recipe.place)
    plan = Plan(
        name=recipe.info.name,
        info=recipe.info,
        raw={},
        axes=merged.axes,
        smoke=smoke,
        origins=merged.origins,
        repeated=given.repeated,
        overrides=given.values,
        settings=merged.settings,
    )
    first = next(iter(_iter_points(merged.axes)))
    raw = _apply(plan, first)
    return replace(
        plan,
        raw=raw,
        origins=_name_origins(plan, raw),
        search=_fit_search(merged.search, raw) if smoke else merged.search,
    )


def expand(plan: Plan) -> list[tuple[str, Settings]]:
    """Return (suffix, raw config) of every run: one with suffix "" where nothing is swept.

    A suffix reads "top_k=1,lr=0.001". Under smoke, runs that the bounds made equal are one, and
    only the first few are kept.
    """
    runs: list[tuple[str, Settings]] = []
    for point in _iter_points(plan.axes):
        raw = _apply(plan, point)
        if plan.smoke and (len(runs) == MAX_SMOKE_RUNS or any(raw == other for _, other in runs)):
            continue
        runs.append((_name_point(point, plan.axes), raw))
    return runs


class _Merge:
    """Files laid over each other, later over earlier."""

    def __init__(self) -> None:
        self.settings: Settings = {}
        self.axes: dict[str, list[Any]] = {}
        self.search: Search | None = None
        self.origins: dict[str, str] = {}

    def add(self, file: RecipeFile) -> None:
        """Lay one file over what is there.

        Setting a key ends a sweep or search over it, and the reverse; a search ends another, whose
        key stays at its start.
        """
        for section, keys in file.settings.items():
            self.settings.setdefault(section, {}).update(keys)
            for key in keys:
                self._free(f"{section}.{key}")
                self.origins[f"{section}.{key}"] = file.place
        for axis, values in file.axes.items():
            self._free(axis)
            self.axes[axis] = values
            self.origins[axis] = f"{file.place} [sweep]"
        if file.search is not None:
            path = file.search.key
            self._free(path)
            section, _, key = path.partition(".")
            self.settings.setdefault(section, {})[key] = file.search.start
            self.origins[path] = f"{file.place} [search]"
            self.search = file.search

    def pin(self, given: Overrides) -> None:
        """End the sweep or search over every key that --set fixes."""
        for key in given.values:
            self._free(key)

    def check_search(self, place: str) -> None:
        """Refuse a search of which a sweep would make many."""
        if self.search is not None and self.axes:
            raise RecipeFileError(
                f"{place} searches {self.search.key} and sweeps {', '.join(self.axes)}: "
                "one or the other",
                next_command=f"--set {next(iter(self.axes))}=VALUE",
            )

    def _free(self, key: str) -> None:
        """End the sweep or search over a key."""
        self.axes.pop(key, None)
        if self.search is not None and self.search.key == key:
            self.search = None


def _list_chain(recipe: Recipe, search: Sequence[Path]) -> list[RecipeFile]:
    """Return the recipe and what it extends, the furthest first."""
    chain: list[RecipeFile] = []
    read: list[Path] = []

    def visit(file: RecipeFile, path: tuple[Path, ...]) -> None:
        read.append(file.info.path)
        if len(read) > MAX_EXTENDS:
            raise RecipeFileError(
                f"{recipe.place} draws in more than {MAX_EXTENDS} files through extends"
            )
        for name in file.extends:
            base = _get_base(name, file, search)
            if base.info.path in path:
                names = [step.stem for step in (*path, base.info.path)]
                raise RecipeFileError(
                    f"{file.place} [recipe] extends={name!r} closes a cycle: {' -> '.join(names)}"
                )
            visit(base, (*path, base.info.path))
        chain.append(file)

    visit(recipe, (recipe.info.path,))
    return chain


def _get_base(name: str, file: RecipeFile, search: Sequence[Path]) -> RecipeFile:
    """Return what `extends = name` in `file` means: a path beside it, a preset, or a name."""
    beside = os.fspath(file.info.path.parent / name) if _is_path(name) else name
    try:
        return get_recipe(beside, search)
    except RecipeFileError as error:
        raise RecipeFileError(
            f"{file.place} [recipe] extends={name!r}: {error.message}",
            next_command=error.next_command,
        ) from None


def _iter_points(axes: dict[str, list[Any]]) -> itertools.product[tuple[Any, ...]]:
    """Iterate over the grid: one value per axis, the last axis fastest."""
    return itertools.product(*axes.values())


def _apply(plan: Plan, point: tuple[Any, ...]) -> Settings:
    """Return the raw config at one point of the grid."""
    values = dict(zip(plan.axes, point, strict=True))
    raw = _lay_over(plan.settings, values)
    if plan.smoke:
        raw = shrink(_lay_over(raw, plan.overrides))
    return _lay_over(raw, plan.overrides)


def _fit_search(search: Search | None, raw: Settings) -> Search | None:
    """Return the search bounded by --smoke, from where the bounds have put its key."""
    if search is None:
        return None
    section, _, key = search.key.partition(".")
    return shrink_search(replace(search, start=raw.get(section, {}).get(key, search.start)))


def _lay_over(settings: Settings, values: dict[str, Any]) -> Settings:
    """Return a copy of the settings with "section.key" values set."""
    raw = {section: dict(keys) for section, keys in settings.items()}
    for path, value in values.items():
        section, _, key = path.partition(".")
        raw.setdefault(section, {})[key] = value
    return raw


def _name_origins(plan: Plan, raw: Settings) -> dict[str, str]:
    """Return who set each key of `raw`."""
    point = next(iter(_iter_points(plan.axes)))
    plain = _lay_over(plan.settings, dict(zip(plan.axes, point, strict=True)))
    origins: dict[str, str] = {}
    for section, keys in raw.items():
        for key, value in keys.items():
            path = f"{section}.{key}"
            if path in plan.overrides:
                origins[path] = "--set"
            elif key in plain.get(section, {}) and plain[section][key] == value:
                origins[path] = plan.origins[path]
            else:
                origins[path] = "--smoke"
    return origins


def _name_point(point: tuple[Any, ...], axes: dict[str, list[Any]]) -> str:
    """Return the suffix of a run's name; the section is left out where the key alone is clear."""
    last = [axis.rpartition(".")[2] for axis in axes]
    names = [
        short if last.count(short) == 1 else axis for short, axis in zip(last, axes, strict=True)
    ]
    return ",".join(f"{name}={_name_value(v)}" for name, v in zip(names, point, strict=True))


def _name_value(value: object) -> str:
    """Return a swept value as it stands in a run's name."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}~"


def _iter_files(folder: Path) -> list[Path]:
    """Return the recipe files of a folder; none where it cannot be listed."""
    try:
        return [path for path in folder.iterdir() if path.suffix == ".toml"]
    except OSError:
        return []


def _read_info(path: Path) -> RecipeInfo:
    """Return the head of one listed file; `summary` of a broken one is empty, `error` says why."""
    source = _get_source(path)
    try:
        return read_recipe(path, source).info
    except RecipeFileError as error:
        return RecipeInfo(path.stem, "", None, "", "", path, source, error=error.message)


def _is_path(name: str) -> bool:
    """Return whether `name` means a file rather than a recipe by name."""
    return os.sep in name or name.endswith(".toml")


def _find_path(name: str, search: Sequence[Path]) -> Path | None:
    """Return the file of a name or path."""
    if "\0" in name or len(name) > 4096:
        return None
    if _is_path(name):
        path = Path(name).expanduser()
        return path.resolve() if os.path.lexists(path) else None
    is_preset = name.startswith(PRESET_PREFIX)
    name = name.removeprefix(PRESET_PREFIX)
    for folder in (PRESETS,) if is_preset else (BUILT_IN, *search):
        path = folder / f"{name}.toml"
        if name and path in _iter_files(folder):
            return path.resolve()
    return None


def _get_source(path: Path) -> str:
    """Return "built-in", "preset" or the folder a recipe file lies in."""
    if path.parent == BUILT_IN:
        return "built-in"
    return "preset" if path.parent == PRESETS else str(path.parent)
