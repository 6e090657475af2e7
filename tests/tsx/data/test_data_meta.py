"""meta.json: what is read, and that one which lies is refused with name and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsx.data import meta as meta_module
from tsx.data.meta import read_meta
from tsx.errors import DataError

pytestmark = pytest.mark.trainer


def good() -> dict[str, Any]:
    return {
        "num_sequences": 2,
        "dtype": "float32",
        "files": {"data-1-of-1.bin": 10},
        "scales": [{"offset": 0, "length": 4}, {"offset": 4, "length": 6}],
    }


def write(tmp_path: Path, meta: Any) -> Path:
    path = tmp_path / "meta.json"
    path.write_text(meta if isinstance(meta, str) else json.dumps(meta))
    return path


def test_arrays_and_order_of_shards(tmp_path):
    raw = good()
    raw["files"] = {f"data-{i}-of-12.bin": i for i in (10, 2, 1, 12, 3, 4, 5, 6, 7, 8, 9, 11)}
    meta = read_meta(write(tmp_path, raw), place="x")
    assert [size for _, size in meta.shards] == list(range(1, 13))
    assert meta.offset_S.tolist() == [0, 4]
    assert meta.length_S.tolist() == [4, 6]
    assert meta.dtype == np.dtype("<f4")
    assert meta.mean_S is None


def test_mean_without_std_is_ignored(tmp_path):
    raw = good()
    raw["scales"][0].update(mean=5.0)
    raw["scales"][1].update(mean=2.0, std=3.0)
    meta = read_meta(write(tmp_path, raw), place="x")
    assert meta.mean_S is not None
    assert meta.std_S is not None
    assert meta.mean_S.tolist() == [0.0, 2.0]
    assert meta.std_S.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("piece", [60, 97, 200, 1 << 20])
def test_pieces_give_what_the_whole_gives(tmp_path, monkeypatch, piece, indent):
    raw = good()
    rng = np.random.default_rng(0)
    raw["scales"] = [
        {"offset": int(rng.integers(0, 5)), "length": int(rng.integers(0, 5))} for _ in range(200)
    ]
    raw["scales"][150].update(mean=1.5, std=2.0)
    raw["num_sequences"] = 200
    monkeypatch.setattr(meta_module, "_CHUNK_BYTES", piece)
    meta = read_meta(write(tmp_path, json.dumps(raw, indent=indent)), place="x")
    assert meta.offset_S.tolist() == [scale["offset"] for scale in raw["scales"]]
    assert meta.length_S.tolist() == [scale["length"] for scale in raw["scales"]]
    assert meta.mean_S is not None
    assert meta.mean_S[149:152].tolist() == [0.0, 1.5, 0.0]


def test_other_keys_and_nested_braces_are_read_over(tmp_path):
    raw = good()
    raw["scales"][0]["note"] = {"a}": [{}, "}, {"]}
    raw["origin"] = "hub"
    meta = read_meta(write(tmp_path, raw), place="x")
    assert meta.length_S.tolist() == [4, 6]


@pytest.mark.parametrize("position", [0, 149, 199])
def test_a_bad_entry_is_named_by_number_and_value(tmp_path, monkeypatch, position):
    raw = good()
    raw["scales"] = [{"offset": 0, "length": 1} for _ in range(200)]
    raw["num_sequences"] = 200
    raw["scales"][position]["offset"] = -3
    monkeypatch.setattr(meta_module, "_CHUNK_BYTES", 500)
    with pytest.raises(DataError, match=rf"scales\[{position}\].offset=-3: expected `int` >= 0"):
        read_meta(write(tmp_path, raw), place="x")


def change(**keys: Any) -> dict[str, Any]:
    return {**good(), **keys}


LIES = {
    "not json": ("{", "no Time-300B meta"),
    "no object": ([1, 2], "no Time-300B meta"),
    "deep": ("[" * 100_000, "no Time-300B meta"),
    "missing key": ({"dtype": "float32"}, "missing required field"),
    "unknown dtype": (change(dtype="object"), "dtype='object'"),
    "dtype of a type": (change(dtype=7), "Expected `str`"),
    "structured dtype": (change(dtype="f4,f4"), "valid: float16"),
    "long dtype": (change(dtype="x" * 10_000), r"dtype='x+\.\.\."),
    "count disagrees": (change(num_sequences=10**12), "num_sequences=1000000000000 but scales"),
    "count negative": (change(num_sequences=-1), "`int` >= 0"),
    "files a list": (change(files=["data-1-of-1.bin"]), "no Time-300B meta"),
    "shard size negative": (change(files={"data-1-of-1.bin": -1}), "`int` >= 0"),
    "shard outside": (change(files={"../data-1-of-1.bin": 10}), "shard name '../data"),
    "shard absolute": (change(files={"/etc/passwd": 10}), "shard name '/etc/passwd'"),
    "shard of more": (change(files={"data-1-of-2.bin": 10}), "lists 1 shards but"),
    "shards with a hole": (
        change(files={"data-1-of-2.bin": 5, "data-3-of-2.bin": 5}),
        "no shard between",
    ),
    "shard twice": (
        change(files={"data-1-of-2.bin": 5, "data-01-of-2.bin": 5}),
        "no shard between",
    ),
    "scales an object": (change(scales={"offset": 0}), "scales"),
    "entry a list": (change(scales=[[0, 4], [4, 6]]), r"scales\[0\]=\[0, 4\]"),
    "entry without length": (change(scales=[{"offset": 0}] * 2), "missing required field"),
    "length a string": (change(scales=[{"offset": 0, "length": "4"}] * 2), "length='4'"),
    "length a fraction": (change(scales=[{"offset": 0, "length": 1.5}] * 2), "length=1.5"),
    "length true": (change(scales=[{"offset": 0, "length": True}] * 2), "length=True"),
    "beyond the shards": (
        change(scales=[{"offset": 0, "length": 4}, {"offset": 4, "length": 7}]),
        r"series 1 \(offset=4, length=7\) reaches beyond the 10 elements",
    ),
    "wraps around": (
        change(scales=[{"offset": 2**62 - 1, "length": 2**62 - 1}] * 2),
        "reaches beyond",
    ),
    "over int64": (change(scales=[{"offset": 2**70, "length": 1}] * 2), r"scales\[0\].offset"),
    "mean a string": (
        change(scales=[{"offset": 0, "length": 1, "mean": "1", "std": 1}] * 2),
        "mean='1'",
    ),
    "nan literal": (
        '{"num_sequences":1,"dtype":"float32","files":{"data-1-of-1.bin":1},'
        '"scales":[{"offset":0,"length":1,"mean":NaN,"std":1}]}',
        "malformed",
    ),
    "comma at the end": (
        '{"num_sequences":1,"dtype":"float32","files":{"data-1-of-1.bin":1},'
        '"scales":[{"offset":0,"length":1},]}',
        "malformed",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_meta_that_lies_is_refused(tmp_path, lie):
    raw, message = LIES[lie]
    with pytest.raises(DataError, match=message) as caught:
        read_meta(write(tmp_path, raw), place="data set 'a/b'")
    assert caught.value.message.startswith("data set 'a/b': ")
    assert len(caught.value.message) < 600


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "meta.json").write_bytes(b'{"dtype": "\xff\xfe"}')
    with pytest.raises(DataError, match="no Time-300B meta"):
        read_meta(tmp_path / "meta.json", place="x")


def test_overlapping_and_empty_sequences_are_fine(tmp_path):
    raw = change(scales=[{"offset": 2, "length": 8}, {"offset": 0, "length": 0}])
    assert read_meta(write(tmp_path, raw), place="x").length_S.tolist() == [8, 0]


def test_no_sequence_at_all(tmp_path):
    meta = read_meta(write(tmp_path, change(num_sequences=0, scales=[])), place="x")
    assert meta.length_S.tolist() == []
    assert meta.mean_S is None
