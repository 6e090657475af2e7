"""Names, extends, presets, overrides, sweeps."""

from __future__ import annotations

import os

import pytest

from recipes import loader
from recipes.loader import RecipeFileError, expand, get_recipe, list_recipes, resolve


def plan_of(folder, name, *overrides, smoke=False):
    """Resolve a recipe of the folder by name."""
    return resolve(get_recipe(name, [folder]), [folder], overrides, smoke)


def test_built_in_recipes_come_first(folder, write):
    write("aaa", '[recipe]\nsummary = "mine"\nminutes = 3\ndevice = "cuda"\nexpect = "much"\n')
    infos = list_recipes([folder])
    names = [info.name for info in infos]
    assert names == [*sorted(path.stem for path in loader.BUILT_IN.glob("*.toml")), "aaa"]
    mine = infos[-1]
    assert (mine.summary, mine.minutes, mine.device, mine.expect) == ("mine", 3.0, "cuda", "much")
    assert mine.source == str(folder)
    assert mine.path == folder / "aaa.toml"
    assert {info.source for info in infos[:-1]} == {"built-in"}


def test_every_built_in_says_what_it_shows():
    for info in list_recipes():
        assert info.error == ""
        assert info.summary
        assert info.minutes is not None
        assert info.device
        assert info.expect


def test_earlier_place_wins_a_name_and_the_path_still_reaches_the_other(folder, write):
    path = write("sanity", "[train]\nsteps = 7\n")
    assert get_recipe("sanity", [folder]).info.source == "built-in"
    assert get_recipe(str(path)).settings == {"train": {"steps": 7}}


def test_broken_file_is_listed_with_its_error(folder, write):
    write("broken", "[train\n")
    info = list_recipes([folder])[-1]
    assert info.name == "broken"
    assert "not valid TOML" in info.error


def test_missing_folder_holds_no_recipes(tmp_path):
    assert [info.name for info in list_recipes([tmp_path / "none"])] == [
        info.name for info in list_recipes()
    ]


def test_unknown_name_offers_the_nearest(folder, write):
    write("my-probe", "")
    with pytest.raises(RecipeFileError, match=r"no recipe 'my-prob'; did you mean 'my-probe'"):
        get_recipe("my-prob", [folder])
    with pytest.raises(RecipeFileError) as caught:
        get_recipe("santy")
    assert "'sanity'" in caught.value.message
    assert caught.value.next_command == "tsx recipes"


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x" * 100_000, "loader", "presets", "*"])
def test_odd_name_is_no_recipe(name):
    assert loader.find_recipe(name) is None
    with pytest.raises(RecipeFileError, match="no recipe"):
        get_recipe(name)


def test_relative_path_is_a_file(folder, write, monkeypatch):
    write("mine", "[train]\nsteps = 7\n")
    monkeypatch.chdir(folder.parent)
    recipe = get_recipe(os.path.join("tsx-recipes", "mine.toml"))
    assert recipe.info.path == folder / "mine.toml"
    with pytest.raises(RecipeFileError, match="no recipe file"):
        get_recipe("./none.toml")


def test_extends_lays_the_own_sections_over(folder, write):
    write("base", "[train]\nsteps = 10\nseed = 1\n[model]\ntop_k = 2\n")
    write("mine", '[recipe]\nextends = "base"\n[train]\nsteps = 20\n')
    plan = plan_of(folder, "mine")
    assert plan.raw == {"train": {"steps": 20, "seed": 1}, "model": {"top_k": 2}}
    assert plan.origins == {
        "train.steps": "recipe 'mine'",
        "train.seed": "recipe 'base'",
        "model.top_k": "recipe 'base'",
    }


def test_extends_a_list_left_to_right(folder, write):
    write("a", "[train]\nsteps = 1\nseed = 1\n")
    write("b", "[train]\nsteps = 2\n")
    write("mine", '[recipe]\nextends = ["a", "b"]\n')
    assert plan_of(folder, "mine").raw == {"train": {"steps": 2, "seed": 1}}


def test_extends_a_path_beside_the_file(folder, write):
    write("mine", '[recipe]\nextends = "./sub/base.toml"\n')
    (folder / "sub").mkdir()
    (folder / "sub" / "base.toml").write_text("[train]\nsteps = 3\n")
    assert plan_of(folder, "mine").raw == {"train": {"steps": 3}}


@pytest.mark.parametrize(("preset", "hidden"), [("base", 384), ("large", 768), ("ultra", 1024)])
def test_extends_a_preset(folder, write, preset, hidden):
    write("mine", f'[recipe]\nextends = "preset:{preset}"\n')
    plan = plan_of(folder, "mine")
    assert plan.raw["model"]["hidden_size"] == hidden
    assert plan.origins["model.hidden_size"] == f"preset '{preset}'"


def test_a_preset_is_a_recipe_too():
    preset = get_recipe("preset:base")
    assert preset.place == "preset 'base'"
    assert resolve(preset).raw["model"]["hidden_size"] == 384
    with pytest.raises(RecipeFileError, match=r"no preset 'bas'; did you mean 'base'"):
        get_recipe("preset:bas")
    assert loader.find_recipe("preset:") is None
    assert loader.find_recipe("preset:sanity") is None


