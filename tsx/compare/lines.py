"""A comparison as lines to read: warnings first, then runs, config and metrics. Pure."""

from __future__ import annotations

from tsx.cli.output import clean
from tsx.compare.direction import Direction
from tsx.compare.report import MetricRow, Report, find_delta, find_verdict, name_runs
from tsx.ink import STATUS_GLYPHS, Line, Piece, find_status_kind
from tsx.text import count_cells, format_step, format_value, pad

_MAX_CELL = 32


def list_report_lines(report: Report, *, all_metrics: bool = False) -> list[Line]:
    """Return the whole report.

    Args:
        report: what to show.
        all_metrics: whether metrics that have no better and worse are listed beside those that do.
    """
    lines = [Line((Piece(f"▲ {clean(warning)}", "warning"),)) for warning in report.warnings]
    lines += [Line()] if lines else []
    lines += _list_run_lines(report)
    lines += [Line(), *_list_config_lines(report)]
    judged = [row for row in report.metrics if row.direction is not Direction.NEITHER]
    rows = list(report.metrics) if all_metrics or not judged else judged
    return [*lines, Line(), *_list_metric_lines(report, rows)]


def _list_run_lines(report: Report) -> list[Line]:
    """Return one line per run, in the colour of its curves."""
    names = [clean(run.name or run.id) for run in report.runs]
    width = max(count_cells(name) for name in names)
    lines = []
    for index, (run, name) in enumerate(zip(report.runs, names, strict=True)):
        kind = find_status_kind(run.status)
        seed = f"seed {run.seed}" if run.recipe or run.seed else ""  # a program may have said none
        facts = (run.recipe, run.device, run.precision, run.data_source, seed)
        lines.append(
            Line(
                (
                    Piece(f"━ {pad(name, width)}  ", f"curve-{index}"),
                    Piece(f"{clean(run.id)}  ", "muted"),
                    Piece(pad(f"{STATUS_GLYPHS[kind]} {clean(run.status)}", 14), kind),
                    Piece(f"{format_step(run.step, run.steps)}  ", "text"),
                    Piece(" · ".join(clean(fact) for fact in facts if fact), "muted"),
                )
            )
        )
    return lines


def _list_config_lines(report: Report) -> list[Line]:
    """Return the config keys that differ, a column per run."""
    if not report.config:
        return [Line((Piece("config   the same in every key", "muted"),))]
    head = ["config", *(clean(name) for name in name_runs(report.runs))]
    body = [[clean(d.key), *(clean(v) for v in d.values)] for d in report.config]
    widths = _find_widths([head, *body])
    lines = [_make_line(head, widths, ["head"] * len(head))]
    return lines + [_make_line(row, widths, ["muted"] + ["text"] * len(widths)) for row in body]


def _list_metric_lines(report: Report, rows: list[MetricRow]) -> list[Line]:
    """Return last and best of each metric, each run's difference from the first beside it."""
    if not rows:
        return [Line((Piece("No metrics in common to compare.", "muted"),))]
    head = ["metric", ""]
    for index, name in enumerate(name_runs(report.runs)):
        head += [clean(name)] if index == 0 else [clean(name), "change"]
    table: list[tuple[list[str], list[str]]] = [(head, ["head"] * len(head))]
    for row in rows:
        table.append(_make_metric_row(row, clean(row.key), "last", row.last))
        if any(value is not None for value in row.best):
            table.append(_make_metric_row(row, "", "best", row.best))
    widths = _find_widths([texts for texts, _ in table])
    return [_make_line(texts, widths, kinds, right_from=2) for texts, kinds in table]


def _make_metric_row(
    row: MetricRow, title: str, which: str, values: tuple[float | None, ...]
) -> tuple[list[str], list[str]]:
    """Return the texts and kinds of one line of the metrics table."""
    texts, kinds = [title, which], ["text", "muted"]
    for index, value in enumerate(values):
        texts.append(format_value(value))
        kinds.append("text")
        if index:
            delta = find_delta(values, index)
            texts.append(_format_change(delta, values[0]))
            kinds.append(find_verdict(row.direction, delta) or "muted")
    return texts, kinds


def _format_change(delta: float | None, first: float | None) -> str:
    """Return a difference with its sign, and as a share of the first value."""
    if delta is None or first is None:
        return ""
    if delta == 0:
        return "="
    text = format_value(delta)
    text = text if text.startswith("-") or text == "NaN" else f"+{text}"
    share = delta / abs(first) if first else float("inf")
    return f"{text} ({share:+.1%})" if abs(share) < 100 else text


def _find_widths(rows: list[list[str]]) -> list[int]:
    """Return the width of each column."""
    return [min(max(count_cells(row[i]) for row in rows), _MAX_CELL) for i in range(len(rows[0]))]


def _make_line(texts: list[str], widths: list[int], kinds: list[str], right_from: int = 99) -> Line:
    """Return one aligned line, two spaces between cells."""
    pieces = []
    for index, (text, width) in enumerate(zip(texts, widths, strict=True)):
        cell = pad(text, width, right=index >= right_from)
        pieces.append(Piece(f"{cell}  ", kinds[index]))
    last = pieces[-1]
    return Line((*pieces[:-1], last._replace(text=last.text.rstrip())))
