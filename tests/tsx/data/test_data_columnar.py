"""parquet, arrow and feather: columns or lists, types by name, damaged and lying files."""

from __future__ import annotations

import datetime
import decimal
import io
import struct

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from tsx.data import columnar as columnar_module
from tsx.data import parsed as parsed_module
from tsx.errors import DataError

pytestmark = pytest.mark.trainer

DAYS = [datetime.date(2020, 1, day) for day in (1, 2, 3)]
NAN = float("nan")


def to_parquet(table, **keys):
    file = io.BytesIO()
    parquet.write_table(table, file, **keys)
    return file.getvalue()


def to_feather(table, **keys):
    file = io.BytesIO()
    feather.write_feather(table, file, **keys)
    return file.getvalue()


def to_stream(table, **keys):
    file = io.BytesIO()
    with ipc.new_stream(file, table.schema, **keys) as writer:
        writer.write_table(table, max_chunksize=2)
    return file.getvalue()


FORMS = {
    "a.parquet": to_parquet,
    "small.parquet": lambda table: to_parquet(table, row_group_size=2, compression="zstd"),
    "a.feather": to_feather,
    "a.arrow": to_stream,
}


@pytest.fixture(params=FORMS)
def open_table(request, open_file):
    """Return a function that writes a table in one of the forms and opens it."""
    return lambda table: open_file(request.param, FORMS[request.param](table))


def test_columns_are_series(open_table, read):
    table = pa.table(
        {
            "day": DAYS,
            "a": pa.array([1, None, 3], pa.int64()),
            "b": pa.array([0.5, NAN, -2], pa.float32()),
            "c": pa.array([1, 2, 255], pa.uint8()),
            "d": pa.array(np.array([1, 2, 3], np.float16)),
            "e": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-3.25")]),
        }
    )
    dataset = open_table(table)
    assert [dataset.label(number) for number in (0, 4)] == ["series 0 'a'", "series 4 'e'"]
    expected = [[1, NAN, 3], [0.5, NAN, -2], [1, 2, 255], [1, 2, 3], [1.5, NAN, -3.25]]
    np.testing.assert_array_equal(read(dataset), expected)


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_rows_of_a_list_column_are_series(open_table, read, kind):
    lists = pa.array([[1.0, 2.5], [], None, [3.0, None]], kind(pa.float64()))
    table = pa.table({"id": ["a", "b", "c", "d"], "start": [1, 2, 3, 4], "values": lists})
    np.testing.assert_equal(read(open_table(table)), [[1, 2.5], [], [], [3, NAN]])


def test_lists_of_one_size(open_table, read):
    table = pa.table({"x": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32(), 2))})
    assert read(open_table(table)) == [[1, 2], [3, 4], [5, 6]]


def test_of_several_lists_one_is_named(open_table, read):
    table = pa.table({"past": [[1, 2]], "target": [[3, 4]]})
    assert read(open_table(table)) == [[3, 4]]
    with pytest.raises(DataError, match="several columns of lists"):
        open_table(table.rename_columns(["past", "future"]))


def test_a_slice_and_many_batches(open_table, read, monkeypatch):
    monkeypatch.setattr(columnar_module, "_MAX_LIST_ROWS", 3)
    monkeypatch.setattr(columnar_module, "PIECE_POINTS", 6)
    monkeypatch.setattr(columnar_module, "_GROUP_COLUMNS", 2)
    lists = [[float(value) for value in range(number % 4)] for number in range(50)]
    table = pa.table({"x": lists}).slice(7, 40)
    assert read(open_table(table)) == lists[7:47]
    columns = {name: list(range(first, first + 50)) for first, name in enumerate("abcde")}
    expected = [column[7:47] for column in columns.values()]
    assert read(open_table(pa.table(columns).slice(7, 40))) == expected


def test_columns_of_one_name_are_all_read(open_table, read):
    table = pa.Table.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"])
    assert read(open_table(table)) == [[1, 2], [3, 4]]


