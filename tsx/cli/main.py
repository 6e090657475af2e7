"""The root of the command line, and the only place where an error becomes text and a status.

A verb raises; `run` reports: one line that names value and place, one that names the next
command. Exit statuses are `tsx.errors.Exit`. With --debug (anywhere on the line) the traceback
comes first.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

import tsx
from tsx.cli import output
from tsx.cli.verbs import VerbGroup
from tsx.errors import Exit, TsxError

OUR_PACKAGES = ("registry", "recipes")

app = typer.Typer(
    cls=VerbGroup,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def overview(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere).")
    ] = False,
) -> None:
    """Train small mixture-of-experts forecasters, and see what goes wrong in them.

    Without a command: what is running, and what to type next.
    """
    del debug  # taken off the line by `main`, which also knows of errors while parsing
    if version:
        output.data(f"tsx {tsx.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        from tsx.cli.overview import show_overview

        show_overview()


def run() -> None:
    """Run the command line of this process and exit with its status."""
    output.open_missing()
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command line and return its exit status; nothing is raised but SystemExit."""
    argv, debug = _take_debug(argv)
    try:
        check_packages()
        status = _invoke(argv)
        output.flush()
    except SystemExit:
        raise
    except BrokenPipeError:
        output.abandon_broken()
        return Exit.OK
    except BaseException as error:
        return _report(error, debug=debug)
    return status


def check_packages() -> None:
    """Refuse to go on when another module hides one of our top-level packages.

    `registry` and `recipes` are common names: a file of that name in the working folder or on
    PYTHONPATH comes first and everything after it fails in a puzzling way.

    Raises:
        TsxError: the intruder's place and ours.
    """
    root = Path(tsx.__file__).resolve().parent.parent
    for name in OUR_PACKAGES:
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve() if spec and spec.origin else None
        if place is not None and place.parent.parent == root:
            continue
        raise TsxError(
            f"another module named '{name}' ({place or 'not a package'}) hides the one of tsx "
            f"({root / name})",
            next_command="rename it, or take its folder off PYTHONPATH, or run from elsewhere",
        )


class _Report(NamedTuple):
    """What the user is told about an error."""

    message: str
    next_command: str
    status: int


def _take_debug(argv: list[str]) -> tuple[list[str], bool]:
    """Return the line without --debug, and whether it was there (before any `--`)."""
    end = argv.index("--") if "--" in argv else len(argv)
    kept = [word for word in argv[:end] if word != "--debug"]
    return [*kept, *argv[end:]], len(kept) < end


def _invoke(argv: list[str]) -> int:
    """Parse and run one line; a verb may return its status."""
    command: Any = typer.main.get_command(app)
    try:
        with command.make_context("tsx", list(argv)) as context:
            status = command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return status if isinstance(status, int) else Exit.OK


def _report(error: BaseException, *, debug: bool) -> int:
    """Say what went wrong and return the exit status."""
    report = _explain(error)
    try:
        output.flush()
    except OSError:
        output.abandon_broken()
    if debug:
        output.talk("".join(traceback.format_exception(error)).rstrip())
    output.error(report.message, next_command=report.next_command)
    return report.status


def _explain(error: BaseException) -> _Report:
    """Map an error to its text and status."""
    if isinstance(error, TsxError):
        return _Report(error.message, error.next_command, error.exit_code)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _Report("interrupted", "", Exit.INTERRUPTED)
    usage_error = typer.BadParameter.__mro__[2]  # what every wrong command line derives from
    if isinstance(error, usage_error):
        return _explain_usage(error)
    return _explain_foreign(error) or _explain_unknown(error)


def _explain_usage(error: BaseException) -> _Report:
    """Explain a command line that does not parse."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "tsx"
    message = error.format_message() or "missing arguments"  # type: ignore[attr-defined]
    # What Typer adds to a missing argument that has no message of its own.
    return _Report(message.removesuffix(" None: "), f"{path} --help", Exit.USAGE)


def _explain_foreign(error: BaseException) -> _Report | None:
    """Explain the errors of `registry` and `recipes`, which never import tsx.

    Only modules that are loaded can have raised: nothing is imported to find out.
    """
    store, recipe = sys.modules.get("registry.errors"), sys.modules.get("recipes.errors")
    if recipe is not None and isinstance(error, recipe.RecipeFileError):
        return _Report(error.message, error.next_command or "tsx recipes", Exit.USAGE)
    if store is not None and isinstance(error, store.UnknownRun):
        near = f"; nearest: {', '.join(error.nearest)}" if error.nearest else ""
        return _Report(f"{error.message}{near}", "tsx runs", Exit.FAILED)
    if store is not None and isinstance(error, store.StoreError):
        return _Report(error.message, error.next_command, Exit.REGISTRY)
    return None


def _explain_unknown(error: BaseException) -> _Report:
    """Explain anything else in one line."""
    text = str(error).strip().partition("\n")[0]
    name = type(error).__name__
    message = f"{name}: {text}" if text else name
    return _Report(message, "--debug shows the traceback", Exit.FAILED)
