"""csv: every column is a series, the first line names them.

The first column is an index and left out when it has no name or its first cell is no number (dates
or text). Any other cell that is no number is an error with its column, its row and its value. An
empty cell is a point that is not finite. Rows are counted as the reader counts them: the header is
row 1, empty lines are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tsx.data.layout import SeriesWriter
from tsx.data.meta import Floats, clip
from tsx.data.parsed import SourceFile
from tsx.data.table import TableWriter
from tsx.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_BYTES = 1 << 20  # of text at a time; a row must fit
_WIDE_COLUMNS = 1000
# What stands for a missing value, beside an empty cell.
_MISSING = ("", "NaN", "nan", "-NaN", "-nan", "NA", "N/A", "n/a", "#N/A", "null", "NULL", "None")


def parse_csv(source: SourceFile, writer: SeriesWriter) -> Sequence[str]:
    """Write every column of numbers as one series and return the columns' names.

    Raises:
        DataError: not csv, a row of another length, a cell that is no number, or no rows.
    """
    names = _read_names(source)
    skipped: int | None = None
    row = 2
    with TableWriter(writer) as table:
        for batch in _iter_batches(source, names):
            if not batch.num_rows:
                continue
            if row == 2:
                skipped = int(_has_index(names[0], batch.column(0)))
                if skipped == len(names):
                    raise source.fault(f"has no column of numbers, only {clip(repr(names[0]))}")
            table.append(_read_block(batch, names, skipped or 0, source, row))
            row += batch.num_rows
        if skipped is None:
            raise source.fault("holds a header and no rows")
        table.finish()
    return names[skipped:]


def _read_names(source: SourceFile) -> list[str]:
    """Return the header's cells."""
    with source.open() as file:
        head = file.read(4096)
    if not head.strip():
        raise source.fault("is empty")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise source.fault(
            "is UTF-16", next_command="iconv -f UTF-16 -t UTF-8 table.csv > table-utf8.csv"
        )
    if not head.count(b"\n") and len(head) < 4096:
        raise source.fault("holds a header and no rows")
    with _open(source) as reader:
        names: list[str] = reader.schema.names
    if len(names) == 1 and ";" in names[0]:
        raise source.fault(
            "is separated by ';', not by commas",
            next_command="rewrite it: sed 's/,/./g; s/;/,/g' table.csv > table-commas.csv",
        )
    if len(names) == 1 and "\t" in names[0]:
        raise source.fault(
            "is separated by tabs, not by commas",
            next_command="rewrite it: tr '\\t' ',' < table.csv > table-commas.csv",
        )
    if all(_is_number(name) for name in names):
        raise source.fault(
            f"has numbers where the names of its columns should be: {clip(', '.join(names))}",
            next_command="put a line of names first, one for each column",
        )
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextmanager
def _open(source: SourceFile, names: Sequence[str] = ()) -> Iterator[Any]:
    """Give pyarrow's reader of blocks, all cells as text; without names, for the header alone."""
    import pyarrow as pa
    from pyarrow import csv

    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "error"

    parsing = csv.ParseOptions(
        invalid_row_handler=note if names else lambda row: "skip",
        # In a table of one column an empty line is a missing value.
        ignore_empty_lines=len(names) != 1,
    )
    converting = csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        strings_can_be_null=True,
        null_values=list(_MISSING),
    )
    # A block costs something for each of its columns.
    block_bytes = _BLOCK_BYTES * (4 if len(names) > _WIDE_COLUMNS else 1)
    reading = csv.ReadOptions(use_threads=False, block_size=block_bytes)
    try:
        with source.open() as file, csv.open_csv(file, reading, parsing, converting) as reader:
            yield reader
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if ragged:
            row = ragged[0]
            raise source.fault(
                f"has {row.actual_columns} cells in row {row.number} (the header is row 1, with "
                f"{row.expected_columns}): {clip(row.text)}"
            ) from None
        raise _explain(source, error) from None


def _iter_batches(source: SourceFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield blocks of rows, every cell text or null."""
    with _open(source, names) as reader:
        yield from reader


def _explain(source: SourceFile, error: Exception) -> DataError:
    """Return the error for what pyarrow's reader refuses."""
    text = str(error)
    if "straddling" in text:
        return source.fault(f"has a row of more than {_BLOCK_BYTES >> 20} MiB")
    return source.fault(f"is no csv: {clip(text.removeprefix('CSV parse error: '))}")


def _has_index(name: str, column: pa.StringArray) -> bool:
    """Say whether a first column is an index: nameless, or of dates or text."""
    present = column.drop_null()
    return not name.strip() or (len(present) > 0 and not _is_number(present[0].as_py()))


def _read_block(
    batch: pa.RecordBatch, names: Sequence[str], skipped: int, source: SourceFile, row: int
) -> Floats:
    """Return the columns of a block but the first `skipped`, [K, N], missing cells as NaN.

    Raises:
        DataError: the first cell that is no number; `row` is that of the block's first.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # One cast over all cells: a thousand narrow columns would cost a thousand calls.
    cells = pa.concat_arrays(batch.columns[skipped:])
    try:
        numbers = pc.cast(cells, pa.float64())
    except pa.ArrowInvalid:
        trimmed = pc.utf8_trim_whitespace(cells)
        missing = pc.is_in(trimmed, pa.array(_MISSING))
        cells = pc.if_else(missing, None, trimmed)
        at = _find_text(cells)
        if at is not None:
            column, at_row = divmod(at, batch.num_rows)
            column += skipped
            raise source.fault(
                f"column {column + 1} {clip(repr(names[column]))} holds "
                f"{clip(repr(cells[at].as_py()))} in row {row + at_row} (the header is row 1), "
                "which is no number; only a first column may hold dates or text",
                next_command="leave the column out, or mark missing values by empty cells",
            ) from None
        numbers = pc.cast(cells, pa.float64())
    values_KN: Floats = numbers.to_numpy(zero_copy_only=False).reshape(-1, batch.num_rows)
    return values_KN


def _find_text(column: pa.StringArray) -> int | None:
    """Return where the first cell is that is no number: halves are tried, not every cell."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first, size = 0, len(column)
    while size:
        half = (size + 1) // 2
        try:
            pc.cast(column.slice(first, half), pa.float64())
        except pa.ArrowInvalid:
            if size == 1:
                return first
            size = half
        else:
            first, size = first + half, size - half
    return None
