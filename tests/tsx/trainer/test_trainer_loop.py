from __future__ import annotations

import pytest

from registry.events import Status

pytestmark = pytest.mark.trainer


def test_run_completes_and_loss_falls(lab):
    ran = lab.run(train__steps=30, optim__lr=5e-3, eval__every=10)
    assert ran.outcome.status is Status.COMPLETED
    assert ran.outcome.reason == ""
    assert ran.outcome.step == 30
    val = ran.sink.curve("val/pred")
    assert list(val) == [0, 10, 20, 30]
    assert val[30] < val[0]


def test_same_seed_gives_the_same_bits(lab):
    first = lab.run("a").sink.curve("train/loss")
    assert first == lab.run("b").sink.curve("train/loss")
    assert first != lab.run("c", train__seed=1).sink.curve("train/loss")
