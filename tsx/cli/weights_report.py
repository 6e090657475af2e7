"""How `tsx diagnose --checkpoint` finds what is meant and shows what weights tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsx.cli import output
from tsx.cli.output import Cell, Column

if TYPE_CHECKING:
    from tsx.diagnostics.weights.audit import ClassRow
    from tsx.trainer.weight_comparison import Comparison, Place

_WHICH = re.compile(r"last|best|[0-9]{1,18}")


def find_place(reference: str) -> Place:
    """Return where the weights lie that a path, RUN or RUN@STEP means.

    Raises:
        UnknownRun: neither a path nor a run.
    """
    from registry.connection import find_home
    from tsx.cli.reading import open_reader
    from tsx.trainer.weight_comparison import Place

    path = Path(reference).expanduser()
    if reference and path.exists():
        return Place(path.resolve())
    run, at, which = reference.rpartition("@")
    is_split = bool(at and run and _WHICH.fullmatch(which))
    with open_reader() as reader:
        run_id = reader.get_run(run if is_split else reference).id
    folder = find_home() / "runs" / run_id
    return Place(folder, which if is_split else "last")


def to_plain(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data for JSON."""
    from dataclasses import asdict

    from msgspec import to_builtins

    findings = [to_builtins(finding) for finding in found.findings]
    for finding in findings:
        finding.pop("type", None)
    return {
        "checkpoint": found.label,
        "compared_with": found.other or None,
        "step": found.step,
        "remarks": list(found.remarks),
        "findings": findings,
        "classes": [asdict(row) for row in found.classes],
    }


def show(found: Comparison) -> None:
    """Print the classes as a table, then the findings."""
    from tsx.cli.paint import find_width, show_lines
    from tsx.pages import list_finding_lines

    beside = f" beside {found.other}" if found.other else ""
    output.data(f"{output.clean(found.label)}{output.clean(beside)}", style="strong")
    for remark in found.remarks:
        output.data(f"  {output.clean(remark)}", style="dim")
    output.data("")
    _show_classes(found)
    output.data("")
    if not found.findings:
        output.talk("nothing was found")
        return
    show_lines(list_finding_lines(_list_rows(found), find_width()))


def _show_classes(found: Comparison) -> None:
    columns = [Column("class"), *(Column(n, right=True) for n in ("tensors", "elements"))]
    columns += [Column("dtype"), Column("size/fan-in", right=True)]
    if found.other:
        names = ("unchanged", "elements moved", "median change", "largest")
        columns += [Column(name, right=True) for name in names]
    output.table(columns, [_make_cells(row, has_other=bool(found.other)) for row in found.classes])


def _make_cells(row: ClassRow, *, has_other: bool) -> list[Cell | str]:
    cells: list[Cell | str] = [
        row.name,
        f"{row.tensors:,}",
        f"{row.elements:,}",
        row.dtype,
        "-" if row.scale is None else f"{row.scale:.2g}",
    ]
    if has_other:
        unchanged = "-" if row.unchanged is None else f"{row.unchanged:,}"
        cells.append(Cell(unchanged, "warning") if row.unchanged else unchanged)
        for share in (row.changed_share, row.median_change, row.largest_change):
            cells.append("-" if share is None else f"{100 * share:.3g} %")
    return cells


def _list_rows(found: Comparison) -> list[Any]:
    """Return the findings as stored ones look."""
    from msgspec import structs

    from registry.views import FindingRow

    rows = []
    for finding in found.findings:
        fields = structs.asdict(finding)
        fields.pop("inbox_end", None)
        fields["severity"] = str(finding.severity)
        rows.append(FindingRow(**fields))
    return rows
