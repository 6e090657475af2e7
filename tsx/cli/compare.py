"""`tsx compare A B`: what differs between runs, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from registry.queries import Reader
    from tsx.compare.report import Report

_CHARTS = ("train/loss", "val/loss")
_MAX_CHARTS = 3  # of runs without our losses
_POINT_CHARTS = ("val/mse_h1", "val/mse_h8", "val/mse_h32", "val/mse_h64")


def command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Two or more: id, prefix, name, @last.", metavar="RUN..."),
    ],
    keys: Annotated[
        list[str] | None, typer.Option("--key", help="Compare this metric only; may repeat.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs: config, metrics and curves."""
    from tsx.cli import output
    from tsx.cli.reading import open_reader
    from tsx.compare.lines import list_report_lines
    from tsx.compare.report import compare, select_keys, to_plain
    from tsx.errors import ConfigError

    with open_reader() as reader:
        ids = [reader.get_run(reference).id for reference in runs]
        if len(set(ids)) < 2:
            raise ConfigError(
                f"{' '.join(runs)}: comparing takes two different runs", next_command="tsx runs"
            )
        details = [reader.get_detail(run_id) for run_id in dict.fromkeys(ids)]
        report = select_keys(compare(details), tuple(keys or ()))
        if as_json:
            output.json(to_plain(report))
            return
        from tsx.cli.paint import show_lines

        show_lines(list_report_lines(report, all_metrics=bool(keys)))
        _show_curves(report, reader, tuple(keys or ()))


def _show_curves(report: Report, reader: Reader, keys: tuple[str, ...]) -> None:
    """Draw the curves of all runs over one another, a chart per metric."""
    from tsx.chart import Frame
    from tsx.cli import output
    from tsx.cli.charts import MAX_COLUMNS, show_curves
    from tsx.cli.output import clean
    from tsx.compare.align import align
    from tsx.compare.report import name_runs

    names = [clean(name) for name in name_runs(report.runs)]
    compared = {row.key for row in report.metrics}
    wanted = keys or (_POINT_CHARTS if "train/loss" in report.withheld else _CHARTS)
    drawn = [key for key in wanted if key in compared]
    for key in drawn or [row.key for row in report.metrics][:_MAX_CHARTS]:
        outlines = [reader.get_outline(run.id, key, MAX_COLUMNS) for run in report.runs]
        aligned = align(outlines, names)
        if any(len(curve.xs) for curve in aligned.curves):
            output.data("")
            show_curves(aligned.curves, Frame(title=clean(key), x_label=aligned.x_label))
