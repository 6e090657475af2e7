"""`tsx diagnose RUN`: what was found to be wrong with a run, where, why, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from registry.views import FindingRow

EXAMPLES = ("tsx diagnose @last", "tsx diagnose sanity --json")


def command(
    run: Annotated[str, typer.Argument(help="Id, unique prefix, name, @last or @-2.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what was found to be wrong with a run, with its evidence."""
    from dataclasses import asdict

    from tsx.cli import output
    from tsx.cli.paint import show_heading
    from tsx.cli.reading import open_reader
    from tsx.curves.findings import list_curve_findings

    with open_reader() as reader:
        detail = reader.get_detail(reader.get_run(run).id)
        findings = [*detail.findings, *list_curve_findings(reader, detail)]
    if as_json:
        output.json({"findings": [asdict(finding) for finding in findings]})
        return
    if not findings:
        output.talk(f"run {detail.run.id}: nothing was found")
    for index, finding in enumerate(findings):
        if index == len(detail.findings):
            show_heading("from the curves")
        elif index:
            output.data("")
        _show_finding(finding)


def _show_finding(finding: FindingRow) -> None:
    """Show one finding and what it rests on."""
    from tsx.cli.output import clean
    from tsx.cli.paint import find_width, show_lines
    from tsx.compare.configdiff import show_value
    from tsx.ink import Line, Piece
    from tsx.pages import list_finding_lines
    from tsx.text import pad

    show_lines(list_finding_lines([finding], find_width()))
    known = {"op": finding.op, **finding.evidence}
    shown = {key: value for key, value in known.items() if value not in ("", None, [], {})}
    show_lines(
        Line(
            (
                Piece(f"    {pad(clean(key, limit=40), 26)}", "muted"),
                Piece(clean(show_value(value), limit=300), "text"),
            )
        )
        for key, value in shown.items()
    )
