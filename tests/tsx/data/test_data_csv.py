"""csv: columns are series, the index is found, cells that are no number are named."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tsx.data import delimited as delimited_module
from tsx.data import parsed as parsed_module
from tsx.errors import DataError

pytestmark = pytest.mark.trainer

PLAIN = "a,b\n1,4\n2,5.5\n3,-6e2\n"
SERIES = [[1, 2, 3], [4, 5.5, -600]]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\n\n"),
        '"a","b"\n"1", 4 \n 2,"5.5"\n3 , -6e2\n',
        "date,a,b\n2016-07-01 00:00:00,1,4\n2016-07-02,2,5.5\n,3,-6e2\n",
        ",a,b\n0,1,4\n1,2,5.5\n2,3,-6e2\n",
        'city,a,b\n"Rome, Italy",1,4\n"O""Hara",2,5.5\nx,3,-6e2\n',
        "a,a\n1,4\n2,5.5\n3,-6e2\n",
    ],
)
def test_columns_are_series(open_file, read, text):
    assert read(open_file("a.csv", text)) == SERIES


def test_packed_and_in_capitals(open_file, read):
    assert read(open_file("a.csv.gz", gzip.compress(PLAIN.encode()))) == SERIES
    assert read(open_file("A.CSV", PLAIN)) == SERIES


def test_many_small_blocks_give_the_same(open_file, read, monkeypatch):
    monkeypatch.setattr(delimited_module, "_BLOCK_BYTES", 64)
    rows = [(i, i * 0.5, -i) for i in range(500)]
    text = "day,x,y,z\n" + "".join(f"2020-01-01,{a},{b},{c}\n" for a, b, c in rows)
    assert read(open_file("a.csv", text)) == [list(column) for column in zip(*rows, strict=True)]


def test_missing_cells_are_points_that_are_not_finite(open_file, read):
    dataset = open_file("a.csv", "a,b\n1,\nNaN,inf\n null ,2\n-inf,NA\n")
    nan, inf = np.nan, np.inf
    np.testing.assert_array_equal(read(dataset), [[1, nan, nan, -inf], [nan, inf, 2, nan]])
    with pytest.raises(DataError, match="series 0 'a' is nan at point 1 of 4"):
        dataset.check_finite()


def test_an_empty_line_of_one_column_is_a_missing_cell(open_file, read):
    np.testing.assert_array_equal(read(open_file("a.csv", "a\n1\n\n3\n")), [[1, np.nan, 3]])


def test_integers_beyond_float64_are_the_nearest(open_file, read):
    assert read(open_file("a.csv", "a\n9007199254740993\n")) == [[9007199254740992.0]]


def test_a_first_column_of_numbers_is_a_series(open_file, read):
    assert read(open_file("a.csv", "year,a\n2001,1\n2002,2\n")) == [[2001, 2002], [1, 2]]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b", "a header and no rows"),
        ("a,b\n", "a header and no rows"),
        ("a,b\n1,2\n3,x\n", r"column 2 'b' holds 'x' in row 3 \(the header is row 1\)"),
        ("a,b\n1,2\nx,3\n", "column 1 'a' holds 'x' in row 3"),
        ("d,a,c\nx,1,y\n", "column 3 'c' holds 'y' in row 2"),
        ("d,a,d2\n2020-01-01,1,2020-01-02\n", "column 3 'd2' holds '2020-01-02' in row 2"),
        ("a,b\n1,True\n", "column 2 'b' holds 'True' in row 2"),
        ("a,b\n1,0x10\n", "column 2 'b' holds '0x10' in row 2"),
        ("a,b\n1,\x1b[31mred\n", r"column 2 'b' holds '\\x1b\[31mred' in row 2"),
        ("a,b\n1,2\n\n1,2,3\n", "3 cells in row 3 .*with 2"),
        ("a,b\n1\n", r"1 cells in row 2 .*with 2\): 1"),
        ("name\nx\ny\n", "no column of numbers, only 'name'"),
        ("1,2\n3,4\n", "numbers where the names of its columns should be: 1, 2"),
        ("a;b\n1;2\n", "separated by ';'"),
        ("a\tb\n1\t2\n", "separated by tabs"),
        (b"\xff\xfea\0,\0b\0", "UTF-16"),
        (b"a,b\n1,\xff\n", "is no csv: .*UTF8"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(open_file, text, fault):
    with pytest.raises(DataError, match=fault) as caught:
        open_file("a.csv", text)
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("bad", [0, 1, 2, 511, 512, 998, 999])
def test_the_first_bad_cell_is_found_in_every_block(open_file, monkeypatch, bad):
    monkeypatch.setattr(delimited_module, "_BLOCK_BYTES", 1000)
    cells = ["a,b", *(f"{i},x" if i >= bad else f"{i}, {i}" for i in range(1000))]
    with pytest.raises(DataError, match=f"holds 'x' in row {bad + 2} ") as caught:
        open_file("a.csv", "\n".join(cells))
    assert "only a first column" in caught.value.message


def test_a_row_longer_than_a_block(open_file, monkeypatch):
    monkeypatch.setattr(delimited_module, "_BLOCK_BYTES", 1 << 20)
    with pytest.raises(DataError, match="a row of more than 1 MiB"):
        open_file("a.csv", "a,b\n" + "1" * (3 << 20) + ",2\n")


def test_a_small_file_that_unpacks_to_too_much(open_file, monkeypatch):
    monkeypatch.setattr(parsed_module, "MAX_UNPACKED_BYTES", 1 << 16)
    content = gzip.compress(b"a\n" + b"0\n" * (1 << 20))
    with pytest.raises(DataError, match="unpacks to more than"):
        open_file("a.csv.gz", content)


def test_the_real_table(real_corpus, open_file, read):
    table = real_corpus.parent / "ETTh1.csv"
    dataset = open_file("ETTh1.csv", table.read_bytes())
    assert (dataset.num_series, set(dataset.length_S.tolist())) == (7, {17420})
    assert dataset.label(6) == "series 6 'OT'"
    assert read(dataset)[6][0] == 30.5310001373291
