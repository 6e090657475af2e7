"""`tsx sql 'select ...'`: ask the registry anything, and change nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Annotated, Any

import typer

EXAMPLES = (
    'tsx sql "select name, status, step from runs order by created desc limit 5"',
    "tsx sql \"select name, min, min_step from curves where key = 'val/loss' order by min\" --csv",
    "tsx sql \"select step, value from points where name = 'sanity' and key = 'train/lr'\" --json",
)

_ROWS_PER_WRITE = 500
_ROWS_PER_TABLE = 5000  # of one drawing; a longer answer is several tables, its memory bounded
_MAX_PLAIN_CELL = 20_000  # characters, where no terminal has to hold the line
_NO_LIMIT = 2**62  # characters: what programs read is never cut


def command(
    query: Annotated[
        str, typer.Argument(metavar="SELECT", help="One statement that reads; none shows --schema.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Rows that are shown; 0 shows all.")] = 1000,
    timeout: Annotated[str, typer.Option(help="How long the database may take.")] = "60s",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print tables, views and columns with their units.")
    ] = False,
) -> None:
    """Ask the registry in SQL; nothing but reading is possible.

    Start with the views `points` (one row a metric value) and `curves` (last, min, max and count of
    every curve). JSON and CSV are whole; a terminal's cells are cut.
    """
    from tsx.cli.durations import parse_span
    from tsx.errors import ConfigError

    if as_csv and as_json:
        raise ConfigError("--csv and --json exclude each other", next_command="tsx sql --help")
    seconds = parse_span(timeout, flag="--timeout", example="60s")
    if not 0 < seconds <= 86400:
        raise ConfigError(f"--timeout {timeout}: more than 0 s, at most a day")
    if schema and query:
        raise ConfigError("--schema takes no query", next_command="tsx sql --schema")
    if not query:
        _show_schema(as_json=as_json)
        return
    _answer(query, seconds, limit, as_json=as_json, as_csv=as_csv)


def _answer(query: str, timeout_s: float, limit: int, *, as_json: bool, as_csv: bool) -> None:
    """Print the answer to one question, and say where it was cut."""
    from registry.connection import find_url, parse_url
    from registry.home import find_home
    from registry.readonly_sql import QueryRefused, QueryTimeout, ask
    from tsx.cli import output
    from tsx.cli.reading import open_reader
    from tsx.errors import ConfigError, TsxError

    open_reader().close()  # runs whose process is gone have ended
    try:
        with ask(parse_url(find_url(find_home())), query, timeout_s=timeout_s) as rows:
            taken = itertools.islice(rows, limit) if limit else rows
            if as_json:
                _write_json(rows.columns, taken)
            elif as_csv:
                _write_csv(rows.columns, taken)
            else:
                _write_tables(rows.columns, taken)
            if limit and next(iter(rows), None) is not None:
                output.flush()
                output.talk(f"these are the first {limit:,} rows; --limit 0 shows all")
    except QueryRefused as error:
        raise ConfigError(
            f"{output.clean(query, limit=200)!r} {error}", next_command=EXAMPLES[0]
        ) from None
    except QueryTimeout as error:
        raise TsxError(
            f"{output.clean(query, limit=200)!r} {error}",
            next_command="a narrower question (where run = ..., key = ...), or --timeout 10m",
        ) from None


def _write_json(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write one JSON document, a row a line, as the rows come."""
    import json

    from tsx.cli import output

    def encode(plain: object) -> str:
        return json.dumps(output.to_strict(plain), allow_nan=False)

    output.data(f'{{"columns": {encode(columns)},\n "rows": [', limit=_NO_LIMIT)
    rows, comma = iter(rows), ""
    while part := list(itertools.islice(rows, _ROWS_PER_WRITE)):
        lines = [encode(dict(zip(columns, map(_to_plain, row), strict=True))) for row in part]
        output.data(comma + "  " + ",\n  ".join(lines), limit=_NO_LIMIT)
        comma = " ,\n"
    output.data(" ]}", limit=_NO_LIMIT)


def _write_csv(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write CSV as the rows come; NULL is an empty field."""
    import csv
    import io

    from tsx.cli import output

    rows = itertools.chain([columns], rows)
    while part := list(itertools.islice(rows, _ROWS_PER_WRITE)):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows(["" if cell is None else _to_plain(cell) for cell in row] for row in part)
        output.data(text.getvalue().removesuffix("\n"), limit=_NO_LIMIT)


def _write_tables(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write a table, or several with the same head where one would not fit into memory."""
    from tsx.cli import output
    from tsx.cli.paint import is_for_person

    most = output.MAX_CELL if is_for_person() else _MAX_PLAIN_CELL
    rows = iter(rows)
    shown = 0
    while part := list(itertools.islice(rows, _ROWS_PER_TABLE)):
        heads = [
            output.Column(name, right=all(_is_number(row[index]) for row in part))
            for index, name in enumerate(columns)
        ]
        output.table(heads, ([_show(cell) for cell in row] for row in part), max_cell=most)
        shown += len(part)
    if not shown:
        output.talk(f"no rows; columns: {', '.join(columns)}")


def _to_plain(cell: object) -> object:
    """Return a value as JSON and CSV have it: a blob in hexadecimal, the unknown as text."""
    if cell is None or isinstance(cell, str | int | float):
        return cell
    return cell.hex() if isinstance(cell, bytes | memoryview) else str(cell)


def _show(cell: object) -> str:
    """Return a value as a table has it."""
    from tsx.text import ABSENT, format_exact

    if cell is None:
        return ABSENT
    if isinstance(cell, bytes | memoryview):
        return f"x'{bytes(cell[:16]).hex()}{'…' if len(cell) > 16 else ''}' ({len(cell):,} bytes)"
    return format_exact(cell) if isinstance(cell, float) else str(cell)


def _is_number(cell: object) -> bool:
    """Return whether a cell stands at the right edge of its column."""
    return cell is None or isinstance(cell, int | float)


def _show_schema(*, as_json: bool) -> None:
    """Print what there is to ask for, and how."""
    from registry.description import describe
    from tsx.cli import output

    tables = describe()
    if as_json:
        output.json({"tables": [_to_object(table) for table in tables], "examples": EXAMPLES})
        return
    for table in tables:
        output.data(f"{'view' if table.is_view else 'table'} {table.name}", style="strong")
        for column in table.columns:
            output.pieces([(f"  {column.name:<18}", ""), (column.meaning, "dim")])
        output.data("")
    output.data("Examples", style="strong")
    for line in EXAMPLES:
        output.data(f"  {line}")


def _to_object(table: Any) -> dict[str, Any]:
    """Return a table's words as plain data."""
    columns = [column._asdict() for column in table.columns]
    return {"name": table.name, "view": table.is_view, "columns": columns}
