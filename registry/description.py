"""What the tables and views of the registry hold, for people who ask in SQL.

The words are the comments beside the columns in `registry/schema.py`: one place, read as text.
"""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

from registry import schema

_COLUMN = re.compile(r"Column\(\"(\w+)\".*\),\s+# (.+)$")
_TABLE = re.compile(r"^    \"(\w+)\",$")
_SOURCE = re.compile(r"((\w+)\.(\w+)(?: [^,]+?)?) AS (\w+)")
_RUN = "runs.key of the run that it belongs to"


class ColumnWords(NamedTuple):
    """One column: what it holds, with its unit."""

    name: str
    type: str  # as SQL names it; empty for a view
    meaning: str


class TableWords(NamedTuple):
    """One table or view."""

    name: str
    is_view: bool
    columns: tuple[ColumnWords, ...]


def describe() -> list[TableWords]:
    """Return the views, which are the easiest to ask, and then the tables."""
    comments = _read_comments()
    tables = [
        TableWords(
            name,
            False,
            tuple(
                ColumnWords(column.name, str(column.type), comments[name].get(column.name, ""))
                for column in table.columns
            ),
        )
        for name, table in schema.metadata.tables.items()
    ]
    views = []
    for name, query in schema.VIEWS.items():
        columns = [
            ColumnWords(alias, "", comments[table].get(column, ""))
            for _, table, column, alias in _SOURCE.findall(query)
        ]
        views.append(TableWords(name, True, tuple(columns)))
    return views + tables


def _read_comments() -> dict[str, dict[str, str]]:
    """Return table -> column -> comment of the schema's source."""
    found: dict[str, dict[str, str]] = {}
    table = ""
    for line in inspect.getsource(schema).splitlines():
        if begin := _TABLE.match(line):
            table = begin[1]
            found[table] = {"run": _RUN}
        elif (column := _COLUMN.search(line)) and table:
            found[table][column[1]] = column[2]
    return found
