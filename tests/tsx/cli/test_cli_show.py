"""tsx show."""

import json
import math

import pytest

from registry.events import Artifact, Finding, Histogram, Output, Severity, Status

EVIL = "\x1b[31m[bold]x[/bold]\u202e"
STAMP = 1_700_000_030.0


@pytest.fixture
def shown(record):
    """Record one run with a little of everything."""
    finding = Finding(
        time=STAMP,
        kind="nan-origin",
        severity=Severity.ERROR,
        step=3,
        phase="forward",
        module="blocks.3",
        where="attention.py:123",
        cause="bool mask inverted",
        fix="pass True where a key may be attended",
    )
    lint = Finding(time=STAMP, kind="config-lint", severity=Severity.INFO, cause=f"hint {EVIL}")
    best = {"best": True, "val_loss": 1.0}
    file = Artifact(time=STAMP, kind="checkpoint", path="checkpoints/step-3", step=3, metadata=best)
    out = Output(time=STAMP, stream="stdout", text=f"line one\n{EVIL}\n")
    err = Output(time=STAMP, stream="stderr", text="oh no\n", dropped_bytes=12)
    curves = {"train/loss": [3.0, 1.0, math.nan], "val/loss": [2.0, 1.5], "train/mfu": [5.0, 9.0]}
    record(
        "aaaaaaaa",
        "one",
        curves,
        config={"optim": {"lr": 0.5}},
        command=("tsx", "run", "sanity"),
        git_diff="+a\n-b",
        events=(lint, finding, file, out, err),
        ending={"status": Status.DIVERGED, "reason": f"loss is NaN {EVIL}"},
    )


def test_json_has_exactly_the_agreed_keys(tsx, shown):
    done = tsx("show", "one", "--json")
    assert done.status == 0
    plain = json.loads(done.out)
    assert list(plain) == ["run", "config", "environment", "metrics", "findings", "artifacts"]
    assert plain["run"]["id"] == "aaaaaaaa"
    assert plain["run"]["status"] == "diverged"
    assert plain["run"]["resumes"] == []
    assert plain["config"]["optim"]["lr"] == 0.5
    assert plain["environment"]["command"] == ["tsx", "run", "sanity"]
    loss = plain["metrics"]["train/loss"]
    assert (loss["last"], loss["min"], loss["max"], loss["count"]) == ("NaN", 1.0, 3.0, 3)
    assert [finding["kind"] for finding in plain["findings"]] == ["config-lint", "nan-origin"]
    assert plain["findings"][1]["where"] == "attention.py:123"
    assert plain["artifacts"][0]["path"] == "checkpoints/step-3"


@pytest.mark.parametrize("reference", ["aaaaaaaa", "aa", "one", "@last", "@-1"])
def test_a_run_is_named_in_every_way(tsx, shown, reference):
    assert json.loads(tsx("show", reference, "--json").out)["run"]["id"] == "aaaaaaaa"


def test_people_see_everything_from_top_to_bottom(tsx, shown):
    done = tsx("show", "one")
    assert done.status == 0
    places = [
        done.out.index(part)
        for part in (
            "one  aaaaaaaa",
            "✗ diverged  loss is NaN",
            "loss  ━ train NaN",
            "findings",
            "✗ nan-origin  step 3  forward  attention.py:123",
            "bool mask inverted",
            "→ pass True where a key may be attended",
            "· config-lint",
            "metrics",
            "train/mfu",
            "config, where it is not the default",
            "optim.lr  0.5  default 0.001",
            "environment",
            "tsx run sanity",
            "2 lines, not committed",
            "files",
            "checkpoints/step-3",
        )
    ]
    assert places == sorted(places)
    assert "\N{MULTIPLICATION SIGN}" in done.out


def test_best_is_the_lowest_loss_and_the_highest_speed(tsx, shown):
    rows = {line.split()[0]: line.split() for line in tsx("show", "one").out.splitlines() if line}
    assert rows["train/loss"][1:4] == ["NaN", "1", "2"]
    assert rows["train/mfu"][1:4] == ["9", "9", "2"]


def test_hostile_text_is_inert(tsx, shown):
    for flags in ((), ("--output",), ("--json",)):
        done = tsx("show", "one", *flags)
        assert (done.out + done.err).replace("\n", "").isprintable()


def test_captured_output_is_data_and_its_streams_are_talk(tsx, shown):
    done = tsx("show", "one", "--output")
    assert done.out == "line one\n␛[31m[bold]x[/bold]\\u202e\noh no\n"
    assert "--- stdout ---" in done.err
    assert "12 bytes of stderr were not kept" in done.err


def test_a_run_without_output_says_so(tsx, record):
    record("bbbbbbbb", "silent", {})
    done = tsx("show", "silent", "--output")
    assert (done.status, done.out) == (0, "")
    assert "no captured output" in done.err


def test_a_run_without_anything_is_shown(tsx, record):
    record("bbbbbbbb", "bare", {}, ending={"status": Status.FAILED, "reason": "no data"})
    done = tsx("show", "bare")
    assert done.status == 0
    assert "No metrics yet." in done.out
    assert "Every key is at its default." in done.out


def test_an_unknown_run_names_the_nearest(tsx, shown, record):
    record("bbbbbbbb", "baseline", {})
    done = tsx("show", "baselin")
    assert done.status == 1
    assert "baselin" in done.err
    assert "baseline" in done.err
    assert done.out == ""


@pytest.mark.parametrize("reference", ["@-9", "@", "@x", "", "nothing", "'; drop table runs"])
def test_references_to_nothing_fail_without_a_trace(tsx, shown, reference):
    done = tsx("show", reference)
    assert done.status == 1
    assert "Traceback" not in done.err


def test_the_newest_histogram_of_each_key_is_shown(tsx, record):
    events = [
        Histogram(time=STAMP, step=step, key=f"w{EVIL}", edges=(0.0, 1.0, 3.0), counts=(step, 2))
        for step in (1, 8)
    ]
    record("aaaaaaaa", "one", {"train/loss": [1.0]}, events=events, project="vision")
    shown = tsx("show", "one").out
    assert "project vision" in shown
    assert "0 .. 3" in shown
    assert "10 values  step 8" in shown
    assert shown.replace("\n", "").isprintable()
    plain = json.loads(tsx("show", "one", "--json").out)
    assert plain["run"]["project"] == "vision"
    assert plain["histograms"][f"w{EVIL}"]["counts"] == [8, 2]
