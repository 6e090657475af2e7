"""Everything that a run's recorded curves tell by themselves, computed on reading.

Serves any run: trained here, imported, or read from another program's lines. Owns which recorded
finding explains which finding of a curve: one fault is told once, by whoever saw it happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from registry.events import Severity
from registry.queries import Reader
from registry.views import FindingRow, RunDetail
from tsx.curves.losses import find_leaps, find_onset, find_standstill
from tsx.curves.rates import find_misscaled_aux, find_slowdown, find_unreached_rate
from tsx.curves.recorded import Recorded
from tsx.curves.siblings import find_departure

CHECKS: tuple[Callable[[Recorded], Iterator[FindingRow]], ...] = (
    find_onset,
    find_leaps,
    find_unreached_rate,
    find_standstill,
    find_misscaled_aux,
    find_slowdown,
    find_departure,
)
# Kinds that tell the same fault with its place; a curve's own kind always does.
_EXPLAINED_BY = {
    "nan-onset": ("nan-origin", "non-finite"),
    "sibling-jump": ("nan-onset", "loss-spike", "plateau", "nan-origin", "lr"),
    "plateau": ("lr", "frozen-param"),
}
_ANY_STEP = ("plateau", "lr", "aux-scale", "throughput")  # faults of a whole run
_NEAR = 2  # log lines between a fault and the curve that shows it


def list_curve_findings(reader: Reader, detail: RunDetail) -> list[FindingRow]:
    """Return what a run's curves tell beyond its recorded findings, each marked phase "curve"."""
    if not detail.metrics:
        return []
    recorded = Recorded(reader, detail)
    reach = _NEAR * _find_gap(recorded)
    found: list[FindingRow] = []
    for check in CHECKS:
        for finding in check(recorded):
            if not _is_explained(finding, [*detail.findings, *found], reach):
                found.append(finding)
    return found


def _find_gap(recorded: Recorded) -> float:
    """Return the mean number of steps between two values of the loss, or of any key."""
    key = recorded.loss_key or next(iter(recorded.detail.metrics))
    summary = recorded.detail.metrics[key]
    return max(summary.last_step / max(summary.count, 1), 1.0)


def _is_explained(finding: FindingRow, known: Sequence[FindingRow], reach: float) -> bool:
    """Return whether a known finding tells the same fault; a remark explains no more than one."""
    kinds = (finding.kind, *_EXPLAINED_BY.get(finding.kind, ()))
    return any(
        other.kind in kinds
        and (other.severity != Severity.INFO or finding.severity == Severity.INFO)
        and (finding.kind in _ANY_STEP or abs(other.step - finding.step) <= reach)
        for other in known
    )
