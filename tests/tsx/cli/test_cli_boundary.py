"""The one error boundary: every error is a line, a next command and an exit status."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated

import pytest
import typer

import tsx as package
from recipes.errors import RecipeFileError
from registry import errors as store_errors
from tsx import errors
from tsx.cli import main as boundary
from tsx.cli import verbs

ROOT = Path(package.__file__).resolve().parent.parent


@pytest.fixture
def verb(monkeypatch):
    """Return a function that puts another body behind `tsx runs`."""

    def install(command, **attributes):
        module = types.ModuleType("tsx.cli.runs")
        module.command = command
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, "tsx.cli.runs", module)

    return install


def raising(error):
    def command() -> None:
        """Fail."""
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (errors.TsxError("a"), 1, "a"),
        (errors.ConfigError("b"), 2, "b"),
        (errors.RecipeError("c"), 2, "c"),
        (errors.DataError("d"), 2, "d"),
        (errors.RegistryError("e"), 3, "e"),
        (errors.RunNotFound("f"), 1, "f"),
        (errors.Diverged("g"), 4, "g"),
        (errors.OutOfMemory("h"), 5, "h"),
        (RecipeFileError("i"), 2, "i"),
        (store_errors.StoreLocked("j"), 3, "j"),
        (store_errors.StoreCorrupt("k"), 3, "k"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("l\nmore"), 1, "ValueError: l"),
        (RuntimeError(), 1, "RuntimeError"),
        (MemoryError(), 1, "MemoryError"),
        (RecursionError("deep"), 1, "RecursionError: deep"),
    ],
)
def test_error_becomes_a_line_and_a_status(tsx, verb, error, status, message):
    verb(raising(error))
    done = tsx("runs")
    assert done.status == status
    assert done.err.splitlines()[0] == f"error: {message}"
    assert done.out == ""
    assert "Traceback" not in done.err


def test_next_command_is_shown(tsx, verb):
    verb(raising(errors.ConfigError("bad key", next_command="tsx recipes show x")))
    assert tsx("runs").err == "error: bad key\nnext: tsx recipes show x\n"


def test_unknown_run_offers_the_nearest(tsx, verb):
    error = store_errors.UnknownRun("no run 'abd'", reference="abd", nearest=("abc", "abe"))
    verb(raising(error))
    done = tsx("runs")
    assert done.status == 1
    assert done.err == "error: no run 'abd'; nearest: abc, abe\nnext: tsx runs\n"


def test_hostile_message_is_inert(tsx, verb):
    verb(raising(errors.TsxError("\x1b[2J\x07 [red]x[/red]")))
    assert tsx("runs").err.startswith("error: ␛[2J\\x07 [red]x[/red]\n")


@pytest.mark.parametrize("line", [["--debug", "runs"], ["runs", "--debug"]])
def test_debug_shows_the_traceback_anywhere_on_the_line(tsx, verb, line):
    verb(raising(ValueError("boom")))
    done = tsx(*line)
    assert done.status == 1
    assert "Traceback (most recent call last)" in done.err
    assert "in command" in done.err


def test_debug_after_a_double_dash_is_an_argument(tsx, verb):
    seen = []

    def command(words: list[str]) -> None:
        """Take words."""
        seen.extend(words)

    verb(command)
    assert tsx("runs", "--", "--debug").status == 0
    assert seen == ["--debug"]


def test_exit_and_returned_status_pass_through(tsx, verb):
    def leave() -> None:
        """Leave."""
        raise typer.Exit(7)

    verb(leave)
    assert tsx("runs").status == 7

    def answer() -> int:
        """Answer."""
        return 4

    verb(answer)
    assert tsx("runs").status == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["rnus"], "no command 'rnus'; did you mean 'runs'"),
        (["zzzzzz"], "no command 'zzzzzz'"),
        (["runs", "--nope"], "--nope"),
        (["runs", "--count", "many"], "many"),
        (["--nope"], "--nope"),
        (["recipes", "shw"], "shw"),
        (["\x1b[31m"], "no command"),
    ],
)
def test_wrong_line_is_a_usage_error(tsx, verb, line, message):
    def command(count: int = 1) -> None:
        """Count."""

    verb(command)
    done = tsx(*line)
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert "next: tsx" in done.err
    assert "\x1b" not in done.err
    assert done.out == ""


def test_repeated_flag_warns_and_the_last_wins(tsx, verb):
    seen = []

    def command(
        limit: int = 0, tag: Annotated[list[str] | None, typer.Option("--tag")] = None
    ) -> None:
        """Limit."""
        seen.append((limit, tag))

    verb(command)
    done = tsx("runs", "--limit", "3", "--tag", "a", "--tag", "b", "--limit=5")
    assert done.status == 0
    assert seen == [(5, ["a", "b"])]
    assert done.err == "warning: --limit is given 2 times; the last one wins\n"


def test_flag_given_once_does_not_warn(tsx, verb):
    def command(limit: int = 0) -> None:
        """Limit."""

    verb(command)
    assert tsx("runs", "--limit", "3").err == ""


def test_help_names_every_verb_and_loads_none(tsx):
    before = set(sys.modules)
    done = tsx("--help")
    assert done.status == 0
    for entry in verbs.VERBS:
        assert f"  {entry.name}" in done.out
        assert entry.summary in " ".join(done.out.split())
    assert not [name for name in set(sys.modules) - before if name.startswith("tsx.cli.")]


def test_version(tsx):
    done = tsx("--version")
    assert (done.status, done.out) == (0, f"tsx {package.__version__}\n")


@pytest.mark.parametrize("entry", verbs.VERBS, ids=lambda entry: entry.name)
def test_verb_has_the_summary_of_the_table(entry):
    command = verbs.load_verb(entry.name)
    assert command.help.strip().partition("\n")[0] == entry.summary


@pytest.mark.parametrize("entry", verbs.VERBS, ids=lambda entry: entry.name)
def test_verb_has_help(tsx, entry):
    done = tsx(entry.name, "--help")
    assert done.status == 0
    assert f"tsx {entry.name}" in done.out
    assert "--install-completion" not in done.out


def run_tsx(*words, cwd, **environ):
    """Run `python -m tsx` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tsx", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", boundary.OUR_PACKAGES)
