"""tsx du."""

from __future__ import annotations

import json
import os

import pytest


@pytest.fixture
def home(record, tmp_path):
    """Record two runs with files of every kind."""
    first = record("aaaaaaaa", "first", {"train/loss": [1.0] * 3})
    record("bbbbbbbb", "se\x1b[31mcond", {"train/loss": [1.0]}, time=1_700_000_100.0)
    sizes = {
        "checkpoints/step-00000001/model": 50_000,
        "profiler/chrome_trace.json": 2_000,
        "dumps/step-00000004/weights.safetensors": 5_000,
        "stdout.log": 300,
        "notes/mine.txt": 40,
    }
    for name, size in sizes.items():
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_bytes(b"x" * size)
    (tmp_path / "tsx-home" / "cache" / "series").mkdir(parents=True)
    (tmp_path / "tsx-home" / "cache" / "series" / "a").write_bytes(b"x" * 700)
    (tmp_path / "tsx-home" / "data").mkdir()
    (tmp_path / "tsx-home" / "data" / "b").write_bytes(b"x" * 800)
    return tmp_path / "tsx-home"


def measure(tsx, *words):
    """Return the JSON of one call."""
    done = tsx("du", "--json", *words)
    assert done.status == 0, done.err
    return json.loads(done.out)


def test_every_kind_of_file_has_its_bytes(tsx, home):
    plain = measure(tsx)
    first, second = plain["runs"]
    journal = (home / "runs" / "aaaaaaaa" / "events.jsonl").stat().st_size
    expected = {"journal": journal, "logs": 300, "checkpoints": 50_000, "traces": 2_000}
    expected["dumps"] = 5_000
    assert {name: first[name] for name in expected} == expected
    assert first["other"] >= 40
    assert first["id"] == "aaaaaaaa"
    assert second["total"] < first["total"]
    parts = [size for kind, size in first.items() if kind not in ("id", "name", "total")]
    assert first["total"] == sum(parts)
    assert (plain["home"]["cache"], plain["home"]["data"]) == (700, 800)


def test_the_database_is_shared_by_points(tsx, home):
    plain = measure(tsx)
    first, second = plain["runs"]
    assert first["points"] == pytest.approx(3 * second["points"], abs=5)
    assert first["points"] + second["points"] <= plain["home"]["registry"]
    names = ("runs", "registry", "cache", "data", "other")
    assert plain["home"]["total"] == sum(plain["home"][name] for name in names)


def test_links_are_not_followed_and_hard_links_count_once(tsx, home, tmp_path):
    before = measure(tsx)["home"]["total"]
    big = tmp_path / "outside"
    big.write_bytes(b"x" * 1_000_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "f").write_bytes(b"x" * 1_000_000)
    (home / "runs" / "aaaaaaaa" / "link").symlink_to(big)
    (home / "runs" / "linked").symlink_to(tmp_path / "folder")
    (home / "cache" / "linked").symlink_to(tmp_path / "folder")
    (home / "cache" / "loop").symlink_to(home / "cache")
    os.link(home / "cache" / "series" / "a", home / "cache" / "again")
    after = measure(tsx)
    assert after["home"]["total"] == pytest.approx(before, abs=100_000)
    assert after["home"]["cache"] == 700
    assert {run["id"] for run in after["runs"]} == {"aaaaaaaa", "bbbbbbbb"}


def test_chosen_runs_come_alone(tsx, home):
    plain = measure(tsx, "first", "aaaa")
    assert [run["id"] for run in plain["runs"]] == ["aaaaaaaa"]
    assert "home" not in plain


def test_people_see_a_table_and_the_home(tsx, home):
    done = tsx("du")
    assert done.status == 0
    assert done.out.index("aaaaaaaa") < done.out.index("bbbbbbbb")
    assert "48.8 KiB" in done.out
    assert str(home) in done.out
    assert "␛[31m" in done.out
    assert "\x1b" not in done.out


def test_files_that_vanish_meanwhile_are_no_fault(tsx, home, monkeypatch):
    scandir = os.scandir

    def scan_and_delete(path):
        entries = scandir(path)
        if str(path).endswith("notes"):
            (home / "runs" / "aaaaaaaa" / "notes" / "mine.txt").unlink()
        return entries

    monkeypatch.setattr(os, "scandir", scan_and_delete)
    assert measure(tsx, "first")["runs"][0]["logs"] == 300


def test_a_run_whose_folder_is_gone_has_its_points(tsx, home, tmp_path):
    (home / "runs" / "aaaaaaaa").rename(tmp_path / "away")
    (run,) = measure(tsx, "first")["runs"]
    assert run["journal"] == 0
    assert run["total"] == run["points"] > 0


def test_an_empty_home(tsx):
    assert measure(tsx)["runs"] == []
    assert "No runs yet." in tsx("du").err


def test_an_unknown_run_is_named(tsx, home):
    done = tsx("du", "frist")
    assert (done.status, done.out) == (1, "")
    assert "nearest: first" in done.err


def test_runs_that_lie_elsewhere_are_not_followed(tsx, home, tmp_path):
    (home / "runs").rename(tmp_path / "big-disk")
    (home / "runs").symlink_to(tmp_path / "big-disk")
    plain = measure(tsx)
    assert plain["home"]["runs"] == 0
    assert all(run["total"] == run["points"] for run in plain["runs"])
