"""`tsx diagnose` shows recorded findings first, then what the curves tell by themselves."""

from __future__ import annotations

import json
import math

from registry.events import Finding, Severity

LOSS = [3.0 * 0.99**step for step in range(200)]


def test_findings_of_curves_come_after_the_recorded_ones(record, tsx):
    lint = Finding(time=1.0, kind="config-lint", severity=Severity.INFO, cause="a remark")
    loss = [*LOSS[:150], LOSS[150] * 9, *LOSS[151:]]
    record("aaaaaaaa", "one", {"train/loss": loss}, events=[lint])
    shown = tsx("diagnose", "one")
    assert shown.status == 0
    assert shown.out.index("config-lint") < shown.out.index("from the curves")
    assert shown.out.index("from the curves") < shown.out.index("loss-spike")
    found = json.loads(tsx("diagnose", "one", "--json").out)["findings"]
    assert [(each["kind"], each["phase"]) for each in found] == [
        ("config-lint", ""),
        ("loss-spike", "curve"),
    ]
    assert found[1]["step"] == 151


def test_a_curve_that_a_recorded_finding_explains_is_told_once(record, tsx):
    loss = [*LOSS[:150], *[math.nan] * 50]
    origin = Finding(time=1.0, kind="nan-origin", severity=Severity.ERROR, step=151, cause="log")
    record("aaaaaaaa", "one", {"train/loss": loss}, events=[origin])
    found = json.loads(tsx("diagnose", "one", "--json").out)["findings"]
    assert [each["kind"] for each in found] == ["nan-origin"]


def test_healthy_curves_are_nothing(record, tsx):
    record("aaaaaaaa", "one", {"train/loss": LOSS})
    shown = tsx("diagnose", "one")
    assert "from the curves" not in shown.out
    assert "nothing was found" in shown.err
    assert json.loads(tsx("diagnose", "one", "--json").out) == {"findings": []}
