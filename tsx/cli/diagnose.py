"""`tsx diagnose`: what was found to be wrong with a run or with weights, where, why, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer

EXAMPLES = (
    "tsx diagnose @last",
    "tsx diagnose sanity --json",
    "tsx diagnose @last --fail-on warning",
    "tsx diagnose --checkpoint @last",
    "tsx diagnose --checkpoint before.safetensors after.safetensors",
)


class FailOn(StrEnum):
    """From which severity on a finding is a failure."""

    NONE = "none"
    WARNING = "warning"
    ERROR = "error"


def command(
    run: Annotated[
        str,
        typer.Argument(help="Id, prefix, name, @last or @-2; of weights RUN@STEP or a path, too."),
    ],
    other: Annotated[str, typer.Argument(help="Weights to compare with.")] = "",
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint", help="Compare weights with others, or with how they began."),
    ] = False,
    fail_on: Annotated[
        FailOn,
        typer.Option(help="Exit with status 1 where a finding is of this severity or graver."),
    ] = FailOn.NONE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show what was found to be wrong with a run, with its evidence."""
    if checkpoint or other:
        found = _diagnose_weights(run, other, is_meant=checkpoint, as_json=as_json)
    else:
        found = _diagnose_run(run, as_json=as_json)
    return _judge(found, fail_on)


def _judge(severities: Iterable[str], fail_on: FailOn) -> int:
    """Return the exit status."""
    from tsx.errors import Exit
    from tsx.ink import SEVERITIES

    if fail_on is FailOn.NONE:
        return Exit.OK
    grave = SEVERITIES[SEVERITIES.index(fail_on) :]
    return Exit.FAILED if any(severity in grave for severity in severities) else Exit.OK


def _diagnose_run(run: str, *, as_json: bool) -> list[str]:
    """Show what was found in a run; return the severities."""
    from dataclasses import asdict

    from tsx.cli import output
    from tsx.cli.finding_lines import offer_replay, show_finding
    from tsx.cli.paint import show_heading
    from tsx.cli.reading import open_reader
    from tsx.curves.findings import list_curve_findings

    with open_reader() as reader:
        detail = reader.get_detail(reader.get_run(run).id)
        findings = [*detail.findings, *list_curve_findings(reader, detail)]
    severities = [finding.severity for finding in findings]
    if as_json:
        output.json({"findings": [asdict(finding) for finding in findings]})
        return severities
    if not findings:
        output.talk(f"run {detail.run.id}: nothing was found")
    for index, finding in enumerate(findings):
        if index == len(detail.findings):
            show_heading("from the curves")
        elif index:
            output.data("")
        show_finding(finding)
    offer_replay(detail.run.id)
    return severities


def _diagnose_weights(one: str, other: str, *, is_meant: bool, as_json: bool) -> list[str]:
    """Show what weights tell of their training; return the severities of what was found."""
    from tsx.cli import output, weights_report

    if not is_meant:
        from tsx.errors import ConfigError

        raise ConfigError(
            f"{other!r}: one run at a time is diagnosed; two are compared as weights",
            next_command="tsx diagnose --checkpoint A B",
        )
    from tsx.trainer.weight_comparison import compare_weights

    places = [weights_report.find_place(name) for name in (one, other) if name]
    found = compare_weights(places[0], places[1] if len(places) > 1 else None)
    if as_json:
        output.json(weights_report.to_plain(found))
    else:
        weights_report.show(found)
    return [str(finding.severity) for finding in found.findings]
