"""`tsx diagnose RUN`: what was found to be wrong with a run, where, why, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = ("tsx diagnose @last", "tsx diagnose sanity --json")


def command(
    run: Annotated[str, typer.Argument(help="Id, unique prefix, name, @last or @-2.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what was found to be wrong with a run, with its evidence."""
    from dataclasses import asdict

    from tsx.cli import output
    from tsx.cli.finding_lines import show_finding
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
        show_finding(finding)
