"""tsx run and tsx resume: what is refused before a process is started."""

from __future__ import annotations

import os
import sqlite3

import pytest

from registry.liveness import RunLock
from tsx.cli import output

BAD_LINES = {
    ("run",): "Missing argument 'recipe'",
    ("run", "santy"): "'sanity'",
    ("run", ""): "no recipe ''",
    ("run", "/nowhere/at/all.toml"): "/nowhere/at/all.toml",
    ("run", "/"): "not a regular file",
    ("run", "sanity", "one-too-many"): "one-too-many",
    ("run", "sanity", "--nope"): "--nope",
    ("run", "sanity", "--set", "model"): "has no '='",
    ("run", "sanity", "--set", "="): "a section and a key",
    ("run", "sanity", "--set", "a.b.c=1"): "'a.b.c'",
    ("run", "sanity", "--set", "nothing.here=1"): "nothing",
    ("run", "sanity", "--set", "model.topk=1"): "did you mean 'top_k'",
    ("run", "sanity", "--set", "model.top_k=9"): "top_k=9 exceeds num_experts=2",
    ("run", "sanity", "--set", "model.num_heads=7"): "is not divisible by num_heads=7",
    ("run", "sanity", "--set", "train.steps=-1"): "steps=-1",
    ("run", "sanity", "--set", "train.steps=-5"): "steps=-5",
    ("run", "sanity", "--set", "train.steps=many"): "steps='many'",
    ("run", "sanity", "--set", "optim.lr=nan"): "expected a finite number",
    ("run", "sanity", "--device", "gpu"): "valid: auto, cpu, cuda, mps",
    ("run", "sanity", "--seed", "-1"): "--seed",
    ("run", "sanity", "--seed", "9" * 30): "beyond 64 bits",
    ("run", "sanity", "--seeds", "0"): "--seeds",
    ("run", "sanity", "--seeds", "1001"): "--seeds",
    ("resume",): "Missing argument 'RUN'",
    ("resume", "aaaaaaaa", "--set", "train.stps=3"): "did you mean 'steps'",
    ("resume", "aaaaaaaa", "--set", "train.steps=-1"): "steps=-1",
    ("resume", "aaaaaaaa", "--set", "train"): "has no '='",
    ("resume", "aaaaaaaa", "--device", "gpu"): "valid: auto, cpu, cuda, mps",
}


@pytest.fixture
def no_process(monkeypatch):
    """Make sure that nothing is started."""
    from tsx.launch import process

    def refuse(*arguments):
        pytest.fail("a training process was started")

    monkeypatch.setattr(process, "_spawn", refuse)


@pytest.fixture
def one(record):
    """Record a run that is over."""
    return record("aaaaaaaa", "first", {"train/loss": [3.0, 2.0]})


@pytest.fixture
def rehearsed(monkeypatch):
    """Return the plans that a dry run would prepare."""
    from tsx.cli import run

    plans = []
    monkeypatch.setattr(run, "_rehearse", lambda asked, home: plans.extend(asked) or 0)
    return plans


