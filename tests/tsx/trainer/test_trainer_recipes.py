"""Shipped recipes and presets: made ready as they are and shrunk, they raise no finding."""

from __future__ import annotations

import pytest

from recipes.loader import expand, get_recipe, list_presets, list_recipes, resolve
from tsx.config import decode
from tsx.trainer.loop import rehearse

pytestmark = pytest.mark.trainer

OVERRIDES = ("data.source=demo", "data.demo_series=32", "perf.mfu_peak_tflops=1")
SHIPPED = [str(info.path) for info in list_recipes()]
PRESETS = [str(info.path) for info in list_presets()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One folder for all, so that the demo corpus is generated once."""
    return tmp_path_factory.mktemp("home")


def list_configs(name, *, smoke):
    plan = resolve(get_recipe(name), (), OVERRIDES, smoke)
    return [decode(raw) for _, raw in expand(plan)]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("smoke", [True, False], ids=["smoke", "whole"])
def test_healthy_recipes_raise_nothing(lab, home, name, smoke):
    for config in list_configs(name, smoke=smoke):
        sink = lab.sink()
        rehearse(config, sink, home=home)
        assert sink.prepared.data_source == "demo"
        assert sink.findings == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_made_ready_when_shrunk(lab, home, name):
    (config,) = list_configs(name, smoke=True)
    sink = lab.sink()
    rehearse(config, sink, home=home)
    assert sink.prepared.params_total < 1_000_000
    assert sink.findings == []
