"""Statements that SQLite and PostgreSQL both take, and that cost little for many rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table
from sqlalchemy.sql.dml import Insert


def insert_rows(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows that hold every column in the table's order.

    Past SQLAlchemy, where a dictionary a row would double the cost of a point.
    """
    compiled = table.insert().compile(dialect=connection.dialect)
    names = [column.name for column in table.columns]
    if compiled.positional:
        connection.exec_driver_sql(str(compiled), [*rows])
    else:
        named = [dict(zip(names, row, strict=True)) for row in rows]
        connection.exec_driver_sql(str(compiled), named)


def fetch_rows(
    connection: Connection, query: Select[Any], values: Mapping[str, Any] | None = None
) -> list[Any]:
    """Return the rows as the driver has them; SQLAlchemy's own take as long again to make."""
    found = connection.execute(query, values)
    rows = list(found.cursor.fetchall()) if found.cursor is not None else []
    found.close()
    return rows


def insert(connection: Connection, table: Any) -> Any:
    """Return the dialect's INSERT, which knows ON CONFLICT."""
    # Readers import this module too: a dialect is loaded where rows are written with it.
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


def upsert(
    connection: Connection,
    table: Any,
    rows: list[dict[str, Any]],
    *,
    replaced: tuple[str, ...] = (),
    added: str = "",
) -> None:
    """Insert rows; where the primary key exists, replace some columns and add up one."""
    statement = insert(connection, table)
    changes = {name: statement.excluded[name] for name in replaced}
    if added:
        changes[added] = table.c[added] + statement.excluded[added]
    final: Insert = statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns), set_=changes
    )
    connection.execute(final, rows)