@pytest.mark.parametrize("form", ["module", "package"])
def test_shadowed_package_is_named(tmp_path, name, form):
    if form == "module":
        intruder = tmp_path / f"{name}.py"
    else:
        (tmp_path / name).mkdir()
        intruder = tmp_path / name / "__init__.py"
    intruder.write_text("raise SystemExit('the intruder ran')\n")
    done = run_tsx("recipes", cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert f"another module named '{name}' ({intruder})" in done.stderr
    assert str(ROOT / name) in done.stderr
    assert "the intruder ran" not in done.stderr


def test_folder_without_code_shadows_nothing(tmp_path):
    (tmp_path / "recipes").mkdir()
    done = run_tsx("recipes", cwd=tmp_path)
    assert done.returncode == 0
    assert "sanity" in done.stdout


def test_our_packages_lie_beside_tsx():
    boundary.check_packages()
    for name in boundary.OUR_PACKAGES:
        assert Path(importlib.import_module(name).__file__).parent.parent == ROOT


def test_reader_that_leaves_early_is_no_error(tmp_path):
    code = (
        "import sys, os\n"
        "from tsx.cli import main, output, verbs\n"
        "import types\n"
        "module = types.ModuleType('tsx.cli.runs')\n"
        "def command() -> None:\n"
        "    'Write much.'\n"
        "    for _ in range(100_000):\n"
        "        output.data('x' * 100)\n"
        "module.command = command\n"
        "sys.modules['tsx.cli.runs'] = module\n"
        "sys.exit(main.main(['runs']))\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path
    )
    os.close(writer)
    assert os.read(reader, 10) == b"x" * 10
    os.close(reader)
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tsx", "recipes", "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
