"""tsx gc: shows, asks, deletes; what is deleted shows in tsx show and tsx resume."""

from __future__ import annotations

import io
import json
import sys

import pytest

from registry.events import Artifact


@pytest.fixture
def folder(record):
    """Record a run with three checkpoints, the second the best, and return its folder."""
    told = []
    for step in (1, 2, 3):
        path = f"checkpoints/step-{step:08d}"
        metadata = {"best": step < 3}
        told.append(Artifact(time=1.0, kind="checkpoint", path=path, step=step, metadata=metadata))
    folder = record("aaaaaaaa", "first", {"train/loss": [1.0] * 3}, events=told)
    for step in (1, 2, 3):
        place = folder / f"checkpoints/step-{step:08d}"
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(b"x" * 2048)
    return folder


def list_steps(folder):
    return sorted(path.name[-1] for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def answer(monkeypatch):
    """Return a function that puts a person with one answer before a terminal."""

    def put(text):
        terminal = io.StringIO(text)
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", terminal)

    return put


@pytest.mark.parametrize("words", [("--dry-run",), (), ("--dry-run", "--yes"), ("--json",)])
def test_nothing_goes_without_a_yes(tsx, folder, monkeypatch, words):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    done = tsx("gc", *words)
    assert done.status == 0
    assert "step-00000001" in done.out
    assert list_steps(folder) == ["1", "2", "3"]
    if not words:
        assert "--yes deletes where nobody can be asked" in done.err


@pytest.mark.parametrize(
    ("text", "left"), [("y\n", "23"), ("n\n", "123"), ("\n", "123"), ("", "123")]
)
def test_a_person_is_asked(tsx, folder, answer, text, left):
    answer(text)
    done = tsx("gc")
    assert done.status == 0
    assert "delete these 1, 2.0 KiB? [y/N]" in done.err
    assert list_steps(folder) == list(left)


def test_yes_deletes_and_says_what(tsx, folder):
    done = tsx("gc", "--yes")
    assert done.status == 0
    assert "neither the best nor the newest" in done.out
    assert "1 deleted, 2.0 KiB freed" in done.err
    assert list_steps(folder) == ["2", "3"]
    shown = tsx("show", "first").out
    (line,) = [line for line in shown.splitlines() if "deleted by tsx gc" in line]
    assert "step-00000001" in line
    assert "nothing to delete" in tsx("gc", "--yes").err


def test_json_says_what_was_and_was_not_deleted(tsx, folder):
    plain = json.loads(tsx("gc", "--json").out)
    assert plain["dry_run"] is True
    assert (plain["size_bytes"], plain["freed_bytes"]) == (2048, 0)
    (item,) = plain["items"]
    assert (item["kind"], item["run"], item["deleted"]) == ("checkpoint", "aaaaaaaa", False)
    plain = json.loads(tsx("gc", "--json", "--yes").out)
    assert (plain["dry_run"], plain["freed_bytes"]) == (False, 2048)
    assert plain["items"][0]["deleted"] is True


def test_what_resists_is_named_and_the_status_says_so(tsx, folder, monkeypatch):
    import shutil

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    done = tsx("gc", "--yes")
    assert done.status == 1
    assert "is kept: Permission denied" in done.err


def test_a_resume_says_that_the_newest_checkpoint_was_deleted(tsx, folder, monkeypatch):
    monkeypatch.setattr(
        "tsx.launch.supervise.Supervisor.resume",
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    assert "deleted by tsx gc" not in tsx("resume", "first").err
    assert tsx("gc", "--yes", "--keep-checkpoints", "0").status == 0
    assert list_steps(folder) == ["2"]
    done = tsx("resume", "first")
    assert "warning: the checkpoint of step 3 was deleted by tsx gc" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--older-than", "soon"), "--older-than 'soon'"),
        (("--older-than", "30"), "--older-than '30'"),
        (("--older-than", "-1d"), "--older-than"),
        (("--keep-checkpoints", "-1"), "--keep-checkpoints"),
    ],
)
def test_flags_that_do_not_hold_are_refused(tsx, folder, words, told):
    done = tsx("gc", "--yes", *words)
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert list_steps(folder) == ["1", "2", "3"]


def test_an_unknown_run_and_an_empty_home(tsx, folder):
    assert tsx("gc", "--yes", "frist").status == 1
    assert list_steps(folder) == ["1", "2", "3"]


def test_no_registry_is_nothing_to_delete(tsx, tmp_path):
    done = tsx("gc", "--yes")
    assert (done.status, done.out) == (0, "")
    assert "nothing to delete" in done.err
    assert not (tmp_path / "tsx-home").exists()


def test_the_rule_is_in_the_help(tsx):
    said = " ".join(tsx("gc", "--help").out.split())
    for part in ("journals, the registry", "best checkpoint", "Nothing outside TSX_HOME"):
        assert part in said
