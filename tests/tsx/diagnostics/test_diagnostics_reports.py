"""One fault, one finding: what another explains is not told."""

from __future__ import annotations

import pytest

from registry.events import Finding, Severity
from tsx.diagnostics.reports import Reports

pytestmark = pytest.mark.trainer


def make(kind, *, severity=Severity.WARNING, module=""):
    return Finding(time=1.0, kind=kind, severity=severity, module=module, cause=f"of {kind}")


@pytest.mark.parametrize("is_later", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (make("mask-audit"), make("plateau"), ["mask-audit"]),
        (make("mask-audit", module="a"), make("frozen-param", module="a.q"), ["mask-audit"]),
        (
            make("mask-audit", module="a"),
            make("frozen-param", module="b"),
            ["mask-audit", "frozen-param"],
        ),
        (
            make("mask-audit", severity=Severity.INFO),
            make("plateau"),
            ["mask-audit", "plateau"],
        ),
        (make("plateau"), make("lr"), ["plateau", "lr"]),
    ],
)
def test_what_is_explained_is_not_told(first, second, told, is_later):
    heard = []
    reports = Reports(heard.append)
    reports.add(first)
    if is_later:
        reports.flush()
    reports.add(second)
    reports.close()
    expected = told if is_later or first.kind != "plateau" else ["lr"]
    assert [finding.kind for finding in heard] == expected
    if len(expected) < 2 and not is_later:
        assert len(heard[0].evidence["also"]) == 1
