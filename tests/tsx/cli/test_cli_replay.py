"""tsx replay: its verdict, its exit status, and what it refuses."""

from __future__ import annotations

import json

import pytest

from registry.sinks import ListSink
from tests.faults import plant as plants
from tests.faults.embedded import train_planted


@pytest.fixture
def planted(record):
    """Record a run, and train a planted fault in its folder; return the plant."""
    folder = record("aaaaaaaa", "one", {"train/loss": [1.0]})
    plant = next(plant for plant in plants.list_plants() if plant.name == "tsx-half-router")
    train_planted(plant, folder, ListSink())
    return plant


def test_not_finite_again_is_status_4_and_finite_now_is_0(tsx, planted):
    with planted.patch():
        done = tsx("replay", "one")
    assert done.status == 4
    assert done.out.startswith("step 1 is not finite again\n")
    assert "nan-origin" in done.out
    assert "blocks.0.moe.router" in done.out
    done = tsx("replay", "one")
    assert (done.status, "does not show again" in done.out) == (0, True)


def test_what_was_changed_is_said(tsx, planted):
    with planted.patch():
        done = tsx("replay", "one", "--set", "model.norm_eps=0.001")
    assert done.status == 4
    assert "still not finite with model.norm_eps=0.001 (was 1e-06)" in done.out
    done = tsx("replay", "one", "--set", "model.norm_eps=0.001", "--json")
    plain = json.loads(done.out)
    assert (done.status, plain["finite"], plain["finding"]) == (0, True, None)
    assert plain["changed"] == {"model.norm_eps": [1e-6, 0.001]}
    assert plain["recorded"]["loss"] == "NaN"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--set", "model.hidden_size=32"), 2, "do not fit"),
        (("--set", "optim.lr=1"), 2, "has no say"),
        (("--step", "7"), 2, "nothing of step 7"),
        (("--step", "0"), 2, "--step"),
    ],
)
def test_what_does_not_hold_is_refused(tsx, planted, words, status, said):
    done = tsx("replay", "one", *words)
    assert (done.status, done.out) == (status, "")
    assert said in done.err


def test_a_run_that_kept_nothing_says_so(tsx, record):
    record("aaaaaaaa", "one", {"train/loss": [1.0]})
    done = tsx("replay", "one")
    assert done.status == 2
    assert "has kept no step" in done.err
    assert tsx("replay", "nobody").status == 1
