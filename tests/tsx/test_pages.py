"""A run as lines: its files, its command."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from registry.views import ArtifactRow, FindingRow
from tsx.config import RunConfig, to_plain
from tsx.pages import (
    list_artifact_lines,
    list_change_lines,
    list_config_lines,
    list_environment_lines,
    list_finding_lines,
)


def show(kernels: Any) -> list[str]:
    row = ArtifactRow(
        kind="trace",
        path="profiler/chrome_trace.json",
        step=21,
        size_bytes=2048,
        metadata={"kernels": kernels},
        time=0.0,
    )
    return ["".join(p.text for p in line.left) for line in list_artifact_lines([row])]


def test_the_operations_of_a_trace_stand_below_it() -> None:
    kernel = {"name": "aten::mm", "calls": 61, "total_ms": 2.0109, "share_pct": 34.41}
    head, line = show([kernel])
    assert "profiler/chrome_trace.json" in head
    assert line.split() == ["34.4%", "2.01", "ms", "x61", "aten::mm"]
    assert len(show([kernel] * 50)) == 21


@pytest.mark.parametrize("kernels", [None, "x", 7, [None], [{}], [{"share_pct": "1", "name": 3}]])
def test_what_is_no_table_is_left_out(kernels: Any) -> None:
    assert len(show(kernels)) == 1


def test_names_are_made_inert() -> None:
    (_, line) = show([{"name": "\x1b[31mred\n" * 100, "total_ms": 1.0, "share_pct": 1.0}])
    assert "\x1b" not in line
    assert "\n" not in line
    assert len(line) < 150


def test_a_long_command_is_whole_and_can_be_run_again() -> None:
    words = ["tsx", "train", *(f"--set=a{n}=[1, 2]" for n in range(100)), "it's"]
    (line,) = list_environment_lines({"command": words})
    shown = "".join(piece.text for piece in line.left)
    assert shown.startswith("command ")
    assert shlex.split(shown) == ["command", *words]


def read(config: dict[str, Any]) -> list[list[str]]:
    return [
        "".join(piece.text for piece in line.left).split() for line in list_change_lines(config)
    ]


def test_a_config_of_another_program_is_shown_as_it_is() -> None:
    assert read({"lr": 0.01, "model": {"width": 32}}) == [["lr", "0.01"], ["model.width", "32"]]
    assert read({"train": {"steps": 7, "lr": 1}}) == [["train.steps", "7"], ["train.lr", "1"]]


def test_of_our_own_config_only_changes_are_shown() -> None:
    plain = to_plain(RunConfig())
    assert read(plain) == [["Every", "key", "is", "at", "its", "default."]]
    plain["train"]["steps"] = 7
    assert [words[:2] for words in read(plain)] == [["train.steps", "7"]]


def test_a_programs_config_has_no_empty_section() -> None:
    text = ["".join(piece.text for piece in line.left) for line in list_config_lines({"lr": 0.1})]
    assert [line.split() for line in text] == [["lr", "0.1"]]


def test_a_step_that_was_kept_is_offered_for_a_replay() -> None:
    kept, plain = (
        FindingRow("nan-origin", "error", 3, "", "", "", "", "cause", held, "fix", 1, 0.0)
        for held in ({"dump": "dumps/step-3"}, {})
    )

    def show_hints(run_id: str = "") -> list[str]:
        lines = list_finding_lines([kept, plain], 80, run_id)
        texts = ["".join(piece.text for piece in line.left).strip() for line in lines]
        return [text for text in texts if text.startswith("→")]

    assert show_hints() == ["→ fix", "→ fix"]
    assert show_hints("r1") == ["→ fix", "→ tsx replay r1", "→ fix"]
