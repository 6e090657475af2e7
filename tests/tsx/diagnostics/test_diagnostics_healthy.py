"""No alarm on any loop in which nothing is wrong, however odd it looks."""

from __future__ import annotations

import pytest

from tests.faults.plant import list_healthy
from tests.faults.watched import list_alarms, play_watched

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    "loop",
    [pytest.param(loop, marks=[pytest.mark.slow] if loop.slow else []) for loop in list_healthy()],
    ids=lambda loop: loop.name,
)
def test_a_healthy_loop_is_left_alone(loop):
    assert list_alarms(play_watched(loop)) == []
