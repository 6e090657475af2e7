"""tsx recipes: list, show, validate."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from recipes.loader import list_recipes
from tsx.config import decode


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a ./tsx-recipes of this test's own."""
    made = tmp_path / "tsx-recipes"
    made.mkdir()
    monkeypatch.chdir(tmp_path)
    return made


def test_list_has_every_recipe_with_what_it_shows(tsx):
    done = tsx("recipes")
    assert done.status == 0
    for info in list_recipes():
        line = next(line for line in done.out.splitlines() if line.startswith(f"{info.name} "))
        assert info.summary in line
        assert "built-in" in line


def test_list_as_json(tsx, folder):
    (folder / "mine.toml").write_text('[recipe]\nsummary = "my own"\nminutes = 0.5\n')
    recipes = json.loads(tsx("recipes", "--json").out)["recipes"]
    assert {"sanity", "ood-sanity", "overfit", "mine"} <= {recipe["name"] for recipe in recipes}
    mine = recipes[-1]
    assert (mine["name"], mine["summary"], mine["minutes"]) == ("mine", "my own", 0.5)
    assert Path(mine["path"]) == folder / "mine.toml"


def test_list_has_recipes_of_the_home(tsx, tmp_path):
    home = tmp_path / "tsx-home" / "recipes"
    home.mkdir(parents=True)
    (home / "at-home.toml").write_text("")
    assert "at-home" in tsx("recipes").out


def test_list_survives_a_broken_file_and_hostile_text(tsx, folder):
    (folder / "broken.toml").write_text("[")
    (folder / "loud.toml").write_text('[recipe]\nsummary = "\\u001b[2J[red]x[/red]"\n')
    done = tsx("recipes")
    assert done.status == 0
    assert "cannot be read" in done.out
    assert "␛[2J[red]x[/red]" in done.out


def test_show_fills_in_every_default_and_says_who_set_what(tsx):
    done = tsx("recipes", "show", "sanity", "--set", "model.top_k=2")
    assert done.status == 0
    shown = tomllib.loads(done.out)
    shown.pop("recipe")
    config = json.loads(tsx("recipes", "show", "sanity", "--set", "model.top_k=2", "--json").out)
    assert shown == {
        section: {key: value for key, value in keys.items() if value is not None}
        for section, keys in config["config"].items()
    }
    assert shown["model"]["top_k"] == 2
    lines = {line.split(" = ")[0]: line for line in done.out.splitlines() if " = " in line}
    assert lines["top_k"].endswith("# --set")
    assert lines["hidden_size"].endswith("# recipe 'sanity'")
    assert lines["rope_theta"].endswith("# default")


def test_what_show_prints_is_the_same_recipe(tsx, folder):
    for name in ("sanity", "ood-sanity", "overfit"):
        for flags in ((), ("--smoke",)):
            (folder / "copy.toml").write_text(tsx("recipes", "show", name, *flags).out)
            original = json.loads(tsx("recipes", "show", name, *flags, "--json").out)
            copy = json.loads(tsx("recipes", "show", "copy", "--json").out)
            assert copy["config"] == original["config"]
            assert copy["runs"] == original["runs"]


def test_show_keeps_a_sweep_in_its_copy(tsx, folder):
    (folder / "mine.toml").write_text('[sweep]\n"model.top_k" = [1, 2]\n"optim.lr" = [0.1, 1e-3]\n')
    done = tsx("recipes", "show", "mine")
    assert "4 runs" in done.err
    (folder / "copy.toml").write_text(done.out)
    original = json.loads(tsx("recipes", "show", "mine", "--json").out)
    copy = json.loads(tsx("recipes", "show", "copy", "--json").out)
    assert copy["runs"] == original["runs"]
    assert original["sweep"] == {"model.top_k": [1, 2], "optim.lr": [0.1, 0.001]}
    assert original["runs"][0]["suffix"] == "top_k=1,lr=0.1"


def test_show_spells_hostile_text_as_toml(tsx, folder):
    text = '\x1b[31m"quoted"\\ \x7f\u202e \U0001f642 größe'
    spelled = "".join(f"\\U{ord(char):08x}" for char in text)
    (folder / "mine.toml").write_text(f'[data]\npath = "{spelled}"\n')
    done = tsx("recipes", "show", "mine")
    assert done.status == 0
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    assert tomllib.loads(done.out)["data"]["path"] == text


def test_show_json_has_config_origins_and_fingerprints(tsx):
    document = json.loads(tsx("recipes", "show", "sanity", "--smoke", "--json").out)
    assert document["smoke"] is True
    assert document["config"]["train"]["steps"] == 8
    assert document["origins"]["train.steps"] == "--smoke"
    assert decode(document["config"]).train.steps == 8
    assert len(document["runs"][0]["fingerprint"]) == 16


def test_repeated_set_warns(tsx):
    done = tsx("recipes", "show", "sanity", "--set", "train.steps=3", "--set", "train.steps=4")
    assert "warning: --set train.steps is given more than once; the last one wins" in done.err
    assert "steps = 4" in done.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["show", "santy"], "did you mean 'sanity'"),
        (["show", "sanity", "--set", "model.topk=1"], "[model] topk=1: unknown key; did you mean"),
        (["show", "sanity", "--set", "model.top_k=9"], "top_k=9 exceeds num_experts=2"),
        (["show", "sanity", "--set", "model.hidden_size=63"], "hidden_size=63 is not divisible"),
        (["show", "sanity", "--set", "optim.lr=nan"], "lr=nan: expected a finite number"),
        (["show", "sanity", "--set", "top_k"], "--set 'top_k' has no '='"),
        (["show", "./none.toml"], "no recipe file './none.toml'"),
        (["show"], "name"),
        (["show", "sanity", "extra"], "extra"),
    ],
)
def test_wrong_line_exits_2_with_value_and_place(tsx, line, message):
    done = tsx("recipes", *line)
    assert done.status == 2
    assert message in done.err
    assert done.out == ""


def test_error_of_one_point_of_a_sweep_names_it(tsx, folder):
    (folder / "mine.toml").write_text('[sweep]\n"model.top_k" = [1, 9]\n')
    done = tsx("recipes", "show", "mine")
    assert done.status == 2
    assert "recipe 'mine' (top_k=9) [model] top_k=9 exceeds num_experts=8" in done.err


def test_validate_reports_every_file(tsx, folder):
    (folder / "good.toml").write_text('[sweep]\n"train.seed" = [1, 2]\n')
    (folder / "bad.toml").write_text("[model]\ntopk = 1\n")
    (folder / "torn.toml").write_text("[model\n")
    files = [f"tsx-recipes/{name}.toml" for name in ("bad", "good", "torn", "none")]
    done = tsx("recipes", "validate", *files)
    assert done.status == 2
    assert done.out == "tsx-recipes/good.toml: valid, 2 runs\n"
    assert "recipe 'bad' [model] topk=1: unknown key; did you mean 'top_k'?" in done.err
    assert "not valid TOML" in done.err
    assert "no recipe file 'tsx-recipes/none.toml'" in done.err


def test_validate_takes_every_shipped_recipe(tsx):
    names = [info.name for info in list_recipes()]
    done = tsx("recipes", "validate", *names)
    assert done.status == 0
    assert len(done.out.splitlines()) == len(names)


def test_validate_survives_a_hostile_file(tsx, folder):
    (folder / "deep.toml").write_text("x = " + "[" * 100_000)
    done = tsx("recipes", "validate", "deep")
    assert done.status == 2
    assert "nested deeper" in done.err
