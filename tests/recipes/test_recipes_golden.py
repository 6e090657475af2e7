"""Every shipped recipe expands to what golden/<name>.json says, and is a valid config.

After a change that is meant: UPDATE_GOLDEN=1 python -m pytest tests/recipes/test_recipes_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from recipes.loader import expand, get_recipe, list_presets, list_recipes, resolve
from tsx.config import decode
from tsx.model.size import count_params

GOLDEN = Path(__file__).parent / "golden"
NAMES = [info.name for info in list_recipes()]


def expand_all(name):
    """Return every run of a recipe, as it ships and under --smoke."""
    recipe = get_recipe(name)
    return {
        form: [
            {"suffix": suffix, "config": raw}
            for suffix, raw in expand(resolve(recipe, smoke=form == "smoke"))
        ]
        for form in ("full", "smoke")
    }


@pytest.mark.parametrize("name", NAMES)
def test_recipe_expands_as_recorded(name):
    text = json.dumps(expand_all(name), indent=2, allow_nan=False) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


def test_no_golden_file_without_a_recipe():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_a_valid_config(name, smoke):
    for suffix, raw in expand(resolve(get_recipe(name), smoke=smoke)):
        config = decode(raw, place=f"recipe {name!r} {suffix}")
        assert config.train.steps >= 1


@pytest.mark.parametrize("name", [info.name for info in list_presets()])
def test_preset_is_a_valid_config(name, folder, write):
    write("mine", f'[recipe]\nextends = "preset:{name}"\n')
    recipe = get_recipe("mine", [folder])
    for smoke in (False, True):
        config = decode(resolve(recipe, [folder], smoke=smoke).raw)
        assert config.model.expert_width * config.model.top_k == config.model.ff_width


def test_sanity_is_the_first_command_of_the_plan():
    config = decode(resolve(get_recipe("sanity")).raw)
    assert (config.train.steps, config.train.batch_size, config.train.log_every) == (200, 32, 10)
    assert (config.data.context_length, config.data.stride, config.data.val_split) == (
        512,
        512,
        0.01,
    )
    model = config.model
    assert (model.hidden_size, model.num_layers, model.num_heads) == (64, 2, 2)
    assert (model.num_experts, model.top_k, model.d_ff) == (2, 1, None)
    assert (config.eval.every, config.eval.max_batches) == (50, 2)


def test_ood_sanity_only_adds_the_held_out_series():
    sanity, ood = (decode(resolve(get_recipe(name)).raw) for name in ("sanity", "ood-sanity"))
    assert ood.data.ood_include == ("finance/*",)
    assert (ood.model, ood.optim, ood.train) == (sanity.model, sanity.optim, sanity.train)


def test_full_train_is_the_plans_and_shares_its_series_with_the_ood_run():
    full, ood = (decode(resolve(get_recipe(name)).raw) for name in ("full-train", "full-train-ood"))
    assert (full.train.steps, full.train.batch_size, full.train.checkpoint_every) == (
        10_000,
        256,
        2000,
    )
    assert (full.data.context_length, full.data.stride, full.data.val_split) == (4096, 4096, 0.01)
    model = full.model
    assert (model.hidden_size, model.num_layers, model.num_heads) == (256, 4, 8)
    assert (model.num_experts, model.top_k) == (4, 2)
    assert (full.eval.every, full.eval.max_batches) == (1000, 10)
    assert full.data.source == "time300b"
    assert (ood.model, ood.optim, ood.train.steps) == (full.model, full.optim, 30_000)
    assert full.data.exclude == ood.data.ood_include == ("finance/*",)
    assert ood.data.exclude == ()  # what is excluded is not named as out of distribution


def test_perf_baseline_has_the_logs_weights():
    config = decode(resolve(get_recipe("perf-baseline")).raw)
    count = count_params(config.model)
    assert (count.total, count.active) == (538_131_456, 198_392_832)
    literal = replace(config.model, d_ff=3072, d_expert=3072)
    count = count_params(literal)
    text = get_recipe("perf-baseline").info.path.read_text()
    assert f"{count.total:,} and {count.active:,}" in " ".join(text.replace("#", "").split())
    assert config.perf.log_metrics
    assert config.perf.count_kernels


def test_overfit_sees_one_batch_at_a_constant_rate():
    config = decode(resolve(get_recipe("overfit")).raw)
    assert config.train.fixed_batches == 1
    assert config.optim.schedule == "constant"
    assert config.optim.weight_decay == 0
    assert config.warmup_steps <= 10
