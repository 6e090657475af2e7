"""jsonl: both forms of a line, the parsed copy, and bad lines named by number."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tsx.data import formats as formats_module
from tsx.data import jsonl as jsonl_module
from tsx.data.formats import open_series
from tsx.data.series import MapPool
from tsx.errors import DataError

pytestmark = pytest.mark.trainer


def open_text(tmp_path, text, name="a/b.jsonl"):
    path = tmp_path / "b.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_series(name, path, MapPool(), cache=tmp_path / "cache")


def read(dataset):
    return [
        [value for chunk in dataset.iter_chunks(series) for value in chunk.tolist()]
        for series in range(dataset.num_series)
    ]


def test_both_forms_blank_lines_and_no_newline_at_the_end(tmp_path):
    text = '[1, 2.5, -3e2]\n\n{"sequence": [4], "id": "x"}\r\n   \n[]\n[5, 6]'
    dataset = open_text(tmp_path, text)
    assert read(dataset) == [[1, 2.5, -300], [4], [], [5, 6]]
    assert dataset.domain == "a"


def test_large_values_keep_their_digits(tmp_path):
    assert read(open_text(tmp_path, "[1700000001, 1700000002.5]")) == [[1700000001, 1700000002.5]]


def test_null_and_nan_are_points_that_are_not_finite(tmp_path):
    text = "[1, null, 3]\n" + json.dumps([1.0, float("nan"), float("-inf")])
    dataset = open_text(tmp_path, text)
    np.testing.assert_array_equal(read(dataset), [[1, np.nan, 3], [1, np.nan, -np.inf]])
    with pytest.raises(DataError, match="series 0 is nan at point 1 of 3"):
        dataset.check_finite()


@pytest.mark.parametrize(
    "bad",
    [
        '{"sequence": 3}',
        '{"values": [1]}',
        '"text"',
        "3",
        "[[1, 2], [3, 4]]",
        '["1"]',
        "[true, false]",
        '[NaN, "1"]',
        "[1, 2",
        "[1, 2] [3]",
        "null",
        "[" * 100_000,
        b"[1, 2, \xff]",
        "[" + "9" * 400 + "]",
        '{"sequence": [NaN, ' + "9" * 400 + "]}",
    ],
)
def test_a_bad_line_is_named_by_number(tmp_path, bad):
    bad = bad if isinstance(bad, bytes) else bad.encode()
    with pytest.raises(DataError, match=r"'a/b.jsonl': line 4 of .*b.jsonl") as caught:
        open_text(tmp_path, b"[1]\n\n[2]\n" + bad + b"\n[3]\n")
    assert len(caught.value.message) < 600
    assert not list((tmp_path / "cache").iterdir())


def test_a_line_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl_module, "_MAX_SERIES_BYTES", 20)
    with pytest.raises(DataError, match=r"line 2 of .* is longer than"):
        open_text(tmp_path, "[1]\n[" + "1, " * 20 + "1]\n")


def test_parsed_once_and_again_when_the_content_changes(tmp_path, monkeypatch):
    first = open_text(tmp_path, "[1, 2]\n")
    parsed = []
    jsonl = formats_module.FORMATS[0]
    counted = replace(jsonl, parse=lambda *a: (parsed.append(a), jsonl.parse(*a))[1])
    monkeypatch.setattr(formats_module, "FORMATS", (counted,))
    again = open_text(tmp_path, "[1, 2]\n")
    assert again.fingerprint == first.fingerprint
    assert not parsed
    changed = open_text(tmp_path, "[1, 3]\n")
    assert read(changed) == [[1, 3]]
    assert changed.fingerprint != first.fingerprint
    assert len(parsed) == 1


def test_damaged_copy_names_the_way_back(tmp_path):
    dataset = open_text(tmp_path, "[1, 2]\n")
    next(dataset.folder.glob("*.bin")).unlink()
    with pytest.raises(DataError, match="is missing") as caught:
        open_text(tmp_path, "[1, 2]\n")
    assert caught.value.next_command == f"rm -r {dataset.folder}"


def test_copy_that_cannot_be_kept(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot keep the parsed copy") as caught:
        open_text(tmp_path, "[1, 2]\n")
    assert "TSX_HOME" in caught.value.next_command
