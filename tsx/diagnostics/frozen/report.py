"""One finding for all that stands still for one cause, told by classes of parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from registry.events import Severity
from tsx.diagnostics.detector import Scene
from tsx.diagnostics.frozen.causes import Cause
from tsx.diagnostics.frozen.samples import Unit

KIND_NAME = "frozen-param"
MAX_NAMED = 64  # parameters


def report_frozen(
    scene: Scene, found: Sequence[tuple[Unit, Cause]], num_units: int, step: int
) -> None:
    """Report units by cause.

    Args:
        scene: where to report.
        found: units that do not move, and why.
        num_units: of the model that should.
        step: of the last look.
    """
    groups: dict[tuple[str, str, str], list[tuple[Unit, Cause]]] = {}
    for unit, cause in _merge_zero(found):
        groups.setdefault((cause.mechanism, cause.why, cause.where), []).append((unit, cause))
    for group in sorted(groups.values(), key=lambda group: group[0][1].severity is Severity.INFO):
        units = [unit for unit, _ in group]
        cause = group[0][1]
        own = "" if len(units) == num_units else units[0].module
        scene.report(
            KIND_NAME,
            cause.mechanism,
            f"{describe_units(units)}: {cause.why}",
            cause.fix,
            severity=cause.severity,
            step=step,
            phase="optimizer",
            module=own if cause.module is None else cause.module,
            where=cause.where,
            evidence={
                "num_parameters": len(units),
                "classes": dict(Counter(unit.part.role for unit in units).most_common(32)),
                "parameters": [unit.part.name for unit in units[:MAX_NAMED]],
                **cause.evidence,
            },
        )


def describe_units(units: Sequence[Unit]) -> str:
    """Return "49 RMSNorm weights do not move"; one is called by its name."""
    if len(units) == 1:
        return f"{units[0].part.name} does not move"
    classes = Counter(unit.part.role for unit in units).most_common()
    if len(classes) == 1:
        return f"{len(units)} {classes[0][0]} do not move"
    named = ", ".join(f"{count} {role}" for role, count in classes[:4])
    more = ", ..." if len(classes) > 4 else ""
    return f"{len(units)} parameters do not move ({named}{more})"


def _merge_zero(found: Sequence[tuple[Unit, Cause]]) -> list[tuple[Unit, Cause]]:
    """Return units with one cause for all gradients of zero: the place that most of them have.

    What blocks one way to the loss leaves the rest with nothing, and each of them ends elsewhere.
    """
    zero = Counter(cause.where for _, cause in found if cause.mechanism == "zero-gradient")
    if len(zero) < 2:
        return list(found)
    most = zero.most_common(1)[0][0]
    main = next(c for _, c in found if c.mechanism == "zero-gradient" and c.where == most)
    return [(u, main if c.mechanism == "zero-gradient" else c) for u, c in found]
