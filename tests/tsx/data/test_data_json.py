"""json: one list of series, read in pieces, bad elements named by number."""

from __future__ import annotations

import json

import pytest

from tsx.data import jsonl as jsonl_module
from tsx.errors import DataError

pytestmark = pytest.mark.trainer


def test_both_forms_in_one_list(open_file, read):
    text = '\ufeff [ [1, 2.5],\n{"id": "a]\\"}[", "sequence": [-3e2], "x": {"y": []}} , [] ] \n'
    assert read(open_file("a.json", text)) == [[1, 2.5], [-300], []]


def test_an_empty_list_holds_no_series(open_file):
    assert open_file("a.json", " [ ] ").num_series == 0


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_pieces_of_any_size_give_the_same(open_file, read, monkeypatch, piece):
    monkeypatch.setattr(jsonl_module, "PIECE_BYTES", piece)
    series = [[1.5, None, -2], {"sequence": [3], "name": 'a "quoted\\" ], {'}, [], [float("inf")]]
    values = read(open_file("a.json", json.dumps(series)))
    assert repr(values) == "[[1.5, nan, -2.0], [3.0], [], [inf]]"


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_a_long_list_is_read_piece_by_piece(open_file, read, monkeypatch, form):
    monkeypatch.setattr(jsonl_module, "PIECE_BYTES", 10)
    text = "[" + ", ".join(map(str, range(100))) + " ]"
    wrap = "[{}]" if form == "json" else " {} \n"
    assert read(open_file(f"a.{form}", wrap.format(text))) == [list(range(100))]
    for bad in ("1,, 2", "1, ", ", 1", "1, [2]", '1, "2, 3"', "1, x"):
        long = f"[{text[1:-1]}, {bad}, {text[1:-1]}]".replace(f"{bad}, 0", bad)
        with pytest.raises(DataError, match=r"(element 0|line 1) .*is not"):
            open_file(f"a.{form}", wrap.format(f"[{text[1:-1]}, {bad}]"))
        with pytest.raises(DataError, match=r"(element 0|line 1) .*is not"):
            open_file(f"a.{form}", wrap.format(long))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("[1, 2, 3]", r"element 0 of .*a.json is 1; expected a list of series"),
        ('{"sequence": [1]}', "is no list of series: it begins with {"),
        ("1, 2", "is no list of series: it begins with 1"),
        ("]", "is no list of series: it begins with ]"),
        ("text", "ends without a list"),
        ("[[1], [2]", "ends in the middle of element 1"),
        ("[[1], [2", "ends in the middle of element 1"),
        ("[[1], , [2]]", "element 1 .*is empty: a comma without a series"),
        ("[[1],]", "element 1 .*is empty: a comma without a series"),
        ("[[1]] [[2]]", "goes on after the end of its list"),
        ("[[1], [true]]", "element 1 .*is not a series"),
        ('[[1], ["2"]]', "element 1 .*is not a series"),
        ("[[1], [[2]]]", "element 1 .*is not a series"),
        ("[[1], [2}]", "element 1"),
        ('[[1], {"values": [2]}]', "element 1 .*is not a series"),
        ("[" * 100_000, "ends in the middle of element 0"),
        ("[[" + "9" * 400 + "]]", "element 0 .*umber (out of range|beyond float64)"),
    ],
)
def test_a_bad_file_is_named_by_element(open_file, text, fault):
    with pytest.raises(DataError, match=f"'files/a.json': .*{fault}") as caught:
        open_file("a.json", text)
    assert len(caught.value.message) < 600


def test_one_series_too_long(open_file, monkeypatch):
    monkeypatch.setattr(jsonl_module, "_MAX_SERIES_BYTES", 20)
    with pytest.raises(DataError, match=r"element 1 .*is longer than"):
        open_file("a.json", "[[1], [" + "1, " * 20)


def test_a_byte_order_mark_before_the_first_line(open_file, read):
    assert read(open_file("a.jsonl", "\ufeff[1, 2]\r\n[3]\r\n")) == [[1, 2], [3]]


def test_the_same_text_is_another_thing_under_another_name(open_file, read):
    assert read(open_file("a.jsonl", "[]")) == [[]]
    assert read(open_file("a.json", "[]")) == []
