"""`tsx metrics RUN [KEY]`: one curve, as a chart, rows, CSV or JSON; without KEY, the keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from registry.views import RunDetail, Series

_ROWS_PER_WRITE = 5000


def command(
    run: Annotated[str, typer.Argument(help="Id, unique prefix, name, @last or @-2.")],
    key: Annotated[str | None, typer.Argument(help="For example train/loss.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print step,value,time rows.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print one curve of a run."""
    from tsx.cli.reading import open_reader
    from tsx.errors import ConfigError

    if as_csv and as_json:
        raise ConfigError("--csv and --json exclude each other", next_command="tsx metrics --help")
    with open_reader() as reader:
        detail = reader.get_detail(reader.get_run(run).id)
        if key is None:
            _show_keys(detail, as_csv=as_csv, as_json=as_json)
            return
        _check_key(key, detail)
        series = reader.get_series(detail.run.id, key)
    _show_series(series, detail, as_csv=as_csv, as_json=as_json)


def _check_key(key: str, detail: RunDetail) -> None:
    """Raise TsxError, with the nearest names, for a key the run does not have."""
    import difflib

    from tsx.errors import TsxError

    if key in detail.metrics:
        return
    near = difflib.get_close_matches(key, list(detail.metrics), n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise TsxError(
        f"run {detail.run.id} has no metric {key!r}{hint}",
        next_command=f"tsx metrics {detail.run.id}",
    )


def _show_keys(detail: RunDetail, *, as_csv: bool, as_json: bool) -> None:
    """Show the keys of a run with last, min, max and count."""
    from tsx.cli import output
    from tsx.cli.paint import find_width, is_for_person, show_lines
    from tsx.pages import list_metric_lines
    from tsx.text import format_exact

    if as_json:
        output.json({"metrics": {key: asdict(row) for key, row in detail.metrics.items()}})
    elif as_csv:
        output.data("key,last,min,max,count")
        for key, row in detail.metrics.items():
            values = ",".join(format_exact(value) for value in (row.last, row.min, row.max))
            output.data(f"{_quote(key)},{values},{row.count}")
    else:
        show_lines(list_metric_lines(detail.metrics, find_width() if is_for_person() else 200))


def _show_series(series: Series, detail: RunDetail, *, as_csv: bool, as_json: bool) -> None:
    """Show one curve."""
    from tsx.cli import output
    from tsx.cli.paint import is_for_person

    rows = zip(series.steps, series.values, series.times, strict=True)
    if as_json:
        output.json({"key": series.key, "points": [list(row) for row in rows]})
    elif as_csv:
        _write_rows("step,value,time", series, ",")
    elif is_for_person():
        _draw(series, detail)
    else:
        _write_rows("step value time", series, " ")


def _write_rows(head: str, series: Series, separator: str) -> None:
    """Write one row per point, every value as exactly as it is stored."""
    from tsx.cli import output
    from tsx.text import format_exact

    lines = [head]
    for step, value, moment in zip(series.steps, series.values, series.times, strict=True):
        lines.append(separator.join((str(step), format_exact(value), format_exact(moment))))
        if len(lines) >= _ROWS_PER_WRITE:
            output.data("\n".join(lines))
            lines = []
    if lines:
        output.data("\n".join(lines))


def _draw(series: Series, detail: RunDetail) -> None:
    """Draw the curve and say the little a chart does not."""
    from tsx.chart import Curve, Frame
    from tsx.cli.charts import show_curves
    from tsx.cli.output import clean
    from tsx.cli.paint import show_lines
    from tsx.pages import list_metric_lines

    name = clean(detail.run.name or detail.run.id)
    frame = Frame(title=clean(series.key))
    show_curves([Curve(name, series.steps, series.values)], frame, rows=18)
    show_lines(list_metric_lines({series.key: detail.metrics[series.key]}))


def _quote(text: str) -> str:
    """Return a CSV field."""
    if any(char in text for char in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
