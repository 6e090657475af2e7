"""Healthy loops train: their loss falls, all is finite, and what should move moves."""

from __future__ import annotations

import pytest

from tests.faults.plant import Healthy, list_healthy, play

pytestmark = pytest.mark.trainer

HEALTHY = [
    pytest.param(loop, id=loop.name, marks=[pytest.mark.slow] if loop.slow else [])
    for loop in list_healthy()
]


@pytest.mark.parametrize("healthy", HEALTHY)
def test_it_trains(healthy: Healthy) -> None:
    healthy.proof(play(healthy))
