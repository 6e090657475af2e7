"""`tsx data inspect PATH`: everything that training would meet under a path, read once."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsx.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress

    from tsx.config import RunConfig
    from tsx.data.inspect import Fault, Inspection
    from tsx.data.preview import BatchPreview

MAX_FAULTS = 20  # that are printed; --json has all
_QUIET_S, _LINE_EVERY_S = 1.0, 5.0  # before progress is shown; between lines where there is no bar


def command(
    path: Annotated[str, typer.Argument(help="A folder or file of series.")],
    batch: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Preview this training batch; the first is 0."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."
        ),
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="NaN and infinity are no fault.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Read all series under a path: windows, padding, oddities and faults.

    Exits with 0 where a run could train on them and with 1 where it could not. Nothing is trained.
    """
    from registry.home import find_home
    from tsx.data.inspect import inspect_path

    config = _make_config(path, overrides or [], allow_nonfinite=allow_nonfinite)
    with _ProgressView() as view:
        found = inspect_path(
            Path(path),
            config.data,
            home=find_home(),
            patch_len=config.model.patch_len,
            watch=view.watch,
        )
    preview, faults = None, list(found.faults)
    if batch is not None and not faults:
        preview, faults = _preview(config, batch, find_home())
    if as_json:
        _print_json(found, faults, preview)
    else:
        from tsx.cli.data_report import show_batch, show_inspection

        show_inspection(found)
        if preview is not None:
            show_batch(preview)
    for fault in faults[:MAX_FAULTS]:
        # One line each: the name of a file may hold line breaks, and forge what follows them.
        output.error(output.clean(fault.message), next_command=output.clean(fault.next_command))
    if len(faults) > MAX_FAULTS:
        output.talk(f"and {len(faults) - MAX_FAULTS} more faults; all of them: --json")
    return int(bool(faults))


def _make_config(path: str, overrides: list[str], *, allow_nonfinite: bool) -> RunConfig:
    """Return the config of a run on that path."""
    from recipes.overrides import parse_overrides
    from tsx.config import decode
    from tsx.errors import ConfigError

    if not path:
        raise ConfigError("PATH is empty", next_command="tsx data inspect FOLDER")
    given = parse_overrides(overrides)
    for key in given.repeated:
        output.warn(f"{key} is given more than once; the last one wins")
    raw: dict[str, dict[str, Any]] = {}
    for key, value in given.values.items():
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = value
    raw.setdefault("data", {})["path"] = path
    if allow_nonfinite:
        raw["data"]["allow_nonfinite"] = True
    return decode(raw, place="--set")


def _preview(config: RunConfig, number: int, home: Path) -> tuple[BatchPreview | None, list[Fault]]:
    """Return the batch, and what is wrong with it or kept it from being made."""
    from tsx.data.inspect import Fault
    from tsx.data.preview import preview_batch
    from tsx.errors import DataError

    try:
        preview = preview_batch(config, number, home=home)
    except DataError as error:
        return None, [Fault("", error.message, error.next_command)]
    if preview.num_unequal:
        text = f"batch {number}: targets are not the inputs one point later"
        return preview, [Fault("", f"{text} at {preview.num_unequal:,} places", "")]
    return preview, []


def _print_json(found: Inspection, faults: list[Fault], preview: BatchPreview | None) -> None:
    """Print everything as one document."""
    from tsx.data.tally import HUGE

    document = dataclasses.asdict(found)
    document["huge_over"] = HUGE
    document["faults"] = [dataclasses.asdict(fault) for fault in faults]
    if preview is not None:
        batch = preview.batch
        document["batch"] = {
            "number": preview.number,
            "seed": preview.seed,
            "num_windows": preview.num_windows,
            "windows": [
                {"dataset": origin.dataset.name, "series": origin.series, "start": origin.start}
                for origin in preview.origins
            ],
            "input": batch.input_BC.tolist(),
            "target": batch.target_BC.tolist(),
            "input_mask": batch.input_mask_BC.tolist(),
            "target_mask": batch.target_mask_BC.tolist(),
            "compared": preview.num_compared,
            "unequal": preview.num_unequal,
        }
    output.json(document)


class _ProgressView:
    """Progress on stderr where reading takes long: a bar on a terminal, else a line at times."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> _ProgressView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def watch(self, share: float, name: str) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if now - self._began < _QUIET_S:
            return
        if output.is_terminal(sys.stderr):
            if self._bar is None:
                from rich.progress import TaskProgressColumn, TimeElapsedColumn

                self._bar = output.make_bars(TaskProgressColumn(), TimeElapsedColumn())
                self._bar.add_task("", total=1.0)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=share, description=output.clean(name))
        elif now - self._last >= _LINE_EVERY_S:
            from tsx.text import format_duration

            self._last = now
            left = (now - self._began) * (1 - share) / share if share else 0.0
            eta = f", eta {format_duration(left)}" if share else ""
            output.talk(f"inspecting {name}: {share:.0%}{eta}")
