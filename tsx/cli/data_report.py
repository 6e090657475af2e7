"""How an inspection of data looks on stdout: tables, oddities, sparklines, a batch.

Shapes: B windows, C context.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tsx.cli import output
from tsx.cli.output import Cell, Column
from tsx.text import count_cells, format_count, format_value

if TYPE_CHECKING:
    from tsx.data.inspect import DataSetReport, Inspection
    from tsx.data.preview import BatchPreview

MAX_SETS = 100  # data sets of a table; --json has all
_MAX_WINDOWS = 8  # of a batch that are listed
_MIN_SPARKLINE, _MARGIN = 16, 20  # cells; the margin is for lengths and the gaps between columns
_CHART_POINTS = 40  # few enough that one point of shift is seen
_HEAD, _BEFORE_EDGE, _AFTER_EDGE = 6, 3, 3  # places of a window that are printed


def show_inspection(found: Inspection) -> None:
    """Print data sets, domains, oddities and sparklines."""
    from tsx.data.tally import HUGE

    if not found.datasets:
        return
    output.data(
        f"{output.clean(found.path)}: windows of {found.context_length} points and a target, "
        f"a start every {found.stride}"
    )
    output.data("")
    _show_table("data set", [(report.name, [report]) for report in found.datasets])
    domains: dict[str, list[DataSetReport]] = {}
    for report in found.datasets:
        domains.setdefault(report.domain, []).append(report)
    if len(found.datasets) > 1:
        output.data("")
        _show_table("domain", [*sorted(domains.items()), ("all", list(found.datasets))])
    remarks = [line for report in found.datasets for line in _list_oddities(report)]
    sound = f"every point is finite and at most {HUGE:g} in size; no series is constant"
    output.data("")
    for line in remarks[:MAX_SETS] or [sound]:
        output.data(output.clean(line), style="warning" if remarks else "")
    _show_samples(found)


def _show_table(head: str, rows: list[tuple[str, list[DataSetReport]]]) -> None:
    """Print one line for each group of data sets."""
    names = (head, "series", "points", "shortest", "longest", "windows", "padding", "unused")
    columns = [Column(names[0]), *(Column(name, right=True) for name in names[1:])]
    cells = []
    for name, reports in rows[:MAX_SETS]:
        windows = sum(report.windows for report in reports)
        padding = sum(report.padding_share * report.windows for report in reports)
        points = sum(report.points for report in reports)
        unused = sum(report.unused_points for report in reports)
        cells.append(
            (
                name,
                f"{sum(report.series for report in reports):,}",
                f"{points:,}",
                f"{min(report.shortest for report in reports):,}",
                f"{max(report.longest for report in reports):,}",
                Cell(f"{windows:,}", "" if windows else "warning"),
                f"{padding / max(windows, 1):.1%}",
                f"{unused / max(points, 1):.1%}",
            )
        )
    output.table(columns, cells)
    if len(rows) > MAX_SETS:
        output.data(f"and {len(rows) - MAX_SETS:,} more; all of them: --json")


def _list_oddities(report: DataSetReport) -> Iterator[str]:
    """Yield a line for each thing that is odd about a data set."""
    from tsx.data.tally import HUGE

    if report.nonfinite:
        yield (
            f"{report.name}: {report.nonfinite:,} points of {report.nonfinite_series:,} series are "
            "not finite"
        )
    if report.constant:
        more = report.constant - len(report.constant_named)
        tail = f" and {more:,} more" if more else ""
        yield f"{report.name}: constant: {', '.join(report.constant_named)}{tail}"
    if report.huge:
        exact = ", beyond what float64 counts exactly (2**53)" if report.largest > 2**53 else ""
        yield (
            f"{report.name}: {report.huge:,} points are beyond {HUGE:g} in size; "
            f"the largest is {format_value(report.largest)}{exact}"
        )
    if report.too_short:
        yield f"{report.name}: {report.too_short:,} series are too short for a target: left out"


def _show_samples(found: Inspection) -> None:
    """Print a sparkline for some series."""
    from tsx.chart import draw_sparkline
    from tsx.cli.paint import find_width
    from tsx.data.inspect import SAMPLE_CELLS

    pairs = [(report.name, sample) for report in found.datasets for sample in report.samples]
    taken = max((count_cells(name + sample.label) for name, sample in pairs), default=0)
    width = max(_MIN_SPARKLINE, min(SAMPLE_CELLS, find_width() - taken - _MARGIN))
    rows = [
        (name, sample.label, f"{sample.length:,}", draw_sparkline(sample.means, width))
        for name, sample in pairs
    ]
    if rows:
        output.data("")
        output.table(["data set", "series", Column("points", right=True), "values"], rows)


def show_batch(preview: BatchPreview) -> None:
    """Print which windows a batch holds, and one or two of them place by place."""
    batch = preview.batch
    count, context = batch.input_BC.shape
    output.data("")
    output.data(
        f"batch {preview.number} of seed {preview.seed}: {count} windows of {context} points, "
        f"out of {preview.num_windows:,}",
        style="strong",
    )
    rows = []
    for row, origin in list(enumerate(preview.origins))[:_MAX_WINDOWS]:
        valid = int(batch.target_mask_BC[row].sum())
        label = origin.dataset.label(origin.series)
        rows.append((row, origin.dataset.name, label, origin.start, f"{valid}/{context}"))
    names = ("row", "data set", "series", "first point", "targets")
    output.table([Column(name, right=name not in names[1:3]) for name in names], rows)
    if count > _MAX_WINDOWS:
        output.data(f"and {count - _MAX_WINDOWS} more")
    partial = [row for row in range(count) if not batch.target_mask_BC[row].all()]
    for row in dict.fromkeys([0, *partial[:1]]):
        _show_window(preview, row)
    output.data("")
    if not preview.num_unequal:
        output.data(
            f"shift: target t is input t+1 at all {preview.num_compared:,} places of the batch "
            "where both are points",
            style="good",
        )


def _show_window(preview: BatchPreview, row: int) -> None:
    """Draw and print input, target and masks of one window."""
    from tsx.chart import Curve, Frame
    from tsx.cli.charts import show_curves

    batch = preview.batch
    input_C, target_C = batch.input_BC[row].tolist(), batch.target_BC[row].tolist()
    input_mask_C = batch.input_mask_BC[row].tolist()
    target_mask_C = batch.target_mask_BC[row].tolist()
    shown = min(len(input_C), _CHART_POINTS)
    curves = [
        Curve(
            name,
            range(shown),
            [value if known else float("nan") for value, known in zip(values, mask, strict=True)][
                :shown
            ],
        )
        for name, values, mask in (
            ("input", input_C, input_mask_C),
            ("target", target_C, target_mask_C),
        )
    ]
    output.data("")
    show_curves(curves, Frame(title=f"row {row}, first {format_count(shown)} places", x_label="t"))
    # The first target that is none, by padding or because it is not finite; else the end.
    edge = next((place for place, known in enumerate(target_mask_C) if not known), len(input_C))
    places = [*range(_HEAD), *range(edge - _BEFORE_EDGE, edge + _AFTER_EDGE)]
    rows: list[tuple[str, ...]] = []
    before = -1
    for place in sorted({place for place in places if 0 <= place < len(input_C)}):
        if place != before + 1:
            rows.append(("...", "", "", "", ""))
        rows.append(
            (
                str(place),
                format_value(input_C[place]),
                "1" if input_mask_C[place] else "0",
                format_value(target_C[place]),
                "1" if target_mask_C[place] else "0",
            )
        )
        before = place
    names = ("t", "input", "input mask", "target = input t+1", "target mask")
    output.table([Column(name, right=True) for name in names], rows)
