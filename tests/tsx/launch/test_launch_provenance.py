"""Where a run comes from: git, versions, host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tsx.launch import provenance
from tsx.launch.provenance import collect


def git(place: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(
        ["git", "-C", str(place), *identity, *arguments], check=True, capture_output=True
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-b", "trunk")
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    return tmp_path


def test_a_clean_repository_gives_commit_and_branch_and_no_diff(repository: Path) -> None:
    found = collect(repository)
    assert len(found.git_commit) == 40
    assert found.git_branch == "trunk"
    assert found.git_diff == ""


def test_a_dirty_repository_gives_the_diff_and_names_untracked_files(repository: Path) -> None:
    (repository / "code.py").write_text("a = 2\n")
    (repository / "new.py").write_text("b = 1\n")
    diff = collect(repository).git_diff
    assert "-a = 1" in diff
    assert "+a = 2" in diff
    assert "untracked: new.py" in diff
    assert "b = 1" not in diff


def test_binaries_are_named_but_not_recorded(repository: Path) -> None:
    (repository / "blob").write_bytes(bytes(range(256)) * 100)
    git(repository, "add", "blob")
    diff = collect(repository).git_diff
    assert "Binary files" in diff
    assert len(diff) < 1000


def test_a_huge_diff_is_capped_and_says_so(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "DIFF_CAP_CHARS", 500)
    (repository / "code.py").write_text("line\n" * 5000)
    diff = collect(repository).git_diff
    assert len(diff) < 600
    assert "more characters left out" in diff


def test_outside_a_repository_there_is_no_commit_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = collect(tmp_path)
    assert (found.git_commit, found.git_branch, found.git_diff) == ("", "", "")
    assert found.host
    assert {"python", "tsx", "torch", "numpy"} <= set(found.versions)