def list_files(folder):
    """Return name and content of everything below a folder, SQLite's index aside."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


@pytest.mark.parametrize("words", BAD_LINES, ids=" ".join)
def test_a_bad_line_names_the_value_and_what_to_type(tsx, one, no_process, tmp_path, words):
    before = list_files(tmp_path)
    done = tsx(*words)
    assert (done.status, done.out) == (2, "")
    assert BAD_LINES[words] in done.err
    assert "None:" not in done.err
    assert done.err.splitlines()[-1].startswith("next: ")
    assert list_files(tmp_path) == before


@pytest.mark.parametrize("flags", [(), ("--smoke",), ("--detach",), ("--dry-run",)])
@pytest.mark.parametrize(
    ("name", "parts"), [("full-train", "train"), ("full-train-ood", "train,finance")]
)
def test_a_run_on_time300b_is_refused_with_its_download(
    tsx, no_process, tmp_path, name, parts, flags
):
    done = tsx("run", name, *flags)
    assert (done.status, done.out) == (2, "")
    assert f"not on disk at {tmp_path / 'tsx-home' / 'data' / 'time300b'}" in done.err
    assert f"next: tsx data download --partition-set {parts};" in done.err
    assert not (tmp_path / "tsx-home").exists()


def test_data_of_ones_own_takes_the_place_of_time300b(tsx, rehearsed, tmp_path):
    done = tsx("run", "full-train", "--dry-run", "--data", str(tmp_path))
    assert done.status == 0
    data = rehearsed[0].config.data
    assert (data.path, data.source) == (str(tmp_path), "auto")


def test_an_unknown_run_cannot_be_resumed(tsx, one, no_process):
    done = tsx("resume", "frist")
    assert (done.status, done.out) == (1, "")
    assert done.err == "error: no run 'frist'; nearest: first\nnext: tsx runs\n"


def test_a_run_whose_lock_cannot_be_taken_is_not_resumed(tsx, one, no_process):
    (one / "lock").mkdir()
    done = tsx("resume", "first", "--set", "train.steps=9")
    assert (done.status, done.out) == (3, "")
    assert str(one) in done.err
    assert "cannot be locked" in done.err


def test_a_run_that_is_going_is_not_resumed(tsx, one, no_process):
    lock = RunLock.acquire(one)
    done = tsx("resume", "first", "--set", "train.steps=9")
    lock.release()
    assert (done.status, done.out) == (2, "")
    assert "still going" in done.err


def test_of_a_repeated_setting_the_last_wins_and_it_is_said(tsx, rehearsed):
    line = ("run", "sanity", "--dry-run", "--set", "train.steps=5", "--set", "train.steps=9")
    assert "train.steps is given more than once" in tsx(*line).err
    assert rehearsed[0].config.train.steps == 9


@pytest.mark.parametrize("flags", [(), ("--detach",)])
def test_a_home_that_is_a_file_is_an_error_before_anything_starts(
    tsx, no_process, tmp_path, monkeypatch, flags
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("TSX_HOME", str(tmp_path / "file"))
    done = tsx("run", "sanity", *flags)
    assert (done.status, done.out) == (3, "")
    assert str(tmp_path / "file") in done.err
    assert done.err.splitlines()[-1].startswith("next: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_locked_registry_is_waited_for_then_its_holder_named(
    tsx, one, no_process, tmp_path, monkeypatch
):
    from tsx.launch import supervise

    recorder = supervise.Recorder
    monkeypatch.setattr(supervise, "Recorder", lambda *a: recorder(*a, timeout_s=0.1))
    holder = sqlite3.connect(tmp_path / "tsx-home" / "registry.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    before = list_files(tmp_path)
    try:
        done = tsx("run", "sanity")
    finally:
        holder.close()
    assert (done.status, done.out) == (3, "")
    assert "is locked by" in done.err
    assert "nothing was moved or changed" in done.err
    assert list_files(tmp_path) == before


def test_a_folder_that_is_gone(tsx, no_process, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = tsx("run", "sanity")
    assert done.status == 2
    assert "no longer exists" in done.err


def test_hostile_names_are_inert_in_errors(tsx, no_process):
    done = tsx("run", "\x1b[31m[bold]evil[/bold]\u202e\n" + "x" * 100_000)
    assert done.status == 2
    assert "\x1b" not in done.err
    assert "\u202e" not in done.err
    assert max(map(len, done.err.splitlines())) < output.MAX_LINE + 100


def test_a_path_that_looks_like_a_value_is_still_a_path(tsx, rehearsed):
    assert tsx("run", "sanity", "--dry-run", "--data", "1").status == 0
    assert rehearsed[0].config.data.path == os.path.abspath("1")


def test_seeds_and_sweeps_are_named_apart_and_share_a_parent(tsx, rehearsed):
    line = ("run", "sanity", "--dry-run", "--seed", "7", "--seeds", "3", "--name", "mine")
    assert tsx(*line).status == 0
    assert [plan.config.train.seed for plan in rehearsed] == [7, 8, 9]
    assert len({plan.run_id for plan in rehearsed}) == len({plan.name for plan in rehearsed}) == 3
    assert all(plan.name.startswith("mine") for plan in rehearsed)
    assert len({plan.parent for plan in rehearsed}) == 1
    assert rehearsed[0].parent
