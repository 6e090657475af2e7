"""The table of formats: refusals, mixed folders, and the page that shows it."""

from __future__ import annotations

import gzip
import io
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tsx.config import DataConfig
from tsx.data.corpus import open_corpus
from tsx.data.formats import REFUSED, list_suffixes, make_table
from tsx.errors import DataError

pytestmark = pytest.mark.trainer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"


def test_the_page_shows_the_table():
    text = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- formats: make_table of tsx/data/formats.py -->\n", "<!-- end of formats -->"
    assert text.partition(begin)[2].partition(end)[0].splitlines() == make_table()


@pytest.mark.parametrize("suffix", REFUSED)
def test_formats_that_run_code_are_refused_with_a_way_out(open_file, suffix):
    with pytest.raises(DataError, match=r"code|build") as caught:
        open_file(f"a{suffix}", b"\x80\x04.")
    assert caught.value.next_command.endswith(f"a{suffix}")


def test_the_way_out_of_a_pickle_works(open_file, tmp_path, read, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with pytest.raises(DataError):
        open_file("a.pkl", pickle.dumps(Bomb()))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(DataError) as caught:
        open_file("it's.pkl", pickle.dumps([[1.0, 2.0], [3.0]]))
    command = shlex.split(caught.value.next_command.partition(": ")[2])
    assert command[0] == "python"
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert read(open_file("b.npz", Path("series.npz").read_bytes())) == [[1, 2], [3]]


def test_the_way_out_of_pickled_objects_works(open_file, tmp_path, read, monkeypatch):
    file = io.BytesIO()
    np.save(file, np.array([[1.0, 2.0], [3.0]], object), allow_pickle=True)
    with pytest.raises(DataError) as caught:
        open_file("a.npy", file.getvalue())
    command = shlex.split(caught.value.next_command.partition(": ")[2])
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert read(open_file("b.npz", Path("series.npz").read_bytes())) == [[1, 2], [3]]


def write_mixed(root, make_set):
    """Write the same two series in every format."""
    pair = np.stack([np.sin(np.arange(60.0)), np.cos(np.arange(60.0))])
    lines = [str(row.tolist()) for row in pair]
    table = pa.table({"a": pair[0], "b": pair[1]})
    rows = "".join(f"{a},{b}\n" for a, b in pair.T.tolist())
    npy, npz, arrow = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, pair)
    np.savez(npz, pair)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    columns = io.BytesIO()
    parquet.write_table(table, columns)
    contents = {
        ".jsonl": "\n".join(lines).encode(),
        ".json": f"[{','.join(lines)}]".encode(),
        ".npy": npy.getvalue(),
        ".npy.gz": gzip.compress(npy.getvalue()),
        ".npz": npz.getvalue(),
        ".csv": f"a,b\n{rows}".encode(),
        ".parquet": columns.getvalue(),
        ".arrow": arrow.getvalue(),
        ".feather": arrow.getvalue(),
    }
    for text in (".jsonl", ".json", ".csv"):
        contents[f"{text}.gz"] = gzip.compress(contents[text])
    make_set(root / "mixed" / "set", pair, dtype="float64")
    for suffix, content in contents.items():
        (root / "mixed" / f"series{suffix}").write_bytes(content)
    return contents


def test_a_folder_of_everything(tmp_path, make_set):
    root = tmp_path / "root"
    contents = write_mixed(root, make_set)
    assert set(contents) == set(list_suffixes())
    config = DataConfig(path=str(root), context_length=16, stride=16, val_split=0.0)
    corpus = open_corpus(config, home=tmp_path / "home")
    assert corpus.train.num_series == 2 * (len(contents) + 1)
    batch = corpus.train.get_batch(np.arange(len(corpus.train)))
    per_set = len(corpus.train) // (len(contents) + 1)
    first = batch.input_BC[:per_set]
    assert np.array_equal(batch.input_BC, np.tile(first, (len(contents) + 1, 1)))
    assert set(corpus.fingerprints["train"]) >= {"mixed/set", "mixed/series.csv"}


def test_a_refused_file_in_a_folder_is_told_and_can_be_left_out(tmp_path, make_set):
    root = tmp_path / "root"
    write_mixed(root, make_set)
    (root / "mixed" / "old.pkl").write_bytes(b"")
    config = DataConfig(path=str(root), context_length=16)
    with pytest.raises(DataError, match=r"'mixed/old.pkl': .*is a pickle"):
        open_corpus(config, home=tmp_path / "home")
    config = DataConfig(path=str(root), context_length=16, exclude=("*.pkl",))
    assert open_corpus(config, home=tmp_path / "home").train.num_series > 0


def test_a_named_series_is_named_in_the_error(tmp_path):
    (tmp_path / "a.csv").write_text("day,load\n2020-01-01,1\n2020-01-02,\n2020-01-03,3\n")
    config = DataConfig(path=str(tmp_path / "a.csv"), context_length=2)
    with pytest.raises(DataError, match="series 0 'load' is nan at point 1 of 3"):
        open_corpus(config, home=tmp_path / "home")
