"""A run against its siblings: who counts as one, and where a loss leaves their band."""

import math
import random
from array import array

import pytest

from registry.events import Status
from registry.views import Series
from tsx.curves.findings import list_curve_findings
from tsx.curves.recorded import Recorded
from tsx.curves.siblings import find_leaving, list_siblings


def falling(seed=0, points=200, noise=0.03):
    draw = random.Random(seed).gauss
    return [
        (0.5 + 3 * math.exp(-5 * at / points)) * math.exp(draw(0, noise)) for at in range(points)
    ]


def leaving(at, factor, seed=9):
    """Return a loss that rises slowly to some times the others', and stays there."""
    values = falling(seed)
    grown = (min(1.0 + (factor - 1) * max(n - at, 0) / 20, factor) for n in range(len(values)))
    return [value * by for value, by in zip(values, grown, strict=True)]


def series(values, steps=None):
    steps = steps or range(1, len(values) + 1)
    return Series("loss", array("q", steps), array("d", values), array("d", [0.0] * len(values)))


@pytest.fixture
def three(record):
    """Record three runs of one recipe that differ in their seed."""
    for seed in range(3):
        config = {"train": {"seed": seed}}
        record(f"bbbb000{seed}", {"train/loss": falling(seed)}, config=config, seed=seed)


def test_a_run_that_leaves_its_siblings_is_told_with_their_number(three, find):
    curves = {"train/loss": leaving(100, 3.0)}
    (found,) = find(curves, config={"train": {"seed": 7}})
    assert (found.kind, found.severity) == ("sibling-jump", "warning")
    assert 100 < found.step < 112
    assert found.evidence["largest_ratio"] == pytest.approx(3.0, rel=0.15)
    assert sorted(found.evidence["siblings"]) == ["bbbb0000", "bbbb0001", "bbbb0002"]
    assert "3 sibling runs" in found.cause
    assert found.fix.startswith("tsx compare aaaa0001 bbbb000")


def test_what_differs_is_named_and_makes_it_an_info(three, find):
    curves = {"train/loss": leaving(100, 3.0)}
    (found,) = find(curves, config={"optim": {"lr": 0.3}})
    assert (found.kind, found.severity) == ("sibling-jump", "info")
    assert found.evidence["differences"] == ["optim.lr"]
    assert "optim.lr" in found.cause


def test_a_run_among_its_siblings_tells_nothing(three, find):
    assert find({"train/loss": falling(8)}, config={"train": {"seed": 8}}) == []


@pytest.mark.parametrize(
    ("config", "fields", "reason"),
    [
        ({"data": {"context_length": 64}}, {}, "not the same data"),
        ({"model": {"huber_delta": 1.0}}, {}, "not the same loss"),
        ({"model": {"num_layers": 3}}, {}, "another model or batch: model.num_layers"),
        ({"train": {"batch_size": 8}}, {}, "another model or batch: train.batch_size"),
        ({}, {"smoke": True}, "not the same size"),
        ({}, {"status": Status.DIVERGED}, "diverged"),
        (
            {"optim": {"lr": 0.1, "beta1": 0.5, "beta2": 0.6, "eps": 0.1}},
            {},
            "more than 3 config keys differ",
        ),
    ],
)
def test_an_unfair_sibling_is_refused_and_the_reason_kept(record, reader, config, fields, reason):
    record("bbbb0001", {"train/loss": falling(1)}, config=config, **fields)
    record("aaaa0001", {"train/loss": leaving(100, 3.0)}, config={})
    recorded = Recorded(reader, reader.get_detail("aaaa0001"))
    siblings = list_siblings(recorded, "train/loss")
    assert siblings.details == ()
    (told,) = siblings.refused
    assert told.startswith(reason)
    assert list_curve_findings(reader, recorded.detail) == []


def test_other_recipes_and_runs_without_any_group_are_no_siblings(record, reader):
    record("bbbb0001", {"train/loss": falling(1)}, recipe="overfit")
    record("bbbb0002", {"train/loss": falling(1)}, recipe="", raw_config={"data": "x"})
    record("aaaa0001", {"train/loss": leaving(100, 3.0)})
    record("aaaa0002", {"train/loss": leaving(100, 3.0)}, recipe="", raw_config={"data": "x"})
    for run_id in ("aaaa0001", "aaaa0002"):
        assert list_curve_findings(reader, reader.get_detail(run_id)) == []


def test_runs_of_a_users_own_project_are_held_against_each_other(record, find):
    own = {"recipe": "", "project": "mine", "raw_config": {"data": "x", "lr": 0.1}}
    record("bbbb0001", {"loss": falling(1)}, **own)
    (found,) = find({"loss": leaving(100, 4.0)}, **own)
    assert found.kind == "sibling-jump"
    assert "1 sibling run at" in found.cause


def test_seeds_that_differ_by_noise_stay_inside():
    for seed in range(200):
        noise = (0.01, 0.1, 0.3)[seed % 3]
        others = [series(falling(1000 + 10 * seed + n, 120, noise)) for n in range(1 + seed % 4)]
        assert find_leaving(series(falling(seed, 120, noise)), others) is None


def test_curves_logged_at_other_steps_are_held_against_each_other():
    others = [series(falling(n)[::10], range(1, 201, 10)) for n in range(3)]
    step, ratio, largest, level = find_leaving(series(leaving(100, 3.0)), others)
    assert 98 < step < 120
    assert 1.2 < ratio < 3.2
    assert largest == pytest.approx(3, rel=0.2)
    assert 0.4 < level < 1.2


def test_nothing_is_said_beyond_where_the_siblings_stopped():
    others = [series(falling(n)[:90]) for n in range(3)]
    assert find_leaving(series(leaving(100, 3.0)), others) is None


def test_a_lower_loss_is_no_fault():
    others = [series([2 * value for value in falling(n)]) for n in range(3)]
    assert find_leaving(series(falling(7)), others) is None


@pytest.mark.parametrize("values", [[], [math.nan] * 50, [-1.0] * 50, [1.0] * 3])
def test_curves_that_cannot_be_compared_are_not(values):
    assert find_leaving(series(values), [series(falling())]) is None
    assert find_leaving(series(falling()), [series(values)]) is None
