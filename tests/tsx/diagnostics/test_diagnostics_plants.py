"""Every planted fault is found: kind, module, line, true cause, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.events import Severity
from tests.faults import misses
from tests.faults.plant import list_plants
from tests.faults.watched import play_watched

pytestmark = pytest.mark.trainer

OWN_TEST = {"config-lint", "variant-equivalence"}  # tested elsewhere
PLANTS = [p for p in list_plants() if p.kind in misses.FOUND_KINDS - OWN_TEST]


def list_answers(plant):
    """Return the findings that matter for a plant, those of its kind first."""
    found = play_watched(plant)
    least = Severity(plant.severity)
    of_kind = [finding for finding in found if finding.kind == plant.kind]
    others = [f for f in found if f.kind != plant.kind and f.severity is not Severity.INFO]
    assert all(f.severity is least for f in of_kind[:1]), of_kind
    return of_kind, others


def check(name: str, known: dict[str, str], is_right: bool, what: object) -> None:
    """Hold an answer against the list of known misses: a miss that is none any more fails."""
    if name in known:
        assert not is_right, f"{name} is right now: take it out of tests/faults/misses.py"
    else:
        assert is_right, what


@pytest.mark.parametrize(
    "plant",
    [pytest.param(p, marks=[pytest.mark.slow] if p.slow else []) for p in PLANTS],
    ids=lambda plant: plant.name,
)
def test_a_planted_fault_is_found(plant):
    found, others = list_answers(plant)
    check(plant.name, misses.NOT_FOUND, bool(found), others)
    check(plant.name, misses.BESIDE, not others, others)
    if not found:
        return
    first = found[0]
    right = {plant.mechanism, *plant.also}
    if plant.kind == "nan-origin":  # a value that is not finite shows at once
        assert first.step == plant.steps
    check(plant.name, misses.OTHER_CAUSE, first.evidence["mechanism"] in right, first)
    check(plant.name, misses.OTHER_MODULE, first.module == plant.module, first)
    if plant.marker:
        path, _, line = first.where.rpartition(":")
        is_right = (Path(path).name, line) == (Path(plant.path).name, str(plant.line))
        check(plant.name, misses.OTHER_LINE, is_right, first)
