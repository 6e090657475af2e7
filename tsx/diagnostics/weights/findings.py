"""What the measures of `tsx.diagnostics.weights.audit` mean: one finding per class and cause.

A cause is said where weights, or the optimizer's state beside them, can tell it, and is left open
where they cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from registry.events import Finding, Severity
from tsx.diagnostics.weights.audit import Measured, Weights, name_dtype
from tsx.diagnostics.weights.roles import STATISTICS
from tsx.diagnostics.weights.shadow import KEEP_FP32, explain_standing

WILD = 3.0  # relative change: the diary's 300 to 400 %
SMALL_START = 0.5  # of 1/sqrt(fan-in): what starts smaller is soon another weight altogether
SHRUNK = 0.1  # of the norm at the start: it is on its way to nothing
MOST = 0.9  # of the elements: below that, part of a tensor stands still
LOUD, QUIET = 6.0, 0.01  # rms * sqrt(fan-in): randn draws are above, lost fan-ins far below
MAX_NAMES = 8
UNKNOWN_FIX = (
    "look at requires_grad, at the optimizer's parameter groups and at the gradient of one of "
    "these: run.watch(model, optimizer) names the cause as it trains"
)


@dataclass(frozen=True, slots=True)
class _Case:
    """What a finding about a class says, apart from the class."""

    kind: str
    mechanism: str
    severity: Severity
    says: str  # goes after "49 of 49 RMSNorm weights "
    fix: str
    evidence: dict[str, Any]


def list_findings(
    measured: list[Measured], weights: Weights, other: Weights | None, *, time: float
) -> list[Finding]:
    """Return what is to be said, class by class.

    Args:
        measured: of `weights` beside `other`.
        weights: what is judged.
        other: what it is compared with.
        time: UTC seconds, for the findings.
    """
    say = _Speaker(measured, weights, time)
    for role, members in _group(measured, lambda one: one.part.role).items():
        say.broken(role, members)
        say.zero(role, members)
        say.scale(role, [one for one in members if not one.nonfinite])
    compared = [one for one in measured if one.changed is not None and one.elements]
    if other is None or not compared:
        return say.findings
    say.dtypes(compared)
    if all(one.is_frozen for one in compared):
        say.nothing_changed(len(compared), other)
        return say.findings
    for role, members in _group(compared, lambda one: one.part.role).items():
        if role.startswith(STATISTICS):
            continue
        say.frozen(role, members)
        say.partly(role, members)
        say.wild(role, members)
        say.shrunk(role, members)
    return say.findings


class _Collector:
    """Collects findings about one state of a model."""

    def __init__(self, measured: list[Measured], weights: Weights, time: float) -> None:
        self.findings: list[Finding] = []
        self.weights = weights
        self._time = time
        self._totals = {
            role: len(members)
            for role, members in _group(measured, lambda one: one.part.role).items()
        }
        step = weights.step
        self.after = f" after {step:,} steps" if step else ""

    def add(
        self, role: str, group: list[Measured], case: _Case, *, total: int | None = None
    ) -> None:
        """Emit a finding about some tensors of a class, if there are any."""
        if not group:
            return
        of = self._totals.get(role, len(group)) if total is None else total
        count = f"{len(group)}" if len(group) == of else f"{len(group)} of {of}"
        self.emit(
            case.kind,
            case.severity,
            group[0].part.name,
            f"{count} {role} {case.says}",
            case.fix,
            {
                "mechanism": case.mechanism,
                "class": role,
                "count": len(group),
                "of": of,
                "parameters": sum(one.elements for one in group),
                "names": [one.part.name for one in group[:MAX_NAMES]],
                **case.evidence,
            },
        )

    def emit(
        self,
        kind: str,
        severity: Severity,
        module: str,
        cause: str,
        fix: str,
        evidence: dict[str, Any],
    ) -> None:
        self.findings.append(
            Finding(
                time=self._time,
                kind=kind,
                severity=severity,
                step=self.weights.step or 0,
                phase="optimizer" if kind in ("frozen-param", "update-ratio") else "",
                module=module,
                cause=cause,
                evidence=evidence,
                fix=fix,
            )
        )


class _Speaker(_Collector):
    """Knows what each measure means."""

    def broken(self, role: str, members: list[Measured]) -> None:
        """Tell of numbers that are not finite."""
        bad = [one for one in members if one.nonfinite]
        count = sum(one.nonfinite for one in bad)
        case = _Case(
            "non-finite",
            "nonfinite-parameter",
            Severity.ERROR,
            f"hold numbers that are not finite ({count:,} elements)",
            "go on from an earlier checkpoint with a lower learning rate or clipped gradients",
            {"elements": count},
        )
        self.add(role, bad, case)

    def zero(self, role: str, members: list[Measured]) -> None:
        """Tell of matrices that are nothing but zeros; a bias may be."""
        dead = [one for one in members if one.constant == 0 and one.scale is not None]
        case = _Case(
            "init-scale",
            "all-zero",
            Severity.WARNING,
            "are all zero: nothing goes through them",
            "draw them anew; zeros are meant at the end of a residual branch alone",
            {},
        )
        self.add(role, dead, case)

    def scale(self, role: str, members: list[Measured]) -> None:
        """Tell of matrices far from the size that keeps the size of what goes through."""
        judged = [(one, one.scale) for one in members if one.scale]
        loud = [one for one, scale in judged if scale > LOUD]
        quiet = [one for one, scale in judged if scale < QUIET]
        cases = (("no-fan-in", "too large", loud), ("dead", "too small", quiet))
        for mechanism, says, bad in cases:
            if not bad:
                continue
            typical = median(one.scale or 0.0 for one in bad)
            case = _Case(
                "init-scale",
                mechanism,
                Severity.WARNING,
                f"are {says}: their size is {typical:.2g} times 1/sqrt(fan-in)",
                "draw each with a standard deviation near 1/sqrt(fan-in), each expert by itself",
                {"times_inverse_sqrt_fan_in": _round(typical)},
            )
            self.add(role, bad, case)

    def dtypes(self, members: list[Measured]) -> None:
        """Remark that dtypes differ between the two."""
        changed = [o for o in members if o.other_dtype is not None and o.dtype != o.other_dtype]
        for (now, then), group in _group(
            changed, lambda one: (name_dtype(one.dtype), name_dtype(one.other_dtype or one.dtype))
        ).items():
            case = _Case(
                "dtype-mismatch",
                "stored-dtype",
                Severity.INFO,
                f"are {now} here and {then} there; compared in the coarser of the two",
                "keep fp32 parameters and compute in bf16 under autocast"
                if group[0].is_low
                else "",
                {"dtype": now, "other_dtype": then},
            )
            self.add("tensors", group, case, total=len(members))

    def nothing_changed(self, count: int, other: Weights) -> None:
        """Say that both are the same model."""
        mine, theirs = self.weights.step, other.step
        has_trained = mine is not None and theirs is not None and mine != theirs
        self.emit(
            "frozen-param",
            Severity.WARNING if has_trained else Severity.INFO,
            "",
            f"nothing changed: all {count} tensors are bit for bit those of {other.label}",
            UNKNOWN_FIX if has_trained else "",
            {"mechanism": "all-frozen", "count": count, "of": count},
        )

    def frozen(self, role: str, members: list[Measured]) -> None:
        """Tell of tensors that did not move, by cause."""
        still = [one for one in members if one.is_frozen]
        causes = {id(one): explain_standing(one, self.weights) for one in still}
        for mechanism, group in _group(still, lambda one: causes[id(one)].mechanism).items():
            cause = max((causes[id(one)] for one in group), key=lambda cause: cause.weight)
            values = {one.constant for one in group}
            constant = next(iter(values)) if len(values) == 1 else None
            where = "" if constant is None else f": bit for bit {constant}"
            case = _Case(
                "frozen-param",
                mechanism,
                Severity.INFO if mechanism == "no-tokens" else Severity.WARNING,
                f"unchanged{self.after}{where}. {cause.text}",
                cause.fix or UNKNOWN_FIX,
                cause.evidence | ({} if constant is None else {"value": constant}),
            )
            self.add(role, group, case)

    def partly(self, role: str, members: list[Measured]) -> None:
        """Tell of tensors of which a good part stood still."""
        some = [o for o in members if o.changed and o.changed < MOST * o.elements]
        if not some:
            return
        share = sum(one.changed or 0 for one in some) / sum(one.elements for one in some)
        low = all(one.is_low for one in some)
        case = _Case(
            "frozen-param",
            "partly-underflow" if low else "partly",
            Severity.WARNING if low else Severity.INFO,
            f"moved in part{self.after}: {share:.0%} of their elements are another number now"
            + (f"; in {name_dtype(some[0].dtype)} a step under half an ulp is lost" if low else ""),
            KEEP_FP32
            if low
            else "rows that are not used get no gradient; else look for units that are dead",
            {"changed_share": _round(share)},
        )
        self.add(role, some, case)

    def wild(self, role: str, members: list[Measured]) -> None:
        """Tell of tensors that are far from what they were."""
        far = [one for one in members if one.change > WILD and not one.nonfinite]
        if not far:
            return
        changes = sorted((one.change for one in far), reverse=True)
        starts = [one.other_scale for one in far if one.other_scale is not None]
        is_small = bool(starts) and median(starts) < SMALL_START
        why = (
            f"they began small ({median(starts):.2g} times 1/sqrt(fan-in)), so that this is "
            "no sign of a rate too high by itself"
            if is_small
            else "they began at an ordinary size: the learning rate is high for them"
        )
        case = _Case(
            "update-ratio",
            "small-start" if is_small else "rate-too-high",
            Severity.INFO if is_small else Severity.WARNING,
            f"changed by {100 * changes[-1]:.0f} to {100 * changes[0]:.0f} % of their size"
            f"{self.after}: {why}",
            "" if is_small else "look at the loss: where it swings or climbs, lower the rate",
            {
                "largest_change": _round(changes[0]),
                "growth": _round(max(one.growth for one in far)),
            },
        )
        self.add(role, sorted(far, key=lambda one: -one.change), case)

    def shrunk(self, role: str, members: list[Measured]) -> None:
        """Tell of tensors that are nearly gone."""
        gone = [one for one in members if one.growth < SHRUNK and one.constant != 0]
        if not gone:
            return
        case = _Case(
            "update-ratio",
            "shrunk",
            Severity.WARNING,
            f"shrank to {100 * min(one.growth for one in gone):.1f} % of their size{self.after}",
            "take them out of the weight decay, or lower it",
            {"growth": _round(min(one.growth for one in gone))},
        )
        self.add(role, gone, case)


def _group(
    members: Iterable[Measured], key: Callable[[Measured], Any]
) -> dict[Any, list[Measured]]:
    groups: dict[Any, list[Measured]] = {}
    for one in members:
        groups.setdefault(key(one), []).append(one)
    return groups


def _round(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else value
