"""`tsx recipes`: list them, show one resolved, validate files."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsx.cli import output

if TYPE_CHECKING:
    from recipes.loader import Plan, RecipeInfo
    from tsx.config import RunConfig

app = typer.Typer()

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetFlag = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."),
]
SmokeFlag = Annotated[bool, typer.Option("--smoke", help="Bound every size, as `tsx run --smoke`.")]


@app.callback(invoke_without_command=True)
def list_all(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List, show and validate recipes.

    Without a command: every recipe with what it shows, its minutes on two CPU cores or on the
    device named, and where it comes from.
    """
    if ctx.invoked_subcommand is not None:
        return
    from recipes.loader import list_recipes
    from tsx.cli.expansion import list_recipe_folders

    recipes = list_recipes(list_recipe_folders())
    if as_json:
        output.json({"recipes": [_describe(info) for info in recipes]})
        return
    minutes = output.Column("minutes", right=True)
    columns: list[output.Column | str] = ["recipe", "shows", minutes, "device", "from"]
    rows = [
        (
            info.name,
            info.summary if not info.error else f"cannot be read: {info.error}",
            "" if info.minutes is None else f"{info.minutes:g}",
            info.device,
            info.source,
        )
        for info in recipes
    ]
    output.table(columns, rows)
    output.talk("next: tsx recipes show NAME, or tsx run NAME", style="dim")


@app.command("show")
def show_one(
    name: Annotated[str, typer.Argument(help="A recipe's name or path.")],
    overrides: SetFlag = None,
    smoke: SmokeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Print the resolved config of a recipe.

    Every default is filled in, and each key says who set it. The text is itself a recipe: write it
    to tsx-recipes/NAME.toml to have your own.
    """
    from tsx.cli.expansion import expand_recipe

    plan, configs = expand_recipe(name, overrides or [], smoke=smoke)
    for key in plan.repeated:
        output.warn(f"--set {key} is given more than once; the last one wins")
    first = configs[0][1]
    if as_json:
        output.json(_to_document(plan, configs))
        return
    output.data("\n".join(_to_toml(plan, first)))
    if len(configs) > 1:
        output.talk(f"{len(configs)} runs; the values above are those of {configs[0][0]}")


@app.command("validate")
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Recipe files or names.")],
) -> int:
    """Check recipe files and every run they ask for.

    TOML, names, keys, ranges, each point of a sweep, and the same under --smoke.
    """
    from recipes.errors import RecipeFileError
    from tsx.cli.expansion import expand_recipe
    from tsx.errors import ConfigError, Exit

    status = Exit.OK
    for name in files:
        try:
            plan, configs = expand_recipe(name, [], smoke=False)
            expand_recipe(name, [], smoke=True)
        except (RecipeFileError, ConfigError) as error:
            output.error(error.message, next_command=error.next_command)
            status = Exit.USAGE
        else:
            count = len(configs)
            work = f"{count} run{'s' if count > 1 else ''}"
            sought = f"a search of {plan.search.key}" if plan.search else work
            output.data(f"{name}: valid, {sought}")
    return status


def _describe(info: RecipeInfo) -> dict[str, Any]:
    """Return one line of the list as plain data."""
    return {
        "name": info.name,
        "summary": info.summary,
        "minutes": info.minutes,
        "device": info.device,
        "expect": info.expect,
        "source": info.source,
        "path": str(info.path),
        "error": info.error,
    }


def _to_document(plan: Plan, configs: list[tuple[str, RunConfig]]) -> dict[str, Any]:
    """Return what `show --json` prints."""
    from tsx.config import fingerprint, to_plain

    return {
        "recipe": _describe(plan.info),
        "smoke": plan.smoke,
        "config": to_plain(configs[0][1]),
        "origins": plan.origins,
        "sweep": plan.axes,
        "search": asdict(plan.search) if plan.search else None,
        "runs": [
            {"suffix": suffix, "fingerprint": fingerprint(config)} for suffix, config in configs
        ],
    }


def _to_toml(plan: Plan, config: RunConfig) -> list[str]:
    """Return the resolved config as lines of TOML, each key with who set it."""
    from tsx.config import to_plain

    lines = ["[recipe]"]
    head = _describe(plan.info)
    lines += [
        f"{key} = {_spell(head[key])}"
        for key in ("summary", "minutes", "device", "expect")
        if head[key] not in (None, "")
    ]
    for section, keys in to_plain(config).items():
        lines += ["", f"[{section}]"]
        for key, value in keys.items():
            origin = plan.origins.get(f"{section}.{key}", "default")
            if f"{section}.{key}" in plan.axes:
                lines.append(f"# {key} is swept, see below")
            elif plan.search is not None and f"{section}.{key}" == plan.search.key:
                lines.append(f"# {key} is searched, see below")
            elif value is None:
                lines.append(f"# {key} is not set")
            else:
                lines.append(f"{f'{key} = {_spell(value)}':<40} # {origin}")
    if plan.axes:
        lines += ["", "[sweep]"]
        lines += [f'"{axis}" = {_spell(values)}' for axis, values in plan.axes.items()]
    if plan.search is not None:
        lines += ["", "[search]"]
        lines += [f"{name} = {_spell(value)}" for name, value in asdict(plan.search).items()]
    return lines


def _spell(value: object) -> str:
    """Return a value as TOML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spell, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
