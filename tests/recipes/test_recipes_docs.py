"""docs/recipes.md says what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from recipes import files, loader, smoke
from recipes.loader import expand, get_recipe, list_presets, list_recipes, resolve
from tsx.config import RunConfig, decode, to_plain

TEXT = (Path(__file__).parent.parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
PLAIN = " ".join(TEXT.split())


@pytest.mark.parametrize("info", list_recipes(), ids=lambda info: info.name)
def test_every_recipe_is_in_the_table(info):
    row = re.search(rf"^\| `{info.name}` \| .* \| (\d+) minutes? \|$", TEXT, re.MULTILINE)
    assert row is not None
    assert float(row[1]) == info.minutes


def test_every_preset_and_section_is_named():
    for preset in list_presets():
        assert f"`preset:{preset.name}`" in TEXT
    for section in to_plain(RunConfig()):
        assert f"`{section}`" in TEXT


def test_the_example_is_a_valid_recipe(folder, write):
    example = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)[1]
    assert tomllib.loads(example)["recipe"]["extends"] == "sanity"
    write("mine", example)
    plan = resolve(get_recipe("mine", [folder]), [folder])
    assert [decode(raw).model.top_k for _, raw in expand(plan)] == [1, 2]


@pytest.mark.parametrize(
    "claim",
    [
        f"{files.MAX_FILE_BYTES // 1024} KiB",
        f"{files.MAX_DEPTH} levels of nesting",
        f"{files.MAX_VALUES:,} values",
        f"keys of {files.MAX_KEY_PARTS} parts",
        f"`extends` {loader.MAX_EXTENDS} files",
        f"at most {files.MAX_SWEEP_RUNS}",
        f"{smoke.STEPS} steps, batch {smoke.BATCH_SIZE}, {smoke.NUM_LAYERS} layers of width "
        f"{smoke.HIDDEN_SIZE}, {smoke.NUM_EXPERTS} experts, a context of {smoke.TOKENS} tokens",
        f"log every {smoke.LOG_EVERY} steps, validate and write checkpoints every {smoke.EVERY}",
    ],
)
def test_every_bound_is_the_one_in_the_code(claim):
    assert claim in PLAIN
