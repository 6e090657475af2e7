"""parquet, arrow and feather: a list column holds a series in each row, else columns are series.

Where a table has a column of lists, its other columns are passed over. Where it has none, every
column of numbers is a series; a first column of dates or text, and what pandas calls its index, is
left out. Any other type is an error that names the column. An arrow file is measured by its own
messages before any of it is unpacked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tsx.data.arrow_messages import check_arrow
from tsx.data.layout import SeriesWriter
from tsx.data.meta import clip
from tsx.data.parsed import PIECE_POINTS, SourceFile
from tsx.data.table import TableWriter
from tsx.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_PREFERRED = ("sequence", "target")  # the list column that is taken where there are several
_MAX_LIST_ROWS = 128  # read at a time, however little room they seem to take
_GROUP_COLUMNS = 256


class _Columns(NamedTuple):
    """Which columns of a table are series."""

    numbers: list[int]
    lists: int | None  # the one whose rows are series


def parse_parquet(source: SourceFile, writer: SeriesWriter) -> Sequence[str]:
    """Write a parquet file's series and return their names, where columns are series.

    Raises:
        DataError: no parquet file, a damaged one, or a type that is no number.
    """
    from pyarrow import parquet

    with _opening(source):
        file = parquet.ParquetFile(source.path, buffer_size=1 << 20, pre_buffer=False)
    with file:
        with _opening(source):
            schema, names = file.schema_arrow, file.schema_arrow.names
        columns = _choose(schema, source)
        if columns.lists is not None:
            rows = _find_list_rows(file)
            batches = _iter_columns(file, names, [columns.lists], rows, source)
            _write(_Columns([], 0), batches, source, writer)
            return ()
        # Every column that is open keeps buffers of its own, so they are read by groups.
        for first in range(0, len(columns.numbers), _GROUP_COLUMNS):
            group = columns.numbers[first : first + _GROUP_COLUMNS]
            batches = _iter_columns(file, names, group, PIECE_POINTS // len(group), source)
            _write(_Columns(list(range(len(group))), None), batches, source, writer)
            source.report((first + len(group)) / len(columns.numbers))
    return [names[number] for number in columns.numbers]


def _iter_columns(
    file: Any, names: Sequence[str], wanted: list[int], rows: int, source: SourceFile
) -> Iterator[pa.RecordBatch]:
    """Yield batches of some columns of a parquet file, at most `rows` at a time.

    Raises:
        DataError: a damaged file, or one with fewer rows than its footer says.
    """
    batches = file.iter_batches(
        batch_size=rows, columns=[names[number] for number in wanted], use_threads=False
    )
    # A name may stand for several columns: all of them are read, in the table's order.
    read = {names[number] for number in wanted}
    order = [number for number, name in enumerate(names) if name in read]
    places = [order.index(number) for number in wanted]
    done, promised = 0, file.metadata.num_rows
    with _opening(source):
        for batch in batches:
            done += batch.num_rows
            yield batch.select(places)
    if done != promised:
        raise source.fault(f"has {done} rows where its footer says {promised}")


def parse_arrow(source: SourceFile, writer: SeriesWriter) -> Sequence[str]:
    """Write the series of an arrow file or stream, as `parse_parquet` does.

    Raises:
        DataError: neither, a damaged or truncated one, or a type that is no number.
    """
    import pyarrow as pa
    from pyarrow import ipc

    with _opening(source):
        file = pa.memory_map(str(source.path))
    with file:
        with _opening(source):
            is_file = check_arrow(file, source)
            file.seek(0)
            reader = ipc.open_file(file) if is_file else ipc.open_stream(file)
            names = reader.schema.names
        columns = _choose(reader.schema, source)
        batches = (
            (reader.get_batch(number) for number in range(reader.num_record_batches))
            if is_file
            else iter(reader)
        )
        _write(columns, _validate(_iter_safely(batches, source), source), source, writer)
    return [names[number] for number in columns.numbers]


@contextmanager
def _opening(source: SourceFile) -> Iterator[None]:
    """Turn what the library says of a file that it cannot read into a DataError."""
    import pyarrow as pa

    if not source.size:
        raise source.fault("is empty")
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, ValueError, KeyError) as error:
        raise source.fault(f"cannot be read: {clip(str(error) or type(error).__name__)}") from None


def _iter_safely(batches: Iterable[Any], source: SourceFile) -> Iterator[pa.RecordBatch]:
    """Yield batches; what the library says of a damaged one becomes a DataError.

    Here and not around the writing, whose OSError is about another file.
    """
    with _opening(source):
        yield from batches


def _validate(batches: Iterator[pa.RecordBatch], source: SourceFile) -> Iterator[pa.RecordBatch]:
    """Pass batches on whose lengths and offsets are within their buffers."""
    for batch in batches:
        with _opening(source):
            batch.validate(full=True)
        yield batch


def _find_list_rows(file: Any) -> int:
    """Return rows of lists to read at a time, so that a batch is about a piece.

    What a list holds is told by the sizes of row groups alone: asking pyarrow for a column's own
    metadata ends the process where these are damaged.
    """
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    row_bytes = max(
        (group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1
    )
    return max(1, min(_MAX_LIST_ROWS, PIECE_POINTS * 8 // max(row_bytes, 1)))


def _choose(schema: pa.Schema, source: SourceFile) -> _Columns:
    """Say which columns are series.

    Raises:
        DataError: a column that is neither series nor index, by name and type.
    """
    lists = [number for number, field in enumerate(schema) if _is_list_of_numbers(field.type)]
    index = _find_index(schema)
    for number, field in enumerate(schema):
        if number in lists or (not lists and (number in index or _is_number(field.type))):
            continue
        if _is_nested(field.type) or not lists:
            raise _refuse(source, number, field)
    if len(lists) > 1:
        preferred = [number for number in lists if schema.names[number] in _PREFERRED]
        if len(preferred) != 1:
            names = clip(", ".join(repr(schema.names[number]) for number in lists))
            raise source.fault(
                f"has several columns of lists ({names}) and none that is named "
                f"{' or '.join(map(repr, _PREFERRED))}",
                next_command="keep one of them, or name it 'sequence'",
            )
        lists = preferred
    numbers = [] if lists else [number for number in range(len(schema)) if number not in index]
    if not lists and not numbers:
        raise source.fault("has no column of numbers")
    return _Columns(numbers, lists[0] if lists else None)


def _find_index(schema: pa.Schema) -> set[int]:
    """Return the columns that are pandas' index, and the first where it is of dates or text."""
    import pyarrow as pa

    index = set()
    if len(schema) and _is_label(schema.field(0).type):
        index.add(0)
    try:
        named = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
        names = {name for name in named if isinstance(name, str)}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return index
    for number, field in enumerate(schema):
        if field.name in names and not pa.types.is_nested(field.type):
            index.add(number)
    return index


