"""The script of docs/api.md, which is not ours, is killed: every point is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tsx.cli import main

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
(SCRIPT,) = (
    text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "torch" in text
)


@pytest.mark.trainer
def test_a_killed_script_is_shown_killed_with_every_point(start, read_curve, capsys):
    pytest.importorskip("torch")
    assert SCRIPT.count("\n") <= 35
    process = start(SCRIPT)
    for _ in range(200):
        line = process.stdout.readline()
    process.kill()
    rest = process.stdout.read().split()
    process.wait()
    seen = int((rest or [line])[-1])

    assert main.main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "killed" in out
    assert "first" in out
    curve = read_curve("train/loss", "first")
    assert [step for step, _ in curve] == list(range(1, len(curve) + 1))
    assert len(curve) in (seen, seen + 1)  # a point may be there before its number is printed
    assert read_curve("lr", "first")[-1] == (len(curve), 0.01)


@pytest.mark.parametrize("verb", [["show", "first"], ["metrics", "first"], ["runs", "--json"], []])
def test_every_reader_shows_a_run_without_recipe_and_plan(verb, run_program, capsys):
    done = run_program(
        """
        import tsx
        with tsx.init(name="first") as run:
            run.log({"odd \\x1b[31mkey": 1.0, "h": tsx.histogram([1.0, 2.0])})
        """
    )
    assert done.returncode == 0, done.stderr
    assert main.main(verb) == 0
    out = capsys.readouterr().out
    assert "first" in out or "odd" in out
    assert "\x1b[31m" not in out
