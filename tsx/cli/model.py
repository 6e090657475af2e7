"""`tsx model`: official Time-MoE weights into a run and out of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsx.cli import output

if TYPE_CHECKING:
    from tsx.config import RunConfig

CHECKPOINT_EVERY = 100  # steps, once an imported run is trained; its step 0 is always kept

app = typer.Typer()


@app.callback()
def group() -> None:
    """Import and export official Time-MoE weights."""


@app.command("import")
def import_model(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Holds config.json and model.safetensors.")
    ],
    name: Annotated[str, typer.Option(help="Name of the run; default: the folder's.")] = "",
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Series to score on.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Tag; may be repeated.")] = None,
    note: Annotated[str, typer.Option(help="A sentence to remember it by.")] = "",
) -> int:
    """Make a run of official weights: scored and saved.

    The architecture is the one of config.json. `tsx resume RUN --set train.steps=N` trains it
    further. Pickled weights are refused.
    """
    from registry.connection import find_home, find_url
    from tsx.cli.run import name_path, train
    from tsx.errors import ConfigError
    from tsx.launch.plan import RunPlan, new_run_id

    asked = list(overrides or [])
    asked += [f"train.device={device}"] if device else []
    asked += [f"data.path={name_path(data)}"] if data is not None else []
    place = Path(name_path(folder, of="DIR"))
    try:
        config = _make_config(place, asked)
    except ConfigError as error:
        error.next_command = error.next_command or "tsx model import --help"
        raise
    plan = RunPlan(
        run_id=new_run_id(),
        name=name or place.name or "import",
        recipe="import",
        config=config,
        tags=tuple(tag or ()),
        note=note,
        command=("tsx", *sys.argv[1:]),
    )
    home = find_home()
    return train([plan], home, find_url(home))


def _make_config(folder: Path, overrides: list[str]) -> RunConfig:
    """Return the config of a run of official weights, after checking the folder against it."""
    from msgspec import to_builtins

    from recipes.overrides import parse_overrides
    from tsx.config import decode
    from tsx.errors import ConfigError
    from tsx.model import official

    given = parse_overrides(overrides)
    for key in given.repeated:
        output.warn(f"{key} is given more than once; the last one wins")
    if "train.init_from" in given.values:
        raise ConfigError(
            f"--set train.init_from={given.values['train.init_from']!r}: DIR says that already",
            next_command="tsx run RECIPE --set train.init_from=DIR",
        )
    raw: dict[str, dict[str, Any]] = {
        "model": to_builtins(official.read_config(folder)),
        "train": {"steps": 0, "checkpoint_every": CHECKPOINT_EVERY, "init_from": str(folder)},
    }
    for path, value in given.values.items():
        section, _, key = path.partition(".")
        raw.setdefault(section, {})[key] = value
    config = decode(raw, place="--set")
    official.find_files(folder, config.model)
    return config


@app.command("export")
def export_model(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id, prefix, name, @last or @-2.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    checkpoint: Annotated[
        str, typer.Option(metavar="last|best|STEP", help="Which of the run's checkpoints.")
    ] = "last",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a run's weights as the official Time-MoE class reads them.

    DIR gets config.json and model.safetensors, fp32.
    """
    from dataclasses import asdict

    from registry.connection import find_home
    from tsx.cli.reading import open_reader
    from tsx.cli.run import name_path
    from tsx.trainer.export import export_weights

    place = Path(name_path(folder, of="DIR"))
    with open_reader() as reader:
        run_id = reader.get_run(run).id
    done = export_weights(find_home() / "runs" / run_id, place, which=checkpoint)
    for damage in done.damaged:
        output.warn(f"passed over a checkpoint that is not whole: {damage}")
    output.talk(
        f"wrote step {done.step} of run {run_id} to {place}: {done.tensors:,} tensors, "
        f"{done.parameters:,} parameters, {done.size_bytes:,} bytes"
    )
    if as_json:
        output.json({"run": run_id, "path": str(place)} | asdict(done))
    else:
        output.data(str(place))
