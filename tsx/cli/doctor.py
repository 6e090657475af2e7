"""`tsx doctor RECIPE`: the preflight of a run alone, in seconds; nothing is trained or recorded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from tsx.cli import output
from tsx.cli.run import DeviceFlag, SetFlag, SmokeFlag, name_path

if TYPE_CHECKING:
    from pathlib import Path

    from registry.events import Finding
    from registry.views import FindingRow
    from tsx.config import RunConfig

EXAMPLES = ("tsx doctor patch-probe", "tsx doctor sanity --set optim.warmup_steps=10000 --json")


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or path; see `tsx recipes`.")],
    overrides: SetFlag = None,
    device: DeviceFlag = "",
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Series to train on.")] = None,
    smoke: SmokeFlag = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Look for faults in a recipe before it is trained, in seconds.

    Reads config and data, builds the model, looks at every operation of one small step and probes
    what the model sees. Exit status 1 where a warning or worse was found.
    """
    from dataclasses import asdict

    from registry.connection import find_home
    from registry.events import Severity
    from tsx.cli.expansion import expand_recipe
    from tsx.errors import Exit

    asked = list(overrides or [])
    asked += [f"train.device={device}"] if device else []
    asked += [f"data.path={name_path(data)}", "data.source=auto"] if data is not None else []
    resolved, runs = expand_recipe(recipe, asked, smoke=smoke)
    home = find_home()
    found: list[tuple[str, FindingRow]] = []
    for number, (suffix, config) in enumerate(runs, 1):
        name = f"{resolved.name}{'-' + suffix if suffix else ''}"
        began = time.monotonic()
        findings = list_findings(config, home)
        count = f" ({number} of {len(runs)})" if len(runs) > 1 else ""
        took = time.monotonic() - began
        output.talk(f"{name}{count}: {len(findings)} found in {took:.1f} s")
        found += [(name, to_row(finding)) for finding in findings]
    if as_json:
        output.json({"findings": [asdict(row) | {"run": name} for name, row in found]})
    else:
        _show([row for _, row in found], f"tsx run {recipe}")
    is_ill = any(row.severity != Severity.INFO for _, row in found)
    return Exit.FAILED if is_ill else Exit.OK


def list_findings(config: RunConfig, home: Path) -> list[Finding]:
    """Return what the preflight of one run finds."""
    from registry.events import Finding
    from tsx.launch.rehearse import iter_rehearsal

    events = iter_rehearsal(config, home, examine=True)
    return [event for event in events if isinstance(event, Finding)]


def to_row(finding: Finding) -> FindingRow:
    """Return a finding as readers of the registry have it."""
    from dataclasses import fields

    from registry.views import FindingRow

    return FindingRow(**{field.name: getattr(finding, field.name) for field in fields(FindingRow)})


def _show(findings: list[FindingRow], next_command: str) -> None:
    """Show findings as `tsx diagnose` does; equal ones of several runs once."""
    from tsx.cli.finding_lines import show_findings

    if not findings:
        output.data(f"nothing was found; next: {next_command}")
        return
    rows: dict[tuple[str, ...], FindingRow] = {}
    for row in findings:
        rows.setdefault((row.kind, row.module, row.where, row.cause), row)
    show_findings(list(rows.values()))
