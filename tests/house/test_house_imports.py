"""Laziness as a tested property: what an entry point must not pay for, it never imports.

Each entry point runs in a process where the forbidden libraries are replaced by files that note
the attempt (with the line that made it) and fail.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from registry.connection import find_url
from registry.events import Metrics, RunEnded, RunStarted, Status
from registry.store import Recorder
from tsx.cli.verbs import VERBS

HEAVY = ("torch", "textual", "sqlalchemy", "numpy", "alembic", "pyarrow", "huggingface_hub")
READERS = tuple(name for name in HEAVY if name not in ("sqlalchemy", "alembic"))
SCREENS = ("textual", "sqlalchemy", "alembic", "typer", "rich")

POISON = """
import os, traceback
with open(os.environ["POISON_LOG"], "a") as log:
    log.write({name!r} + " imported by\\n" + "".join(traceback.format_stack(limit=40)[:-1]))
raise ImportError("poisoned: {name}")
"""


@pytest.fixture
def poisoned(tmp_path, root):
    """Return a function that runs Python with libraries poisoned, and checks that none was met."""

    def run(arguments, forbidden, statuses=(0,)):
        folder = tmp_path / "poison"
        folder.mkdir()
        for name in forbidden:
            (folder / f"{name}.py").write_text(POISON.format(name=name))
        log = tmp_path / "imported.log"
        log.touch()
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(folder), str(root)]),
                "POISON_LOG": str(log),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert log.read_text() == ""
        assert done.returncode in statuses, done.stderr
        return done

    return run


@pytest.fixture
def runs(tmp_path):
    """Record two short runs in this test's home."""
    home = tmp_path / "tsx-home"
    for number, run_id in enumerate(("aaaaaaaa", "bbbbbbbb")):
        folder = home / "runs" / run_id
        folder.mkdir(parents=True)
        recorder = Recorder(folder, find_url(home))
        recorder.emit(RunStarted(time=1.0, run_id=run_id, name=f"run-{number}", steps=2))
        for step in (1, 2):
            values = {"train/loss": 1.0 / step, "val/loss": 2.0 / step}
            recorder.emit(Metrics(time=1.0 + step, step=step, values=values))
        recorder.emit(RunEnded(time=4.0, status=Status.COMPLETED, step=2))
        recorder.close()
    return ("aaaaaaaa", "bbbbbbbb")


def test_the_poison_works(poisoned):
    with pytest.raises(AssertionError, match="numpy imported by"):
        poisoned(["-c", "try:\n import numpy\nexcept ImportError: pass"], ["numpy"])


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--version",
        "recipes",
        "recipes --json",
        "recipes show sanity",
        "recipes show sanity --smoke --json",
        "recipes validate sanity",
        "env --no-device",
        *(f"{verb.name} --help" for verb in VERBS),
    ],
)
def test_light_commands_import_nothing_heavy(poisoned, line):
    done = poisoned(["-m", "tsx", *line.split()], HEAVY)
    assert done.stdout


@pytest.mark.parametrize("line", ["", "runs", "runs --json"])
@pytest.mark.parametrize("some", [False, True])
def test_reading_never_imports_torch(poisoned, request, line, some):
    if some:
        request.getfixturevalue("runs")
    done = poisoned(["-m", "tsx", *line.split()], READERS)
    assert ("aaaaaaaa" in done.stdout) is some


@pytest.mark.parametrize(
    "line",
    [
        "show aaaaaaaa",
        "show bbbbbbbb --json",
        "metrics aaaaaaaa train/loss --csv",
        "compare aaaaaaaa bbbbbbbb",
        "compare aaaaaaaa bbbbbbbb --json",
    ],
)
def test_reading_a_run_never_imports_torch(poisoned, runs, line):
    done = poisoned(["-m", "tsx", *line.split()], READERS)
    assert done.stdout


@pytest.mark.parametrize("module", ["tsx", "tsx.config", "tsx.errors", "registry.events"])
def test_the_ground_floor_is_light(poisoned, module):
    poisoned(["-c", f"import {module}"], HEAVY)


@pytest.mark.parametrize("module", ["recipes.loader", "registry.views", "registry.errors"])
def test_standard_library_is_enough_for(poisoned, module):
    poisoned(["-c", f"import {module}"], (*HEAVY, "msgspec", "rich", "typer", "platformdirs"))


@pytest.mark.parametrize("module", ["tsx.dashboard.app", "tsx.dashboard.poller"])
def test_the_dashboard_never_imports_torch(poisoned, module):
    forbidden = [name for name in READERS if name != "textual"]
    poisoned(["-c", f"import {module}"], forbidden)


@pytest.mark.trainer
@pytest.mark.parametrize("module", ["tsx.trainer.loop", "tsx.model.forecaster"])
def test_the_trainer_knows_no_database_and_no_screen(poisoned, module):
    poisoned(["-c", f"import {module}"], SCREENS)


def test_the_data_side_needs_no_torch(poisoned):
    poisoned(["-c", "import tsx.data.corpus, tsx.data.stream"], ("torch", *SCREENS))


def test_import_contracts_hold(root):
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
