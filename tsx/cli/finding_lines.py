"""Findings as a terminal shows them, with what they rest on."""

from __future__ import annotations

from collections.abc import Sequence

from registry.views import FindingRow
from tsx.cli import output
from tsx.cli.output import clean
from tsx.cli.paint import find_width, show_lines
from tsx.compare.configdiff import show_value
from tsx.ink import Line, Piece
from tsx.pages import list_finding_lines
from tsx.text import pad


def show_findings(findings: Sequence[FindingRow]) -> None:
    """Show findings, an empty line between two."""
    for index, finding in enumerate(findings):
        if index:
            output.data("")
        show_finding(finding)


def offer_replay(run_id: str) -> None:
    """Name `tsx replay` where the run's folder holds a step to run again."""
    from registry.home import find_home

    kept = (find_home() / "runs" / run_id / "dumps").glob("step-*/dump.json")
    if next(kept, None) is not None:
        output.talk(f"next: tsx replay {run_id}")


def show_finding(finding: FindingRow) -> None:
    """Show one finding and what it rests on."""
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