def test_the_index_of_pandas_is_left_out_wherever_it_stands(open_table, read):
    table = pa.table({"a": [1, 2], "day": DAYS[:2]})
    table = table.replace_schema_metadata({"pandas": '{"index_columns": ["day"]}'})
    assert read(open_table(table)) == [[1, 2]]
    broken = table.drop_columns(["day"]).replace_schema_metadata({"pandas": "[1"})
    assert read(open_table(broken)) == [[1, 2]]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([[[1]], [[2]]]), "nested type list<"),
        (pa.array([{"x": 1}, {"x": 2}]), "nested type struct<x: int64>"),
        (pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())), "nested type map<"),
        (pa.array([["a"], ["b"]]), "nested type list<"),
        (pa.array(["a", "b"]), "type string"),
        (pa.array(["a", "b"]).dictionary_encode(), "type (dictionary<|string)"),
        (pa.array([True, False]), "type bool"),
        (pa.array(DAYS[:2]), "type date32"),
        (pa.array([b"a", b"b"]), "type binary"),
    ],
)
def test_a_type_that_is_no_number_is_refused_by_name(open_table, column, kind):
    table = pa.table({"day": DAYS[:2], "x": [1, 2], "odd\x1b": column})
    with pytest.raises(DataError, match=rf"column 3 'odd\\x1b' of {kind}"):
        open_table(table)


def test_a_nested_type_beside_a_list_is_refused_too(open_table):
    table = pa.table({"x": [[1]], "odd": [{"a": 1}]})
    with pytest.raises(DataError, match="column 2 'odd' of nested type struct"):
        open_table(table)


def test_nothing_in_it(open_table):
    with pytest.raises(DataError, match="has no column of numbers"):
        open_table(pa.table({"day": DAYS}))
    with pytest.raises(DataError, match="columns and no rows"):
        open_table(pa.table({"a": pa.array([], pa.float64())}))


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_a_file_that_is_something_else(open_file, name):
    with pytest.raises(DataError, match="is empty"):
        open_file(name, b"")
    with pytest.raises(DataError, match=r"cannot be read|is no arrow file"):
        open_file(name, b"a,b\n1,2\n" * 10)


@pytest.mark.parametrize("name", FORMS)
def test_a_file_cut_short_anywhere(open_file, name):
    table = pa.table({"a": np.arange(20.0), "b": np.arange(20)})
    content = FORMS[name](table)
    for size in range(1, len(content), 29):
        with pytest.raises(DataError):
            open_file(name, content[:size])


def test_a_stream_cut_between_two_messages(open_file):
    content = to_stream(pa.table({"a": np.arange(4.0)}))
    with pytest.raises(DataError, match="truncated arrow stream: its end mark is missing"):
        open_file("a.arrow", content[:-8])


def test_feather_of_the_first_version(open_file):
    with pytest.raises(DataError, match="Feather version 1"):
        open_file("a.feather", b"FEA1" + b"\0" * 20)


@pytest.mark.parametrize("name", ["a.feather", "a.arrow", "a.parquet"])
def test_a_small_file_that_unpacks_to_too_much(open_file, monkeypatch, name):
    monkeypatch.setattr(parsed_module, "MAX_UNPACKED_BYTES", 1 << 16)
    table = pa.table({"a": np.zeros(1 << 18)})
    zstd = ipc.IpcWriteOptions(compression="zstd")
    content = {
        "a.feather": lambda: to_feather(table, compression="zstd"),
        "a.arrow": lambda: to_stream_at_once(table, zstd),
        "a.parquet": lambda: to_parquet(table),
    }[name]()
    with pytest.raises(DataError, match="unpacks to more than"):
        open_file(name, content)


def to_stream_at_once(table, options):
    file = io.BytesIO()
    with ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table)
    return file.getvalue()


def test_a_packed_buffer_that_claims_a_terabyte_is_given_no_room(open_file, monkeypatch):
    table = pa.table({"a": np.zeros(1000)})
    content = to_stream_at_once(table, ipc.IpcWriteOptions(compression="zstd"))
    honest = struct.pack("<q", 8000)
    assert content.count(honest) == 1
    lying = content.replace(honest, struct.pack("<q", 1 << 40))
    monkeypatch.setattr(columnar_module, "_write", lambda *a: pytest.fail("was unpacked"))
    with pytest.raises(DataError, match="unpacks to more than 256 MiB"):
        open_file("a.arrow", lying)


def test_lengths_beyond_the_buffers_are_refused(open_file):
    content = to_stream_at_once(pa.table({"a": np.arange(1000.0)}), ipc.IpcWriteOptions())
    rows = struct.pack("<q", 1000)
    assert content.count(rows) >= 1
    with pytest.raises(DataError, match="cannot be read"):
        open_file("a.arrow", content.replace(rows, struct.pack("<q", 1 << 33)))


def test_flipped_bytes_never_crash(open_file, read):
    table = pa.table({"x": [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]] * 5})
    for name in ("a.arrow", "a.feather", "a.parquet"):
        content = FORMS[name](table)
        for at in range(0, len(content), 23):
            flipped = content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]
            try:
                read(open_file(name, flipped))
            except DataError:
                continue
