"""[search]: what it says, what ends it, and what is refused."""

from __future__ import annotations

import json

import pytest

from recipes.errors import RecipeFileError
from recipes.loader import expand, get_recipe, resolve
from recipes.search import MAX_LIMIT, STEPS, Search
from tsx.config import decode

PROBES = ("pointwise-probe", "patch-probe", "patch-probe-long")
BATCH = '[search]\nkey = "train.batch_size"\nstart = 8\nlimit = 64\n'


def plan_of(folder, name, *overrides, smoke=False):
    """Resolve a recipe of the folder by name."""
    return resolve(get_recipe(name, [folder]), [folder], overrides, smoke)


def test_a_search_has_its_start_in_the_config(folder, write):
    write("mine", BATCH)
    plan = plan_of(folder, "mine")
    assert plan.search == Search("train.batch_size", start=8, limit=64, steps=STEPS)
    assert expand(plan) == [("", {"train": {"batch_size": 8}})]
    assert plan.origins == {"train.batch_size": "recipe 'mine' [search]"}


def test_limit_and_steps_have_defaults(folder, write):
    write("mine", '[search]\nkey = "model.hidden_size"\nstart = 384\n')
    assert plan_of(folder, "mine").search == Search("model.hidden_size", 384, MAX_LIMIT, STEPS)
    write("vast", '[search]\nkey = "model.hidden_size"\nstart = 100000\n')
    assert plan_of(folder, "vast").search.limit == 100_000


def test_setting_the_key_ends_the_search(folder, write):
    write("base", BATCH)
    write("mine", '[recipe]\nextends = "base"\n[train]\nbatch_size = 3\n')
    assert plan_of(folder, "mine").search is None
    assert plan_of(folder, "mine").raw == {"train": {"batch_size": 3}}
    pinned = plan_of(folder, "base", "train.batch_size=5")
    assert (pinned.search, pinned.raw) == (None, {"train": {"batch_size": 5}})
    assert plan_of(folder, "base", "train.steps=5").search is not None


def test_a_search_ends_the_sweep_over_its_key_and_the_reverse(folder, write):
    write("swept", "[sweep]\ntrain.batch_size = [1, 2]\n")
    write("mine", f'[recipe]\nextends = "swept"\n{BATCH}')
    assert (plan_of(folder, "mine").axes, plan_of(folder, "mine").search.start) == ({}, 8)
    write("back", '[recipe]\nextends = "mine"\n[sweep]\ntrain.batch_size = [1, 2]\n')
    assert plan_of(folder, "back").search is None
    assert plan_of(folder, "back").axes == {"train.batch_size": [1, 2]}


def test_another_search_leaves_the_first_key_at_its_start(folder, write):
    write("base", BATCH)
    write("mine", '[recipe]\nextends = "base"\n[search]\nkey = "model.top_k"\nstart = 1\n')
    plan = plan_of(folder, "mine")
    assert plan.search.key == "model.top_k"
    assert plan.raw == {"train": {"batch_size": 8}, "model": {"top_k": 1}}


def test_a_search_beside_a_sweep_is_refused_until_the_sweep_is_pinned(folder, write):
    write("mine", f"{BATCH}[sweep]\nmodel.top_k = [1, 2]\n")
    with pytest.raises(RecipeFileError, match=r"searches train.batch_size and sweeps model.top_k"):
        plan_of(folder, "mine")
    assert plan_of(folder, "mine", "model.top_k=1").search is not None