def _is_label(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_temporal(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    import pyarrow as pa

    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return is_list and _is_number(kind.value_type)


def _is_nested(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType))


def _refuse(source: SourceFile, number: int, field: pa.Field) -> DataError:
    """Return the error for a column that is no series."""
    kind = "nested type" if _is_nested(field.type) else "type"
    return source.fault(
        f"has column {number + 1} {clip(repr(field.name))} of {kind} {clip(field.type)}; expected "
        "numbers, or one list of numbers in each row (a first column may be dates or text)",
        next_command="drop that column, or write its numbers as columns or as a list column",
    )


def _write(
    columns: _Columns,
    batches: Iterator[pa.RecordBatch],
    source: SourceFile,
    writer: SeriesWriter,
) -> None:
    """Write the rows' lists, or the columns, of all batches; what they unpack to is bounded."""
    if columns.lists is not None:
        for batch in batches:
            _write_lists(batch.column(columns.lists), source, writer)
        return
    with TableWriter(writer) as table:
        for batch in batches:
            source.spend(batch.num_rows * len(columns.numbers) * 8)
            table.append([_to_numbers(batch.column(number)) for number in columns.numbers])
        if not table.finish():
            raise source.fault("has columns and no rows")


def _write_lists(column: Any, source: SourceFile, writer: SeriesWriter) -> None:
    """Write each row's list as a series, a null row as an empty one."""
    import pyarrow.compute as pc

    values = _to_numbers(column.flatten())
    source.spend(values.size * 8)
    length_S = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    start = 0
    for length in length_S.tolist():
        writer.append(values[start : start + length])
        start += length


def _to_numbers(column: pa.Array) -> npt.NDArray[Any]:
    """Return numbers as they are, nulls as NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False))
