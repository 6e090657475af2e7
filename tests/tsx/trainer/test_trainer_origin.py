"""A planted NaN in the real trainer is named: place, line and true cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.events import Finding, Status
from registry.sinks import ListSink
from tests.faults import plant as plants
from tests.faults.embedded import train_planted

pytestmark = pytest.mark.trainer

PLANTS = [
    plant
    for plant in plants.list_plants()
    if plant.kind == "nan-origin" and plant.patch is not None and not plant.slow
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_the_step_that_diverges_names_its_fault(plant, tmp_path):
    sink = ListSink()
    outcome = train_planted(plant, tmp_path, sink)
    assert outcome.status is Status.DIVERGED
    (finding,) = [
        event for event in sink.events if isinstance(event, Finding) and event.kind == plant.kind
    ]
    assert finding.evidence["mechanism"] in (plant.mechanism, *plant.also)
    assert finding.module == plant.module
    if plant.marker:
        path, _, line = finding.where.rpartition(":")
        assert (Path(path).name, int(line)) == (Path(plant.path).name, plant.line)
    assert finding.cause in outcome.reason
