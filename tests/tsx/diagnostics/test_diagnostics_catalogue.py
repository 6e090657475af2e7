"""Every kind of finding is told of in docs/faults.md, which is written from the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.plant import list_plants
from tsx.diagnostics import catalogue

pytestmark = pytest.mark.trainer

ROOT = Path(catalogue.__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
ROOMS = ("tsx/trainer", "tsx/recording", "tsx/diagnostics", "tsx/curves")
OTHER_RECORDS = {"checkpoint", "trace", "batch", "npy", "weights"}  # kinds of files
_KIND = re.compile(r'kind="([a-z][a-z-]+)"|(?:\bwarn|\breport|_say)\(\s*"([a-z][a-z-]+)"')


def test_the_page_is_what_the_code_says():
    command = "make faults"
    assert PAGE.read_text(encoding="utf-8") == catalogue.write_page(), command


def test_every_kind_that_is_reported_is_told_of():
    known = {kind.name for kind in catalogue.list_kinds()} | OTHER_RECORDS
    said = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for found in _KIND.finditer(path.read_text(encoding="utf-8")):
                said[found[1] or found[2]] = path.name
    assert len(said) > 10
    assert {kind: place for kind, place in said.items() if kind not in known} == {}


def test_every_planted_kind_is_told_of():
    known = {kind.name for kind in catalogue.list_kinds()}
    assert {plant.kind for plant in list_plants()} - known == set()


@pytest.mark.parametrize("kind", catalogue.list_kinds(), ids=lambda kind: kind.name)
def test_a_kind_is_told_of_in_whole_sentences(kind):
    for text in (kind.means, kind.story, kind.evidence, kind.fix):
        assert text.endswith((".", "?")), text
        assert len(text) > 4
