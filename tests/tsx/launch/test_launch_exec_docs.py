"""docs/events.md: each of its programs is run as it stands there, each of its lines is read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from registry.events import Artifact, Finding, Heartbeat, Histogram, Metrics
from registry.inbox import decode_inbox_line
from registry.journal import iter_events
from tsx.launch.metric_lines import MetricLines

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "events.md").read_text(encoding="utf-8")


def get_blocks(language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def make_program(language: str, folder: Path) -> list[str]:
    """Write the page's program of a language down and return the command that runs it."""
    (code,) = get_blocks(language)
    source = folder / f"program.{language}"
    source.write_text(code)
    if language != "c":
        return {
            "bash": ["bash", str(source)],
            "python": [sys.executable, "-I", str(source)],
            "awk": ["awk", "-f", str(source)],
        }[language]
    program = folder / "program"
    subprocess.run(["cc", str(source), "-o", str(program)], check=True)
    return [str(program)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "key"),
    [("bash", "loss"), ("python", "train/loss"), ("awk", "loss"), ("c", "loss")],
)
def test_every_program_of_the_page_is_recorded(language: str, key: str, tmp_path: Path) -> None:
    needed = {"bash": "bc", "c": "cc"}.get(language, "true")
    if not shutil.which(needed) or not shutil.which({"awk": "awk"}.get(language, "true")):
        pytest.skip(f"no {needed} here")
    words = make_program(language, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tsx", "exec", "--", *words],
        cwd=Path(__file__).parents[3],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "tsx-home" / "runs").iterdir()
    points = [event for event, _ in iter_events(folder / "events.jsonl") if type(event) is Metrics]
    assert [point.step for point in points] == list(range(1, 31))
    assert points[3].values[key] == pytest.approx(0.25, rel=1e-4)


def test_every_line_of_the_page_is_read_as_it_says() -> None:
    lines = [line for block in get_blocks("json") for line in block.splitlines()]
    events = [event for line in lines for event in decode_inbox_line(line.encode(), 1, now=5.0)]
    kinds = [Metrics, Finding, Histogram, Artifact, Heartbeat]
    assert [type(event) for event in events] == kinds
    assert isinstance(events[0], Metrics)
    assert events[0].values == {"loss": 0.5, "val/loss": 0.6}


def test_every_metric_line_becomes_what_the_page_says() -> None:
    printed, read = get_blocks("text")
    found = []
    for line in printed.splitlines():
        metric = MetricLines().find(line)
        assert metric is not None, line
        values = " ".join(f"{key}={value:g}" for key, value in sorted(metric.values.items()))
        found.append(f"step {metric.step}: {values}")
    assert found == read.splitlines()
