"""`tsx metrics RUN [KEY]`: a curve or histograms, as a chart, rows, CSV or JSON; or the keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from registry.views import HistogramRow, RunDetail, Series

_ROWS_PER_WRITE = 5000
_MAX_SPREADS = 24  # histograms shown below one another


def command(
    run: Annotated[str, typer.Argument(help="Id, unique prefix, name, @last or @-2.")],
    key: Annotated[str | None, typer.Argument(help="For example train/loss.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print step,value,time rows.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print one curve of a run.

    Of a key that has histograms instead, their newest, or with --csv every bin of each.
    """
    from tsx.cli.charts import MAX_COLUMNS
    from tsx.cli.paint import is_for_person
    from tsx.cli.reading import open_reader
    from tsx.errors import ConfigError

    if as_csv and as_json:
        raise ConfigError("--csv and --json exclude each other", next_command="tsx metrics --help")
    has_chart = is_for_person() and not as_csv and not as_json
    with open_reader() as reader:
        detail = reader.get_detail(reader.get_run(run).id)
        if key is None:
            _show_keys(detail, as_csv=as_csv, as_json=as_json)
            return
        _check_key(key, detail)
        if has_chart:
            series = reader.get_outline(detail.run.id, key, MAX_COLUMNS)
        else:
            series = reader.get_series(detail.run.id, key)
        spreads = reader.list_histograms(detail.run.id, key) if key in detail.histograms else []
    if has_chart:
        _draw(series, spreads, detail)
    elif as_json:
        _write_json(series, spreads)
    elif len(series):
        _write_rows(series, "," if as_csv else " ")
    else:
        _write_bins(spreads, "," if as_csv else " ")


def _check_key(key: str, detail: RunDetail) -> None:
    """Raise TsxError, with the nearest names, for a key the run does not have."""
    import difflib

    from tsx.errors import TsxError

    known = [*detail.metrics, *detail.histograms]
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise TsxError(
        f"run {detail.run.id} has no metric {key!r}{hint}",
        next_command=f"tsx metrics {detail.run.id}",
    )


def _show_keys(detail: RunDetail, *, as_csv: bool, as_json: bool) -> None:
    """Show the keys of a run with last, min, max and count."""
    from tsx.cli import output
    from tsx.cli.paint import find_width, is_for_person, show_lines
    from tsx.pages import list_histogram_lines, list_metric_lines
    from tsx.text import format_exact

    if as_json:
        plain = {"metrics": {key: asdict(row) for key, row in detail.metrics.items()}}
        if detail.histograms:
            plain["histograms"] = {key: asdict(row) for key, row in detail.histograms.items()}
        output.json(plain)
    elif as_csv:
        output.data("key,last,min,max,count")
        for key, row in detail.metrics.items():
            values = ",".join(format_exact(value) for value in (row.last, row.min, row.max))
            output.data(f"{_quote(key)},{values},{row.count}")
    else:
        if detail.metrics or not detail.histograms:
            show_lines(list_metric_lines(detail.metrics, find_width() if is_for_person() else 200))
        show_lines(list_histogram_lines(detail.histograms.values()))


def _write_json(series: Series, spreads: list[HistogramRow]) -> None:
    """Write a curve, and its histograms where it has any."""
    from tsx.cli import output

    rows = zip(series.steps, series.values, series.times, strict=True)
    plain: dict[str, Any] = {"key": series.key, "points": [list(row) for row in rows]}
    if spreads:
        plain["histograms"] = [asdict(row) for row in spreads]
    output.json(plain)


def _write_rows(series: Series, separator: str) -> None:
    """Write one row per point, every value as exactly as it is stored."""
    from tsx.text import format_exact

    rows = zip(series.steps, series.values, series.times, strict=True)
    lines = (
        separator.join((str(step), format_exact(value), format_exact(moment)))
        for step, value, moment in rows
    )
    _write_lines(separator.join(("step", "value", "time")), lines)


def _write_bins(spreads: list[HistogramRow], separator: str) -> None:
    """Write one row per bin of every histogram."""
    from tsx.text import format_exact

    lines = (
        separator.join((str(row.step), format_exact(low), format_exact(high), str(count)))
        for row in spreads
        for (low, high), count in zip(itertools.pairwise(row.edges), row.counts, strict=False)
    )
    _write_lines(separator.join(("step", "low", "high", "count")), lines)


def _write_lines(head: str, lines: Iterable[str]) -> None:
    """Write many lines, some thousands at a time."""
    from tsx.cli import output

    rest = itertools.chain((head,), lines)
    while some := list(itertools.islice(rest, _ROWS_PER_WRITE)):
        output.data("\n".join(some))


def _draw(series: Series, spreads: list[HistogramRow], detail: RunDetail) -> None:
    """Draw the curve and say the little a chart does not; then the newest histograms."""
    from tsx.chart import Curve, Frame
    from tsx.cli.charts import show_curves
    from tsx.cli.output import clean
    from tsx.cli.paint import show_heading, show_lines
    from tsx.pages import list_histogram_lines, list_metric_lines

    if len(series):
        name = clean(detail.run.name or detail.run.id)
        frame = Frame(title=clean(series.key))
        show_curves([Curve(name, series.steps, series.values)], frame, rows=18)
        show_lines(list_metric_lines({series.key: detail.metrics[series.key]}))
    if spreads:
        shown = spreads[-_MAX_SPREADS:]
        left_out = len(spreads) - len(shown)
        show_heading(clean(series.key) + (f", the last of {len(spreads)}" if left_out else ""))
        show_lines(list_histogram_lines(shown, by_step=True))


def _quote(text: str) -> str:
    """Return a CSV field."""
    if any(char in text for char in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
