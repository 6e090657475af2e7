"""What a finding is worth: a plant's own kind, module, line and cause against those it names.

Strict on purpose. The first finding of the plant's kind counts, and it must be as loud as a fault
has to be: a warning, unless the plant is an info. Equal findings, told again with a higher count,
are one. The module must be equal, "" included; a key of a config is no module. The line
counts where the plant has one, and the cause is right if its `mechanism` is the plant's, or one
that the plant lists as a right answer too. A fault that is not detected has none of them right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from registry.events import Finding, Severity
from tests.faults.plant import Plant
from tests.faults.watched import list_alarms

LIMITS = {"detected": 0.95, "module": 0.90, "line": 0.90, "cause": 0.85}  # of all plants
HEAD = ("kind", "plants", *LIMITS, "blind", *LIMITS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one plant was answered.

    Attributes:
        name: of the plant.
        kind: that should be found.
        blind: the plant was written without knowledge of any detector.
        detected: a finding of the kind was made.
        module, line, cause: it is right; line is None where the plant has none.
        others: alarms beside the first finding of the kind: one fault should be one finding.
        wanted: module, line and mechanism, as text.
        found: what was said at the top of its voice, as texts.
        error: that stopped the loop and was none of the plant's.
    """

    name: str
    kind: str
    blind: bool
    detected: bool
    module: bool
    line: bool | None
    cause: bool
    others: int = 0
    wanted: str = ""
    found: tuple[str, ...] = ()
    error: str = ""

    @property
    def is_right(self) -> bool:
        """Return whether nothing is left to wish for."""
        return self.detected and self.module and self.cause and self.line is not False

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def judge(plant: Plant, findings: Sequence[Finding], *, error: str = "") -> Verdict:
    """Return what the findings of a plant's run are worth."""
    is_info = plant.severity == Severity.INFO
    told = _drop_repeats(findings)
    loud = told if is_info else list_alarms(told)
    first = next((finding for finding in loud if finding.kind == plant.kind), None)
    line = f"{Path(plant.path).name}:{plant.line}" if plant.marker else ""
    mechanisms = (plant.mechanism, *plant.also)
    return Verdict(
        name=plant.name,
        kind=plant.kind,
        blind=plant.blind,
        detected=first is not None,
        module=first is not None and get_module(first) == plant.module,
        line=(first is not None and get_line(first) == line) if line else None,
        cause=first is not None and first.evidence.get("mechanism") in mechanisms,
        others=len([finding for finding in list_alarms(told) if finding is not first]),
        wanted=_write(plant.kind, plant.module, line, " or ".join(mechanisms)),
        found=tuple(
            _write(f.kind, f.module, get_line(f), str(f.evidence.get("mechanism", "")))
            for f in loud
        ),
        error=error,
    )


def get_module(finding: Finding) -> str:
    """Return the module that a finding names; one about a config names a key of it."""
    return "" if finding.phase == "config" else finding.module


def get_line(finding: Finding) -> str:
    """Return file and line that a finding names, without the folder."""
    path, _, line = finding.where.rpartition(":")
    return f"{Path(path).name}:{line}" if path else ""


def write_table(verdicts: Sequence[Verdict]) -> str:
    """Return a table by kind, with all and with the blind ones in percent below it."""
    kinds = sorted({verdict.kind for verdict in verdicts})
    rows = [_count_row(kind, [v for v in verdicts if v.kind == kind]) for kind in kinds]
    rows.append(_share_row("**all**", verdicts))
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def measure_shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the share of the plants of which each thing is right; 1 where there is none."""
    shares = {}
    for name in LIMITS:
        answers = _list_answers(verdicts, name)
        shares[name] = sum(answers) / len(answers) if answers else 1.0
    return shares


def list_missed_limits(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the names of the shares that are under their limit."""
    shares = measure_shares(verdicts)
    return [name for name, limit in LIMITS.items() if shares[name] < limit]


def write_misses(verdicts: Sequence[Verdict]) -> str:
    """Return a line for every plant not answered right, or with more than one alarm."""
    lines = []
    for verdict in verdicts:
        if not verdict.is_right or verdict.others:
            found = "; ".join(verdict.found) or "nothing"
            error = f"; stopped by {verdict.error}" if verdict.error else ""
            lines.append(f"- {verdict.name}: wanted {verdict.wanted}; found {found}{error}")
    return "\n".join(lines)


def _drop_repeats(findings: Sequence[Finding]) -> list[Finding]:
    """Return each finding once, though its count was told again."""
    firsts: dict[tuple[str, ...], Finding] = {}
    for finding in findings:
        key = (finding.kind, finding.module, finding.op, finding.where, finding.cause)
        firsts.setdefault(key, finding)
    return list(firsts.values())


def _list_answers(verdicts: Sequence[Verdict], name: str) -> list[bool]:
    """Return the answers to one question, of the plants that have one."""
    answers = [getattr(verdict, name) for verdict in verdicts]
    return [answer for answer in answers if answer is not None]


def _count_row(title: str, verdicts: Sequence[Verdict]) -> list[str]:
    row = [title]
    for some in (verdicts, [verdict for verdict in verdicts if verdict.blind]):
        row.append(str(len(some)) if some else "")
        for name in LIMITS:
            answers = _list_answers(some, name)
            of_all = "" if len(answers) == len(some) else f" of {len(answers)}"
            row.append(f"{sum(answers)}{of_all}" if answers else "")
    return row


def _share_row(title: str, verdicts: Sequence[Verdict]) -> list[str]:
    row = [title]
    for some in (verdicts, [verdict for verdict in verdicts if verdict.blind]):
        shares = measure_shares(some)
        row += [str(len(some)), *(f"{100 * shares[name]:.1f} %" for name in LIMITS)]
    return row


def _write(kind: str, module: str, line: str, mechanism: str) -> str:
    return " ".join(part for part in (kind, mechanism, f"[{module}]", line) if part)
