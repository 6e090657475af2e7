"""[search]: the largest value of one key with which a run fits into memory.

Owns the table's keys and bounds. How values are tried is for tsx.launch.search, which keys exist
for tsx.config.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipes.errors import RecipeFileError, offer, show

MAX_LIMIT = 65_536  # of a search that names none
STEPS = 6  # of a trial that names none
MIN_STEPS = 3  # two are warm-up and are not timed; memory peaks in the second

_KEYS = ("key", "start", "limit", "steps")


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched. `start` is tried first, nothing above `limit` is."""

    key: str  # "section.key"
    start: int
    limit: int = MAX_LIMIT
    steps: int = STEPS  # of each trial


def read_search(table: object, place: str) -> Search | None:
    """Check [search] and return it; None where a file has none.

    Raises:
        RecipeFileError: no table, a key that is missing, unknown or of a wrong type or range.
    """
    place = f"{place} [search]"
    if not isinstance(table, dict):
        raise RecipeFileError(f"{place} is {show(table)}; expected a table")
    if not table:
        return None
    for name, value in table.items():
        if name not in _KEYS:
            raise RecipeFileError(f"{place} {name}={show(value)}: unknown key{offer(name, _KEYS)}")
    key = table.get("key")
    if not isinstance(key, str) or key.count(".") != 1:
        raise RecipeFileError(
            f"{place} key={show(key)}: expected a section and a key",
            next_command='key = "train.batch_size"',
        )
    start = _read_count(table, "start", 0, place)
    search = Search(
        key=key,
        start=start,
        limit=_read_count(table, "limit", max(MAX_LIMIT, start), place),
        steps=_read_count(table, "steps", STEPS, place, least=MIN_STEPS),
    )
    if search.start > search.limit:
        raise RecipeFileError(f"{place} start={search.start} is above limit={search.limit}")
    return search


def _read_count(
    table: dict[str, object], name: str, default: int, place: str, *, least: int = 1
) -> int:
    """Return a whole number of the table; a `default` of 0 means that there is none."""
    value = table.get(name, default or None)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RecipeFileError(
            f"{place} {name}={show(value)}: expected a whole number of {least} or more"
        )
    return value