def test_smoke_leaves_two_trials(folder, write):
    write("mine", '[search]\nkey = "train.batch_size"\nstart = 128\n')
    assert plan_of(folder, "mine", smoke=True).search == Search("train.batch_size", 8, 16, 3)
    write("tiny", '[search]\nkey = "train.batch_size"\nstart = 2\nlimit = 3\nsteps = 3\n')
    assert plan_of(folder, "tiny", smoke=True).search == Search("train.batch_size", 2, 3, 3)
    write("wide", '[search]\nkey = "model.d_ff"\nstart = 64\n')
    assert plan_of(folder, "wide", smoke=True).search.limit >= 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("search = 3\n", r"\[search\] is 3; expected a table"),
        ("[search]\nstart = 1\n", r"\[search\] key=None: expected a section and a key"),
        ("[search]\nkey = 'batch_size'\nstart = 1\n", "key='batch_size': expected a section"),
        ("[search]\nkey = 'a.b.c'\nstart = 1\n", "key='a.b.c': expected a section"),
        ("[search]\nkey = 3\nstart = 1\n", "key=3: expected a section"),
        ("[search]\nkey = 'a.b'\n", "start=None: expected a whole number of 1 or more"),
        ("[search]\nkey = 'a.b'\nstart = 0\n", "start=0: expected a whole number"),
        ("[search]\nkey = 'a.b'\nstart = -4\n", "start=-4: expected a whole number"),
        ("[search]\nkey = 'a.b'\nstart = 1.5\n", "start=1.5: expected a whole number"),
        ("[search]\nkey = 'a.b'\nstart = true\n", "start=True: expected a whole number"),
        ("[search]\nkey = 'a.b'\nstart = '8'\n", "start='8': expected a whole number"),
        ("[search]\nkey = 'a.b'\nstart = 8\nlimit = 0\n", "limit=0: expected a whole number"),
        ("[search]\nkey = 'a.b'\nstart = 8\nlimit = 7\n", "start=8 is above limit=7"),
        ("[search]\nkey = 'a.b'\nstart = 8\nsteps = 2\n", "steps=2: expected a whole number of 3"),
        (
            "[search]\nkey = 'a.b'\nstart = 8\nlimt = 9\n",
            "limt=9: unknown key; did you mean 'limit'",
        ),
        (
            "[search]\nkey = 'a.b'\nstart = 8\n[a]\nb = 1\n",
            r"\[search\] a.b is also set: \[a\] b=1",
        ),
        (
            "[search]\nkey = 'a.b'\nstart = 8\n[sweep]\na.b = [1]\n",
            r"key='a.b' is also in \[sweep\]",
        ),
    ],
)
def test_wrong_text_is_explained(write, text, match):
    with pytest.raises(RecipeFileError, match=match) as caught:
        get_recipe(str(write("bad", text)))
    assert "recipe 'bad'" in caught.value.message


@pytest.mark.parametrize("name", PROBES)
def test_the_probes_are_the_plans_base_model(name):
    plan = resolve(get_recipe(name))
    config = decode(plan.raw)
    model = config.model
    assert (model.hidden_size, model.num_layers, model.num_heads) == (384, 12, 12)
    assert (model.num_experts, model.top_k) == (8, 2)
    assert (model.ff_width, model.expert_width) == (1536, 768)
    assert (config.train.steps, config.train.batch_size, config.train.log_every) == (200, 128, 10)
    assert config.train.checkpoint_every == 0
    assert config.eval.origin_stride == 32
    assert plan.search == Search("train.batch_size", start=128, limit=MAX_LIMIT, steps=6)


def test_the_probes_differ_in_tokens_alone():
    pointwise, patch, long = (decode(resolve(get_recipe(name)).raw) for name in PROBES)
    assert [c.model.patch_len for c in (pointwise, patch, long)] == [1, 32, 32]
    assert [c.data.context_length for c in (pointwise, patch, long)] == [512, 512, 4096]
    assert [c.data.stride for c in (pointwise, patch, long)] == [512, 512, 4096]
    for other in (patch, long):
        assert (other.train, other.eval, other.optim) == (
            pointwise.train,
            pointwise.eval,
            pointwise.optim,
        )


def test_the_cli_shows_and_validates_a_search(folder, write, monkeypatch, capsys):
    from tsx.cli.main import main

    monkeypatch.chdir(folder.parent)
    assert main(["recipes", "show", "patch-probe"]) == 0
    text = capsys.readouterr().out
    assert "# batch_size is searched, see below" in text
    write("copy", text)
    for name in ("copy", "patch-probe"):
        assert main(["recipes", "show", name, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["search"] == {
            "key": "train.batch_size",
            "start": 128,
            "limit": 65536,
            "steps": 6,
        }
        assert shown["config"]["train"]["batch_size"] == 128
    assert main(["recipes", "validate", "patch-probe"]) == 0
    assert capsys.readouterr().out == "patch-probe: valid, a search of train.batch_size\n"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.batchsize", "[train] batchsize=8: unknown key; did you mean 'batch_size'"),
        ("trian.batch_size", "unknown section [trian]; did you mean 'train'"),
        ("optim.lr", "[search] key='optim.lr' is no positive whole number"),
        ("model.horizons", "[model] horizons=8"),
        ("train.steps", "[search] key='train.steps' is no positive whole number"),
    ],
)
def test_a_key_that_no_run_can_grow_is_named(folder, write, monkeypatch, capsys, key, message):
    from tsx.cli.main import main

    monkeypatch.chdir(folder.parent)
    write("mine", f'[search]\nkey = "{key}"\nstart = 8\n')
    for line in (["recipes", "validate", "mine"], ["run", "mine"]):
        assert main(line) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
