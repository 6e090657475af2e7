"""The README's commands are run, and what it names is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tsx.cli.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRANSCRIPT = [line[2:] for line in README.splitlines() if line.startswith("$ tsx")]
DRAWN_UNTIL_QUIT = ("tsx dashboard",)


def run_tsx(line: str, home: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)[1:]
    if words[0] == "run":
        words.append("--smoke")  # the same code, in seconds
    return subprocess.run(
        [sys.executable, "-m", "tsx", *words],
        env={**os.environ, "TSX_HOME": str(home), "NO_COLOR": "1"},
        cwd=home.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_transcript_runs_from_top_to_bottom(tmp_path: Path) -> None:
    assert any(line.startswith("tsx run") for line in TRANSCRIPT)
    for line in TRANSCRIPT:
        if not line.startswith(DRAWN_UNTIL_QUIT):
            done = run_tsx(line, tmp_path / "home")
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.trainer
def test_the_loop_of_the_readme_is_told_what_stands_below_it(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(import torch\n.*?)```", README, re.DOTALL)
    (told,) = re.findall(r"\$ tsx diagnose @last\n(.*?)```", README, re.DOTALL)
    assert find_fault(script, tmp_path) == told
    assert find_fault(script.replace("ids == 0", "ids != 0"), tmp_path) == ""


def find_fault(script: str, folder: Path) -> str:
    """Return what `tsx diagnose` says of a script's run."""
    (folder / "tagger.py").write_text(script)
    environment = {**os.environ, "TSX_HOME": str(folder / "home"), "TSX_QUIET": "1"}
    subprocess.run([sys.executable, "tagger.py"], env=environment, cwd=folder, check=True)
    return run_tsx("tsx diagnose @last", folder / "home").stdout


def test_every_verb_is_in_the_readme_and_every_named_verb_exists() -> None:
    named = set(re.findall(r"`tsx (\w+)", README))
    assert named == {verb.name for verb in VERBS}


def test_every_link_of_every_page_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    missing = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert missing == []


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([\w-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
