"""The table of verbs, and the group that loads a verb's module only when that verb is used.

A verb's module holds a function `command` (its signature is the command line, its docstring the
help) or, for a verb with verbs of its own, a `typer.Typer` named `app`, and `EXAMPLES` where its
help is to end with some. The function returns None or its exit status and raises what the
boundary in `tsx.cli.main` explains. At module level a verb imports only typer and the standard
library; everything else inside the function's body.
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as build_command
from typer.main import get_group as build_group

from tsx.cli import output


class Verb(NamedTuple):
    """One line of `tsx --help`; `summary` is the first line of the command's own help."""

    name: str
    summary: str
    section: str


VERBS = (
    Verb("run", "Train a recipe and record every line of it.", "Train"),
    Verb("train", "Train as the research notes' command line says.", "Train"),
    Verb("exec", "Run any program and record it.", "Train"),
    Verb("resume", "Go on with a run from its last checkpoint.", "Train"),
    Verb("doctor", "Look for faults in a recipe before it is trained, in seconds.", "Train"),
    Verb("recipes", "List, show and validate recipes.", "Train"),
    Verb("data", "Inspect and download series.", "Train"),
    Verb("model", "Import and export official Time-MoE weights.", "Train"),
    Verb("runs", "List runs, newest first.", "Read"),
    Verb("show", "Show everything the registry knows of one run.", "Read"),
    Verb("metrics", "Print one curve of a run.", "Read"),
    Verb("compare", "Compare runs: config, metrics and curves.", "Read"),
    Verb("diagnose", "Show what was found to be wrong with a run, with its evidence.", "Read"),
    Verb("replay", "Run the step that was not finite again, as it was or otherwise.", "Read"),
    Verb("dashboard", "Watch and compare runs in the terminal.", "Read"),
    Verb("sql", "Ask the registry in SQL; nothing but reading is possible.", "Read"),
    Verb("tag", "Put tags on a run, or take them off.", "Keep"),
    Verb("note", "Say something about a run.", "Keep"),
    Verb("rename", "Give a run another name.", "Keep"),
    Verb("du", "Show what takes the room: runs, caches, data and the registry.", "Keep"),
    Verb("gc", "Delete files that are not needed any more, by a stated rule.", "Keep"),
    Verb("registry", "Look after the registry of runs.", "Keep"),
    Verb("env", "Show versions, devices and paths, for bug reports.", "Keep"),
)


class _TrustDefaults:
    """A command that takes the values nobody typed as they are.

    typer coerces defaults as it does text, and imports pydantic for it: a third of the start of a
    reading command. A default that is text (it may stand for a path) is still coerced.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, --help included, sparing untyped values the coercion."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if hasattr(param, "get_runtime_param") and "process_value" not in vars(param):
                param.process_value = functools.partial(_process_value, param, param.process_value)
        return params


def _process_value(param: Any, coerce: Callable[..., Any], ctx: Any, value: Any) -> Any:
    """Return the value of a parameter, coerced when somebody typed it."""
    source = ctx.get_parameter_source(param.name)
    if source is None or source.name != "DEFAULT" or param.required or isinstance(value, str):
        return coerce(ctx, value)
    return value if param.callback is None else param.callback(ctx, param, value)


class _Exemplified:
    """A command whose help ends with command lines to type."""

    examples: tuple[str, ...] = ()

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, a line each."""
        del ctx
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class VerbCommand(_Exemplified, _TrustDefaults, TyperCommand):
    """A command that says so when a flag is given twice: the last one wins."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, warn of every repeated flag that takes one value, show a value that is wrong."""
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param, count in Counter(order).items():
            if count > 1 and not getattr(param, "multiple", False) and param.nargs == 1:
                flag = max(param.opts, key=len)
                if flag.startswith("-"):
                    output.warn(f"{flag} is given {count} times; the last one wins")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            name = getattr(error.param, "name", None)
            if name in given:
                error.message = f"{given[name]!r}: {error.message}"
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, those with a panel under its heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                head = getattr(param, "rich_help_panel", None)
                head = head or f"{param.param_type_name.capitalize()}s"
                sections.setdefault(head, []).append(record)
        for head, rows in sections.items():
            with formatter.section(head):
                formatter.write_dl(rows)


class _Group(_Exemplified, _TrustDefaults, TyperGroup):
    """A verb with verbs of its own."""


class VerbGroup(_Group):
    """The root command: names and summaries from the table, code on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all verbs in the table's order."""
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the verb's module and build its command; None for an unknown name."""
        if cmd_name not in self.commands and any(verb.name == cmd_name for verb in VERBS):
            self.commands[cmd_name] = load_verb(cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and the arguments left; an unknown name offers the nearest."""
        if args[0] not in self.list_commands(ctx):
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2, cutoff=0.5)
            offer = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"no command {args[0]!r}{offer}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table by sections, without importing a single verb."""
        for section in dict.fromkeys(verb.section for verb in VERBS):
            with formatter.section(section):
                rows = [(verb.name, verb.summary) for verb in VERBS if verb.section == section]
                formatter.write_dl(rows)


def load_verb(name: str) -> Any:
    """Return the command object of the verb `name`."""
    module = importlib.import_module(f"tsx.cli.{name}")
    is_group = hasattr(module, "app")
    verb = module.app if is_group else typer.Typer(add_completion=False)
    if not is_group:
        verb.command(name)(module.command)
    for info in verb.registered_commands:
        info.cls = VerbCommand
    verb.info.cls = _Group
    verb.rich_markup_mode = None  # plain help: rich would double the start
    command: Any = build_group(verb) if is_group else build_command(verb)
    command.name = name
    command.examples = getattr(module, "EXAMPLES", ())
    return command
