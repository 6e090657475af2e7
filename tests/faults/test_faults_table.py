"""The table as a whole: its size, its spread, its names, its page."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.faults.plant import HERE, ROOT, list_healthy, list_plants, write_table

pytestmark = pytest.mark.trainer

PLANTS = list_plants()
# Every kind of finding about training but `cudagraph`, which wants a GPU.
KINDS = {
    *("nan-origin", "mask-audit", "future-leak", "batch-leak", "attention-axis", "target-shift"),
    *("data-quality", "frozen-param", "update-ratio", "dtype-mismatch", "upcast"),
    *("attention-backend", "recompile", "recompile-limit", "graph-break", "init-scale"),
    *("loss-at-init", "router", "aux-scale", "loss-spike", "plateau", "lr"),
    *("interval-never-fires", "config-lint", "repeated-data", "loss-contract", "accumulation"),
    *("train-mode", "buffer-drift", "tied-weights", "throughput", "oom", "overfit"),
    "variant-equivalence",
}


def test_names_are_unique_slugs() -> None:
    names = [entry.name for entry in (*PLANTS, *list_healthy())]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []


def test_every_kind_is_planted() -> None:
    assert {plant.kind for plant in PLANTS} == KINDS
    assert {plant.severity for plant in PLANTS} <= {"info", "warning", "error"}


@pytest.mark.parametrize(
    ("kinds", "mechanisms"),
    [
        (("nan-origin",), 14),
        (("frozen-param",), 9),
        (("mask-audit", "future-leak", "batch-leak", "attention-axis"), 8),
        (("loss-contract",), 5),
        (("accumulation",), 3),
        (("repeated-data",), 3),
    ],
)
def test_large_kinds_have_many_mechanisms(kinds: tuple[str, ...], mechanisms: int) -> None:
    assert len({plant.mechanism for plant in PLANTS if plant.kind in kinds}) >= mechanisms


def test_mechanisms_and_architectures_are_many() -> None:
    assert len({(plant.kind, plant.mechanism) for plant in PLANTS}) >= 60
    count = Counter(plant.architecture for plant in PLANTS)
    assert all(count[name] >= 8 for name in ("embedded", "conv", "recurrent", "attention"))


def test_a_third_is_blind_and_says_after_what() -> None:
    blind = [plant for plant in PLANTS if plant.blind]
    assert 3 * len(blind) >= len(PLANTS)
    cited = re.compile(r"\([^)]*kind of (report|question|correction)|kind of report", re.DOTALL)
    assert [plant.name for plant in blind if not cited.search(plant.story)] == []


@pytest.mark.parametrize("plant", [p for p in PLANTS if p.marker], ids=lambda plant: plant.name)
def test_each_marker_ends_one_line(plant: object) -> None:
    assert plant.line > 0  # asserts that it is one


def test_no_marker_is_forgotten() -> None:
    marked = re.compile(r"# fault: .*$", re.MULTILINE)
    texts = [path.read_text(encoding="utf-8") for path in sorted((HERE / "plants").glob("*.py"))]
    found = Counter(
        marker for text in texts for marker in marked.findall(text) if '"' not in marker
    )
    assert found == Counter(plant.marker for plant in PLANTS if plant.marker)


def test_the_page_has_the_table() -> None:
    page = (HERE / "README.md").read_text(encoding="utf-8")
    assert write_table() in page, "run: python -m tests.faults.page"


def test_healthy_loops_are_many() -> None:
    healthy = list_healthy()
    foreign = [loop for loop in healthy if loop.architecture != "embedded"]
    assert len(foreign) >= 10
    assert len({loop.architecture for loop in healthy}) >= 6


def test_recipes_named_as_healthy_exist() -> None:
    from tests.faults.healthy.embedded import RECIPES

    assert [name for name in RECIPES if not (ROOT / "recipes" / f"{name}.toml").exists()] == []
