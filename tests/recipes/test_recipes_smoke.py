"""--smoke: small, consistent, never larger than the recipe."""

from __future__ import annotations

import itertools

import pytest

from recipes.loader import expand, get_recipe, resolve
from recipes.smoke import shrink
from tsx.config import decode, to_plain

PAPER = {
    "model": {
        "hidden_size": 384,
        "num_layers": 12,
        "num_heads": 12,
        "num_experts": 8,
        "top_k": 2,
        "d_ff": 1536,
        "d_expert": 768,
    },
    "data": {"context_length": 4096, "stride": 4096},
    "train": {"steps": 100_000, "batch_size": 1024, "checkpoint_every": 2000, "log_every": 10},
    "eval": {"every": 1000, "max_batches": 0},
    "optim": {"warmup_steps": 10_000},
}


def test_paper_sized_recipe_becomes_tiny():
    config = decode(shrink(PAPER))
    model = config.model
    assert (model.hidden_size, model.num_heads, model.num_layers) == (32, 2, 2)
    assert (model.num_experts, model.top_k, model.d_ff, model.d_expert) == (4, 2, 128, 64)
    assert (config.data.context_length, config.data.stride) == (64, 64)
    assert (config.train.steps, config.train.batch_size, config.train.log_every) == (8, 8, 2)
    assert (config.train.checkpoint_every, config.eval.every, config.eval.max_batches) == (4, 4, 2)
    assert config.optim.warmup_steps == 2


def test_empty_recipe_shrinks_the_defaults_too():
    config = decode(shrink({}))
    assert config.train.steps == 8
    assert config.model.hidden_size == 32
    assert config.train.checkpoint_every == 0


@pytest.mark.parametrize(
    "off", [("train", "checkpoint_every"), ("eval", "every"), ("train", "fixed_batches")]
)
def test_what_is_off_stays_off(off):
    section, key = off
    assert shrink({section: {key: 0}})[section][key] == 0


def test_patches_keep_64_tokens():
    small = shrink({"model": {"patch_len": 32}, "data": {"context_length": 4096, "stride": 512}})
    assert small["data"] == {"context_length": 2048, "stride": 512}
    assert decode(small).data.context_length % 32 == 0


@pytest.mark.parametrize(
    ("heads", "hidden", "experts", "top_k", "patch"),
    itertools.product([1, 3, 16], [2, 6, 48, 1024], [1, 2, 64], [1, 2, 6], [1, 16]),
)
def test_valid_stays_valid(heads, hidden, experts, top_k, patch):
    raw = {
        "model": {
            "hidden_size": hidden * heads * 2,
            "num_heads": heads,
            "num_experts": experts,
            "top_k": min(top_k, experts),
            "patch_len": patch,
        },
        "data": {"context_length": 16 * patch},
    }
    decode(raw)
    decode(shrink(raw))


def test_no_recipe_grows():
    tiny = {
        "model": {"hidden_size": 8, "num_heads": 1, "num_layers": 1, "num_experts": 1, "top_k": 1},
        "data": {"context_length": 16, "stride": 4},
        "train": {"steps": 2, "batch_size": 1, "log_every": 1, "checkpoint_every": 1},
        "eval": {"every": 1, "max_batches": 1, "ood_max_batches": 1, "batch_size": 1},
    }
    assert {section: keys for section, keys in shrink(tiny).items() if keys} == tiny


def test_shrinking_twice_changes_nothing():
    once = shrink(PAPER)
    assert shrink(once) == once


def test_wrong_types_are_left_for_the_config_to_explain():
    wrong = {"train": {"steps": "many"}, "model": {"hidden_size": [3], "patch_len": "x"}}
    assert shrink(wrong)["train"]["steps"] == "many"


def test_set_wins_over_smoke():
    plan = resolve(get_recipe("sanity"), (), ["train.steps=3", "model.num_layers=3"], smoke=True)
    assert (plan.raw["train"]["steps"], plan.raw["model"]["num_layers"]) == (3, 3)
    assert plan.origins["train.steps"] == "--set"
    assert plan.origins["train.batch_size"] == "--smoke"
    assert plan.origins["model.num_heads"] == "recipe 'sanity'"


def test_sweep_keeps_few_runs_that_differ(folder, write):
    write("mine", '[sweep]\n"model.hidden_size" = [64, 128, 256]\n"train.seed" = [1, 2, 3, 4]\n')
    runs = expand(resolve(get_recipe("mine", [folder]), [folder], smoke=True))
    assert [suffix for suffix, _ in runs] == ["hidden_size=64,seed=1", "hidden_size=64,seed=2"]
    assert to_plain(decode(runs[0][1])) != to_plain(decode(runs[1][1]))
