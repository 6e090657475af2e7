"""Finding data sets: names at every depth, globs, hidden names, loops of links."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsx.data.catalog import list_entries, matches
from tsx.data.formats import list_suffixes
from tsx.errors import DataError

pytestmark = pytest.mark.trainer


def plant(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "meta.json").touch()
    return root


def names(root: Path) -> list[str]:
    return [entry.name for entry in list_entries(root)]


def test_a_data_set_has_one_name_from_wherever_it_is_seen(tmp_path):
    root = plant(tmp_path / "corpus", "energy/load", "finance/fx")
    (root / "web").mkdir()
    (root / "web" / "hits.jsonl").touch()
    assert names(root) == ["energy/load", "finance/fx", "web/hits.jsonl"]
    assert names(root / "energy") == ["energy/load"]
    assert names(root / "energy" / "load") == ["energy/load"]
    assert names(root / "web" / "hits.jsonl") == ["web/hits.jsonl"]


def test_relative_path(tmp_path, monkeypatch):
    plant(tmp_path / "corpus", "energy/load")
    monkeypatch.chdir(tmp_path / "corpus" / "energy")
    assert names(Path(".")) == ["energy/load"]
    assert names(Path("../energy/load")) == ["energy/load"]


def test_hidden_and_other_files_are_passed_over(tmp_path):
    root = plant(tmp_path / "corpus", "a/b", ".cache/x/y", "a/.tmp")
    (root / "notes.txt").touch()
    (root / "a" / ".series.npy").touch()
    assert names(root) == ["a/b"]


def test_files_of_every_format_are_data_sets(tmp_path):
    root = plant(tmp_path / "corpus", "a/b")
    files = [f"c/d{suffix}" for suffix in (*list_suffixes(), ".pkl", ".yaml", ".CSV")]
    (root / "c").mkdir()
    for file in files:
        (root / file).touch()
    assert names(root) == sorted(["a/b", *files])
    assert names(root / "c" / "d.CSV") == ["c/d.CSV"]


def test_loops_of_links_end(tmp_path):
    root = plant(tmp_path / "corpus", "a/b")
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "lost").symlink_to(root / "nowhere")
    (root / "lost.jsonl").symlink_to(root / "nowhere.jsonl")
    assert names(root) == ["a/b"]


def test_linked_domain_is_read(tmp_path):
    plant(tmp_path / "elsewhere", "fx")
    root = plant(tmp_path / "corpus", "a/b")
    (root / "finance").symlink_to(tmp_path / "elsewhere")
    assert names(root) == ["a/b", "finance/fx"]


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"no data at .*gone: no such file or folder"):
        list_entries(tmp_path / "gone")
    with pytest.raises(DataError, match="no data at"):
        list_entries(Path("x" * 5000))
    with pytest.raises(DataError, match=r"no data set at .*expected folders of meta.json"):
        list_entries(tmp_path)
    (tmp_path / "table.txt").write_text("a,b")
    with pytest.raises(DataError, match=r"no data set at .*table.txt.*\.csv"):
        list_entries(tmp_path / "table.txt")


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["finance/*"], True),
        (["finance"], True),
        (["fin*"], True),
        (["*/fx_daily"], True),
        (["energy", "finance/fx_*"], True),
        (["fx_daily"], False),
        (["Finance/*"], False),
        (["finance/fx"], False),
        ([], False),
    ],
)
def test_globs_match_name_or_domain(globs, expected):
    assert matches("finance/fx_daily", globs) is expected
