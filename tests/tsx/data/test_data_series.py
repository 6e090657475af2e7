"""Shards: series across them, every dtype, what is missing or cut off, maps and fingerprints."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from tsx.data import series as series_module
from tsx.data.layout import SeriesWriter
from tsx.data.series import MapPool, open_dataset
from tsx.errors import DataError

pytestmark = pytest.mark.trainer

SERIES = [list(range(7)), [10.0, 11.0], [], list(range(100, 113)), [5.0]]


def read(dataset, series):
    chunks = list(dataset.iter_chunks(series))
    return np.concatenate(chunks).tolist() if chunks else []


@pytest.mark.parametrize("shards", [1, 2, 3, 9, 23, 40])
def test_series_cross_shards(tmp_path, make_set, shards):
    folder = make_set(tmp_path / "a" / "b", SERIES, shards=shards)
    dataset = open_dataset("a/b", folder, MapPool())
    assert [read(dataset, index) for index in range(5)] == SERIES
    part = np.zeros(4)
    dataset.fill(part, 3, 6)
    assert part.tolist() == [106, 107, 108, 109]


def test_shards_of_size_zero_are_stepped_over(tmp_path):
    (tmp_path / "data-1-of-4.bin").touch()
    np.arange(3, dtype="<f4").tofile(tmp_path / "data-2-of-4.bin")
    (tmp_path / "data-3-of-4.bin").touch()
    np.arange(3, 5, dtype="<f4").tofile(tmp_path / "data-4-of-4.bin")
    files = {f"data-{i}-of-4.bin": size for i, size in ((1, 0), (2, 3), (3, 0), (4, 2))}
    meta = {"num_sequences": 1, "dtype": "float32", "files": files}
    meta["scales"] = [{"offset": 0, "length": 5}]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert read(open_dataset("a/b", tmp_path, MapPool()), 0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint64"]
)
def test_every_dtype(tmp_path, make_set, dtype):
    folder = make_set(tmp_path / "a" / "b", [[1, 2, 3], [100, 101]], shards=2, dtype=dtype)
    dataset = open_dataset("a/b", folder, MapPool())
    dataset.check_finite()
    assert [read(dataset, 0), read(dataset, 1)] == [[1, 2, 3], [100, 101]]


def test_mean_and_std_are_undone(tmp_path, make_set):
    scales = [{"mean": 10.0, "std": 2.0}, {}]
    folder = make_set(tmp_path / "a" / "b", [[-1, 0, 1], [3, 4]], scales=scales)
    dataset = open_dataset("a/b", folder, MapPool())
    assert [read(dataset, 0), read(dataset, 1)] == [[8, 10, 12], [3, 4]]


def test_long_series_come_in_pieces(tmp_path, make_set, monkeypatch):
    monkeypatch.setattr(series_module, "_CHUNK_POINTS", 4)
    folder = make_set(tmp_path / "a" / "b", SERIES, shards=3)
    chunks = list(open_dataset("a/b", folder, MapPool()).iter_chunks(3))
    assert [len(chunk) for chunk in chunks] == [4, 4, 4, 1]
    assert np.concatenate(chunks).tolist() == SERIES[3]


def test_missing_shard(tmp_path, make_set):
    folder = make_set(tmp_path / "a" / "b", SERIES, shards=3)
    (folder / "data-2-of-3.bin").unlink()
    with pytest.raises(DataError, match=r"'a/b': shard .*data-2-of-3.bin is missing"):
        open_dataset("a/b", folder, MapPool())


def test_shard_is_a_folder(tmp_path, make_set):
    folder = make_set(tmp_path / "a" / "b", SERIES)
    (folder / "data-1-of-1.bin").unlink()
    (folder / "data-1-of-1.bin").mkdir()
    with pytest.raises(DataError, match="is not a file"):
        open_dataset("a/b", folder, MapPool())


@pytest.mark.parametrize(("change", "fault"), [(-1, "truncated: 91"), (4, "longer than its meta")])
def test_shard_of_another_size(tmp_path, make_set, change, fault):
    folder = make_set(tmp_path / "a" / "b", SERIES)
    os.truncate(folder / "data-1-of-1.bin", 23 * 4 + change)
    with pytest.raises(DataError, match=rf"{fault}.*expected 92"):
        open_dataset("a/b", folder, MapPool())


def test_dtype_that_does_not_fit_the_size(tmp_path, make_set):
    folder = make_set(tmp_path / "a" / "b", SERIES)
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace("float32", "float64"))
    with pytest.raises(DataError, match=r"truncated: 92 bytes, expected 184"):
        open_dataset("a/b", folder, MapPool())


def test_claimed_sizes_allocate_nothing(tmp_path, make_set):
    folder = make_set(tmp_path / "a" / "b", SERIES)
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace(": 23}", f": {2**61}}}"))
    with pytest.raises(DataError, match="truncated"):
        open_dataset("a/b", folder, MapPool())


def test_shard_that_shrinks_while_open(tmp_path, make_set):
    folder = make_set(tmp_path / "a" / "b", SERIES)
    dataset = open_dataset("a/b", folder, MapPool())
    os.truncate(folder / "data-1-of-1.bin", 8)
    with pytest.raises(DataError, match="changed while it was in use: 8 bytes, expected 92"):
        read(dataset, 0)


def test_shard_that_goes_while_open(tmp_path, make_set):
    folder = make_set(tmp_path / "a" / "b", SERIES)
    dataset = open_dataset("a/b", folder, MapPool())
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="cannot map shard"):
        read(dataset, 0)


def test_maps_stay_bounded(tmp_path, make_set):
    folder = make_set(tmp_path / "a" / "b", SERIES, shards=23)
    pool = MapPool(capacity=4)
    dataset = open_dataset("a/b", folder, pool)
    assert len(pool) == 0
    assert [read(dataset, index) for index in range(5)] == SERIES
    assert len(pool) == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_is_named(tmp_path, make_set, monkeypatch, bad):
    monkeypatch.setattr(series_module, "_CHUNK_POINTS", 5)
    series = [list(one) for one in SERIES]
    series[3][9] = bad
    folder = make_set(tmp_path / "a" / "b", series, shards=2)
    with pytest.raises(DataError, match=f"'a/b': series 3 is {bad} at point 9 of 13") as caught:
        open_dataset("a/b", folder, MapPool()).check_finite()
    assert "--allow-nonfinite" in caught.value.next_command


def test_nonfinite_between_series_is_nobodys(tmp_path, make_set):
    folder = make_set(tmp_path / "a" / "b", [[1, 2], [float("nan")], [3]])
    meta = json.loads((folder / "meta.json").read_text())
    del meta["scales"][1]
    meta["num_sequences"] = 2
    (folder / "meta.json").write_text(json.dumps(meta))
    dataset = open_dataset("a/b", folder, MapPool())
    dataset.check_finite()
    assert read(dataset, 1) == [3]


def test_fingerprint_follows_content_not_place(tmp_path, make_set):
    one = make_set(tmp_path / "a" / "one", SERIES, shards=2)
    copy = shutil.copytree(one, tmp_path / "elsewhere" / "two")
    other_values = make_set(tmp_path / "a" / "three", [[9, *SERIES[0][1:]], *SERIES[1:]], shards=2)
    other_shards = make_set(tmp_path / "a" / "four", SERIES, shards=3)
    prints = [
        open_dataset("x/y", folder, MapPool()).fingerprint
        for folder in (one, copy, other_values, other_shards)
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert len(prints[0]) == 16


def test_links_to_shards_are_followed(tmp_path, make_set):
    """The Hub's cache keeps files as links to blobs."""
    folder = make_set(tmp_path / "a" / "b", SERIES)
    blob = tmp_path / "blob"
    (folder / "data-1-of-1.bin").rename(blob)
    (folder / "data-1-of-1.bin").symlink_to(blob)
    assert read(open_dataset("a/b", folder, MapPool()), 0) == SERIES[0]


@pytest.mark.parametrize("points_per_shard", [1, 4, 23, 24, 1000])
def test_writer_is_read_back(tmp_path, points_per_shard):
    with SeriesWriter(tmp_path, dtype="float64", points_per_shard=points_per_shard) as writer:
        for series in SERIES:
            writer.append(np.array(series))
        writer.append(np.array([-1.0, 1.0]), mean=3.0, std=2.0)
        writer.finish()
    dataset = open_dataset("a/b", tmp_path, MapPool())
    assert [read(dataset, index) for index in range(6)] == [*SERIES, [1.0, 5.0]]
    assert len(list(tmp_path.glob("data-*.bin"))) == max(1, -(-25 // points_per_shard))
    assert not list(tmp_path.glob("*.part"))
