from __future__ import annotations

import math

import pytest

from tsx.config import decode
from tsx.trainer.schedule import get_lr

pytestmark = pytest.mark.trainer


def rates(steps, **optim):
    config = decode({"optim": {"lr": 1.0, **optim}, "train": {"steps": steps}})
    return [get_lr(config, step) for step in range(1, steps + 1)]


def test_warmup_is_linear_and_reaches_the_peak_once():
    values = rates(100, warmup_steps=10)
    assert values[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert values.count(1.0) == 1
    assert values == [*values[:10], *sorted(values[10:], reverse=True)]


def test_the_diaries_line():
    config = decode({"optim": {"warmup_steps": 10_000}, "train": {"steps": 80}})
    assert get_lr(config, 10) == pytest.approx(1e-6)


def test_cosine_is_half_way_in_the_middle():
    values = rates(20, warmup_steps=1)  # from step 1 to where step 21 would be
    assert values[10] == pytest.approx(0.5)
    assert values[15] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.75)))


def test_no_step_is_spent_on_a_rate_of_zero():
    for steps in (1, 2, 3, 50):
        for warmup in (0, 1):
            assert min(rates(steps, warmup_steps=warmup)) > 0, (steps, warmup)
    assert rates(1) == [1.0]


def test_floor():
    values = rates(1000, warmup_steps=0, min_lr_ratio=0.1)
    assert values[-1] == pytest.approx(0.1, abs=1e-4)
    assert min(values) > 0.1


def test_constant_keeps_the_peak():
    assert rates(5, warmup_steps=2, schedule="constant") == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_default_warmup_is_a_tenth_and_at_most_ten_thousand():
    assert rates(50)[4] == 1.0
    assert rates(50)[3] == pytest.approx(0.8)
    config = decode({"train": {"steps": 10**6}})
    assert get_lr(config, 10_000) == config.optim.lr
    assert get_lr(config, 9_999) < config.optim.lr


def test_warmup_longer_than_the_run_never_arrives():
    assert max(rates(4, warmup_steps=8)) == 0.5
