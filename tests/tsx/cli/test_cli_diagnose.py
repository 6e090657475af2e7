"""`tsx diagnose` as a gate, and the next command that it names."""

from __future__ import annotations

import json

import pytest

from registry.events import Finding, Severity


@pytest.fixture
def found(record):
    """Return a function that records a run with findings of these severities; gives its folder."""

    def make(*severities):
        events = [
            Finding(time=1.0, kind=f"kind-{severity}", severity=severity, cause="a cause")
            for severity in severities
        ]
        return record("aaaaaaaa", "one", {"train/loss": [1.0]}, events=events)

    return make


INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


@pytest.mark.parametrize(
    ("severities", "gate", "status"),
    [
        ((ERROR,), (), 0),
        ((ERROR,), ("--fail-on", "none"), 0),
        ((), ("--fail-on", "warning"), 0),
        ((INFO,), ("--fail-on", "warning"), 0),
        ((INFO, WARNING), ("--fail-on", "warning"), 1),
        ((ERROR,), ("--fail-on", "warning"), 1),
        ((WARNING,), ("--fail-on", "error"), 0),
        ((WARNING, ERROR, INFO), ("--fail-on", "error"), 1),
    ],
)
def test_the_gate_is_the_exit_status(tsx, found, severities, gate, status):
    found(*severities)
    shown = tsx("diagnose", "one", *gate)
    plain = tsx("diagnose", "one", *gate, "--json")
    assert (shown.status, plain.status) == (status, status)
    kinds = [finding["kind"] for finding in json.loads(plain.out)["findings"]]
    assert sorted(kinds) == sorted(f"kind-{severity}" for severity in severities)
    assert all(kind in shown.out for kind in kinds)


def test_what_a_curve_tells_counts_too(tsx, record):
    loss = [3.0 * 0.99**step for step in range(200)]
    record("aaaaaaaa", "one", {"train/loss": [*loss[:150], float("nan")]})
    done = tsx("diagnose", "one", "--fail-on", "error", "--json")
    (told,) = json.loads(done.out)["findings"]
    assert (done.status, told["kind"], told["severity"]) == (1, "nan-onset", "error")


def test_a_severity_that_is_none_is_refused(tsx, found):
    found(ERROR)
    done = tsx("diagnose", "one", "--fail-on", "bad")
    assert (done.status, done.out) == (2, "")
    assert "--fail-on" in done.err


@pytest.mark.parametrize("verb", ["diagnose", "show"])
def test_replay_is_named_where_there_is_something_to_replay(tsx, found, verb):
    folder = found(ERROR)
    assert "replay" not in tsx(verb, "one").err
    dump = folder / "dumps" / "step-00000004"
    dump.mkdir(parents=True)
    assert "replay" not in tsx(verb, "one").err
    (dump / "dump.json").write_text("{}")
    done = tsx(verb, "one")
    assert (done.status, done.err) == (0, "next: tsx replay aaaaaaaa\n")
