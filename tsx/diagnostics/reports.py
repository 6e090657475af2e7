"""One fault, one finding: what detectors report, sorted, counted and said once.

Reports wait until the end of a step. Where one kind explains another at the same place (NaN from a
mask explains the loss that jumps), the explaining one is emitted, the other is in its evidence
under "also". One that comes later is counted into nothing: it was explained. Equal findings are
emitted once and counted; the count is emitted when it has doubled, and at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from registry.events import Event, Finding, Severity
from tsx.diagnostics.module_names import is_related

# kind -> what it explains at the same module, at modules below it, or where either names none.
EXPLAINS: dict[str, frozenset[str]] = {
    "nan-origin": frozenset({"non-finite", "loss-spike", "update-ratio", "init-scale"}),
    "attention-axis": frozenset({"mask-audit", "future-leak", "batch-leak"}),
    "mask-audit": frozenset({"future-leak", "loss-at-init", "frozen-param", "plateau"}),
    "target-shift": frozenset({"future-leak", "loss-at-init", "overfit"}),
    "data-quality": frozenset({"loss-spike", "loss-at-init", "init-scale", "update-ratio"}),
    "loss-contract": frozenset({"loss-at-init", "plateau", "data-quality", "overfit"}),
    "init-scale": frozenset({"loss-at-init", "loss-spike", "plateau", "update-ratio"}),
    "accumulation": frozenset({"loss-spike", "update-ratio", "plateau"}),
    "router": frozenset({"aux-scale"}),
    "frozen-param": frozenset({"plateau", "overfit"}),
    "lr": frozenset({"plateau", "loss-spike", "update-ratio", "frozen-param", "overfit"}),
    "update-ratio": frozenset({"loss-spike", "plateau"}),
    "recompile-limit": frozenset({"recompile", "throughput"}),
    "recompile": frozenset({"throughput"}),
    "graph-break": frozenset({"throughput", "recompile"}),
    "dtype-mismatch": frozenset({"upcast"}),
    "repeated-data": frozenset({"plateau", "throughput"}),
    "oom": frozenset({"throughput"}),
}
# (kind, mechanism) -> what it explains beside.
EXPLAINS_BESIDE: dict[tuple[str, str], frozenset[str]] = {
    ("frozen-param", "no-tokens"): frozenset({"router"}),
    ("router", "collapse"): frozenset({"frozen-param"}),
    ("router", "dropped-tokens"): frozenset({"batch-leak", "future-leak"}),
    ("router", "collapse-hidden-by-sum"): frozenset({"frozen-param"}),
}
MAX_FINDINGS = 200  # different ones of a run


class _Key(NamedTuple):
    """What makes two findings one."""

    kind: str
    module: str
    op: str
    where: str
    cause: str


class Reports:
    """Takes findings; emits each once.

    Args:
        emit: gets what is to be recorded.
        tell: gets a finding that is new, to be said aloud.
    """

    def __init__(
        self, emit: Callable[[Event], None], tell: Callable[[Finding], None] | None = None
    ) -> None:
        self._emit = emit
        self._tell = tell
        self._waiting: list[Finding] = []
        self._said: dict[_Key, Finding] = {}
        self._unsaid: dict[_Key, int] = {}
        self._counts: dict[_Key, int] = {}
        self._is_closed = False
        self.is_pending = False

    def add(self, finding: Finding) -> None:
        """Take a finding; it is emitted by `flush`, after `close` at once."""
        self._waiting.append(finding)
        self.is_pending = True
        if self._is_closed:  # of a value that arrived from a device after the last step
            self.flush()

    def note(self, finding: Finding) -> None:
        """Take one that was emitted already: it explains others."""
        self._said.setdefault(_get_key(finding), finding)

    def flush(self) -> None:
        """Emit what was added and is not explained by something else."""
        waiting, self._waiting = self._waiting, []
        self.is_pending = False
        new: dict[_Key, Finding] = {}
        for finding in waiting:
            key = _get_key(finding)
            if key in self._said:
                self._count(key, finding.count)
            elif key in new:
                self._unsaid[key] = self._unsaid.get(key, 0) + finding.count
            else:
                new[key] = finding
        also: dict[_Key, list[str]] = {}
        for key, finding in list(new.items()):
            if any(explains(other, finding) for other in self._said.values()):
                del new[key]
                continue
            for other_key, other in new.items():
                if other_key != key and explains(other, finding):
                    also.setdefault(other_key, []).append(f"{finding.kind}: {finding.cause}"[:300])
                    del new[key]
                    break
        for key, finding in new.items():
            if len(self._said) >= MAX_FINDINGS:
                break
            if key in also:
                evidence = {**finding.evidence, "also": also[key][:8]}
                finding = msgspec.structs.replace(finding, evidence=evidence)
            self._said[key] = finding
            self._counts[key] = finding.count
            self._emit(finding)
            if self._tell is not None:
                self._tell(finding)

    def close(self) -> None:
        """Emit what waits, and the counts that were not emitted yet."""
        self._is_closed = True
        self.flush()
        for key in list(self._unsaid):
            self._say_count(key)

    def _count(self, key: _Key, count: int) -> None:
        """Count an equal one; say so when the count has doubled."""
        self._unsaid[key] = self._unsaid.get(key, 0) + count
        if self._unsaid[key] >= self._counts.get(key, 1):
            self._say_count(key)

    def _say_count(self, key: _Key) -> None:
        unsaid = self._unsaid.pop(key, 0)
        finding = self._said.get(key)
        if unsaid and finding is not None:
            self._counts[key] = self._counts.get(key, 0) + unsaid
            self._emit(msgspec.structs.replace(finding, count=unsaid))


def explains(one: Finding, other: Finding) -> bool:
    """Return whether a finding makes another one superfluous; a remark explains no fault."""
    if one.severity is Severity.INFO and other.severity is not Severity.INFO:
        return False
    known = EXPLAINS.get(one.kind, frozenset()) | EXPLAINS_BESIDE.get(
        (one.kind, str(one.evidence.get("mechanism", ""))), frozenset()
    )
    if other.kind not in known:
        return False
    alike = one.evidence.get("modules")  # where the same fault stands as well
    places = [one.module, *(alike if isinstance(alike, list) else ())]
    return not one.module or not other.module or any(is_related(other.module, p) for p in places)


def _get_key(finding: Finding) -> _Key:
    return _Key(finding.kind, finding.module, finding.op, finding.where, finding.cause)