def test_unknown_base_and_preset_name_the_file(folder, write):
    write("mine", '[recipe]\nextends = "preset:bse"\n')
    with pytest.raises(RecipeFileError, match=r"recipe 'mine'.*preset:bse.*did you mean 'base'"):
        plan_of(folder, "mine")
    write("mine", '[recipe]\nextends = "sanitty"\n')
    with pytest.raises(RecipeFileError, match=r"recipe 'mine'.*did you mean 'sanity'"):
        plan_of(folder, "mine")


@pytest.mark.parametrize("length", [1, 2, 5])
def test_cycle_is_named(folder, write, length):
    for i in range(length):
        write(f"r{i}", f'[recipe]\nextends = "r{(i + 1) % length}"\n')
    with pytest.raises(RecipeFileError, match=r"cycle: r0 -> .*r0|cycle: r0 -> r0"):
        plan_of(folder, "r0")


def test_long_and_wide_chains_are_bounded(folder, write):
    for i in range(100):
        write(f"long{i}", f'[recipe]\nextends = "long{i + 1}"\n')
    with pytest.raises(RecipeFileError, match="draws in more than 16 files"):
        plan_of(folder, "long0")
    for i in range(40):  # each extends the next twice: 2**40 visits unless bounded
        write(f"wide{i}", f'[recipe]\nextends = ["wide{i + 1}", "wide{i + 1}"]\n')
    write("wide40", "")
    with pytest.raises(RecipeFileError, match="draws in more than 16 files"):
        plan_of(folder, "wide0")


def test_overrides_win_and_repeats_are_reported(folder, write):
    write("mine", "[train]\nsteps = 1\n")
    plan = plan_of(folder, "mine", "train.steps=2", "model.top_k=1", "train.steps=3")
    assert plan.raw == {"train": {"steps": 3}, "model": {"top_k": 1}}
    assert plan.repeated == ("train.steps",)
    assert plan.origins == {"train.steps": "--set", "model.top_k": "--set"}


def test_sweep_is_a_grid_with_the_last_axis_fastest(folder, write):
    write("mine", '[sweep]\n"model.top_k" = [1, 2]\n"optim.lr" = [0.1, 0.2]\n')
    runs = expand(plan_of(folder, "mine"))
    assert [suffix for suffix, _ in runs] == [
        "top_k=1,lr=0.1",
        "top_k=1,lr=0.2",
        "top_k=2,lr=0.1",
        "top_k=2,lr=0.2",
    ]
    assert runs[1][1] == {"model": {"top_k": 1}, "optim": {"lr": 0.2}}


def test_sweep_keys_need_no_quotes_and_lists_are_values(folder, write):
    write("mine", "[sweep]\nmodel.horizons = [[1, 8], [1]]\n")
    runs = expand(plan_of(folder, "mine"))
    assert [suffix for suffix, _ in runs] == ["horizons=1+8", "horizons=1"]


def test_suffix_has_the_section_where_keys_collide(folder, write):
    write("mine", '[sweep]\n"train.batch_size" = [1]\n"eval.batch_size" = [2]\n')
    assert expand(plan_of(folder, "mine"))[0][0] == "train.batch_size=1,eval.batch_size=2"


def test_run_without_a_sweep_has_no_suffix(folder, write):
    write("mine", "[train]\nsteps = 5\n")
    assert expand(plan_of(folder, "mine")) == [("", {"train": {"steps": 5}})]


def test_set_ends_the_sweep_over_its_key(folder, write):
    write("mine", '[sweep]\n"model.top_k" = [1, 2]\n"optim.lr" = [0.1, 0.2]\n')
    plan = plan_of(folder, "mine", "model.top_k=4")
    assert plan.axes == {"optim.lr": [0.1, 0.2]}
    assert [raw["model"]["top_k"] for _, raw in expand(plan)] == [4, 4]


def test_child_pins_what_its_base_sweeps(folder, write):
    write("base", '[sweep]\n"model.top_k" = [1, 2]\n')
    write("mine", '[recipe]\nextends = "base"\n[model]\ntop_k = 2\n')
    assert expand(plan_of(folder, "mine")) == [("", {"model": {"top_k": 2}})]


def test_child_sweeps_what_its_base_sets(folder, write):
    write("base", "[model]\ntop_k = 2\n")
    write("mine", '[recipe]\nextends = "base"\n[sweep]\n"model.top_k" = [1, 4]\n')
    plan = plan_of(folder, "mine")
    assert [raw["model"]["top_k"] for _, raw in expand(plan)] == [1, 4]
    assert plan.origins["model.top_k"] == "recipe 'mine' [sweep]"


def test_sweeps_of_a_chain_are_bounded_together(folder, write):
    values = list(range(100))
    write("base", f'[sweep]\n"train.seed" = {values}\n')
    write("mine", f'[recipe]\nextends = "base"\n[sweep]\n"train.steps" = {values}\n')
    with pytest.raises(RecipeFileError, match="10000 runs; at most 1000"):
        plan_of(folder, "mine")


def test_resolving_leaves_the_recipe_as_it_was(folder, write):
    write("mine", "[train]\nsteps = 5000\n")
    recipe = get_recipe("mine", [folder])
    resolve(recipe, [folder], ["train.steps=3", "model.top_k=1"], smoke=True)
    assert recipe.settings == {"train": {"steps": 5000}}


def test_folders_of_users_recipes(tmp_path):
    assert loader.list_folders(tmp_path / "home", tmp_path) == (
        tmp_path / "tsx-recipes",
        tmp_path / "home" / "recipes",
    )
