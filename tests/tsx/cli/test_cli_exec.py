"""`tsx exec`: its command line, what it refuses, and how it names a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.events import Output, RunEnded, RunStarted
from registry.journal import iter_events
from tsx.cli.exec import MAX_CONFIG_BYTES
from tsx.launch.exec_program import find_program, make_environment, name_program


def read_events(home: Path) -> list[Any]:
    (folder,) = (home / "runs").iterdir()
    return [event for event, _ in iter_events(folder / "events.jsonl")]


def test_a_program_is_run_and_recorded(tsx: Callable[..., Any], tmp_path: Path) -> None:
    done = tsx("exec", "--name", "x", "--", "sh", "-c", "echo hi; exit 3")
    events = read_events(tmp_path / "tsx-home")
    assert done.status == 3
    assert [type(event) for event in events] == [RunStarted, Output, RunEnded]
    assert events[1].text == "hi\n"
    shown = tsx("show", "x")
    assert "failed" in shown.out
    assert "the program exited with status 3" in shown.out


def test_flags_behind_the_dashes_are_the_programs(tsx: Callable[..., Any], tmp_path: Path) -> None:
    done = tsx(
        "exec",
        "--",
        "sh",
        "-c",
        'test "$2" = --name && test "$3" = --',
        "--",
        "--debug",
        "--name",
        "--",
    )
    assert done.status == 0
    assert read_events(tmp_path / "tsx-home")[0].name == "sh"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "no program to run"),
        (["--"], 2, "no program to run"),
        (["--", ""], 2, "no program to run"),
        (["--", "no-such-program"], 127, "no program 'no-such-program' on PATH"),
        (["--", "./no-such-program"], 127, "no program './no-such-program' there"),
        (["--", "/"], 126, "/ is a folder"),
        (["--steps", "-1", "--", "true"], 2, "-1"),
        (["--bogus", "--", "true"], 2, "--bogus"),
        (["--config", "absent.json", "--", "true"], 2, "absent.json: No such file"),
    ],
)
def test_what_cannot_be_run_leaves_no_run(
    tsx: Callable[..., Any], tmp_path: Path, words: list[str], status: int, says: str
) -> None:
    done = tsx("exec", *words)
    assert done.status == status
    assert says in done.err
    assert "next: " in done.err
    assert not (tmp_path / "tsx-home").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.json", "{", "Expecting property name"),
        ("c.json", "[1]", "holds no table"),
        ("c.json", "[" * 100_000, "recursion"),
        ("c.toml", "a = ", "Invalid value"),
        ("c.toml", "\udcff", "codec"),
        ("c.json", " " * (MAX_CONFIG_BYTES + 1), "larger than 4 MiB"),
    ],
)
def test_a_config_that_is_none(
    tsx: Callable[..., Any], tmp_path: Path, name: str, content: str, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    done = tsx("exec", "--config", str(path), "--", "true")
    assert done.status == 2
    assert says in done.err
    assert not (tmp_path / "tsx-home").exists()


def test_a_config_may_hold_what_json_cannot(tsx: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("when = 2026-11-20\nlr = nan\n[a.b]\nc = [1, 'x']\nmy_password = 'hunter22'\n")
    assert tsx("exec", "--config", str(path), "--", "true").status == 0
    config = read_events(tmp_path / "tsx-home")[0].config
    assert config["a"]["b"] == {"c": [1, "x"], "my_password": "[redacted]"}
    assert config["when"] == "2026-11-20"


def test_a_registry_that_cannot_be_written_starts_nothing(
    tsx: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "tsx-home").write_text("a file")
    done = tsx("exec", "--", "touch", str(tmp_path / "started"))
    assert done.status == 3
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["./a.out", "data.csv"], "a.out"),
        (["python", "train.py", "--lr", "1"], "train.py"),
        (["/usr/bin/python3.11", "-u", "src/train.py"], "train.py"),
        (["bash", "loop.sh"], "loop.sh"),
        (["bash", "-c", "echo hi"], "bash"),
        (["python", "-m", "http.server"], "python"),
        (["python"], "python"),
    ],
)
def test_a_run_is_named_for_its_script(words: list[str], name: str) -> None:
    assert name_program(words) == name


def test_what_is_set_stays_set() -> None:
    found = make_environment({"PYTHONUNBUFFERED": "", "A": "b"}, "r", Path("/x"))
    assert found == {
        **{"PYTHONUNBUFFERED": "", "A": "b", "TSX_RUN": "r", "TSX_EVENTS": "/x/inbox.jsonl"}
    }


def test_a_program_is_found_as_a_shell_finds_it(tmp_path: Path) -> None:
    assert Path(find_program("sh")).name == "sh"
    path = tmp_path / "run me"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    assert find_program(str(path)) == str(path)
