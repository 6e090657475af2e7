"""Bad and hostile files: a RecipeFileError with a place, never a hang or another error."""

from __future__ import annotations

import os

import pytest

from recipes.errors import RecipeFileError
from recipes.files import MAX_FILE_BYTES, read_recipe


def refused(path, match):
    """Read a file that must be refused; return the message."""
    with pytest.raises(RecipeFileError, match=match) as caught:
        read_recipe(path, "test")
    assert str(path) in caught.value.message or "recipe" in caught.value.message
    assert len(caught.value.message) < 1000
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[train\n", "not valid TOML"),
        ("a = \n", "not valid TOML"),
        ("[a]\n[a]\n", "not valid TOML"),
        ("steps = 3\n", "steps=3 stands outside any section"),
        ("train = [1]\n", "outside any section"),
        ("recipe = 3\n", r"\[recipe\] is 3"),
        ("sweep = 3\n", r"\[sweep\] is 3"),
        ('[recipe]\nsumary = "x"\n', "sumary='x': unknown key; did you mean 'summary'"),
        ("[recipe]\nsummary = 3\n", "summary=3: expected text"),
        ('[recipe]\nminutes = "3"\n', "expected a number"),
        ("[recipe]\nminutes = true\n", "expected a number"),
        ("[recipe]\nminutes = -1\n", "0 or more minutes"),
        ("[recipe]\nminutes = nan\n", "0 or more minutes"),
        ("[recipe]\nminutes = inf\n", "0 or more minutes"),
        ("[recipe]\nextends = 3\n", "a name, or a list of names"),
        ("[recipe]\nextends = ['a', 3]\n", "a name, or a list of names"),
        ("[recipe]\nextends = ['']\n", "a name, or a list of names"),
        ("[sweep]\ntop_k = [1]\n", "an axis is a section and a key"),
        ("[sweep]\n'a.b.c' = [1]\n", "an axis is a section and a key"),
        ("[sweep]\n'model.top_k' = 1\n", "expected a list of one or more"),
        ("[sweep]\n'model.top_k' = []\n", "expected a list of one or more"),
        ("[sweep]\n'model.top_k' = [1, 1]\n", "a value stands twice"),
        ("[sweep]\n'train.seed' = [1]\n[train]\nseed = 2\n", r"also set: \[train\] seed=2"),
        ("[train]\nsteps = 2020-01-01\n", "train.steps=2020-01-01 is a date or time"),
        ("[train]\nsteps = 99999999999999999999\n", "train.steps is beyond 64 bits"),
    ],
)
def test_wrong_text_is_explained(write, text, match):
    refused(write("bad", text), match)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000,
        "x = " + "[" * 5_000 + "]" * 5_000,
        "x = " + "{a=" * 20_000,
        "[" + ".".join("a" * 100_000) + "]",
        ".".join(["a"] * 100_000) + " = 1",
        ".".join(['"a"'] * 60_000) + " = 1",
        " . ".join(["a"] * 60_000) + " = 1",
        ".".join("'a'" for _ in range(60_000)) + " = 1",
        "".join(f"[{'.'.join(f'k{i}' for i in range(12))}.x{n}]\n" for n in range(1_000)),
        "x = " + "9" * 200_000,
        "[train]\nx = 0x" + "f" * 200_000,
        "a" * 200_000,
        '"' * 200_000,
        "'''" + "a'" * 100_000,
        'x = "' + "\\" * 100_001,
        "#" * 200_000 + "\nx=",
        "[sweep]\n" + "".join(f'"a.b{i}" = [1, 2, 3, 4, 5, 6, 7, 8, 9]\n' for i in range(5_000)),
        "[sweep]\n'a.b' = [" + ",".join(map(str, range(1_500))) + "]",
        "[data]\ninclude = [" + "'a'," * 50_000 + "]",
        "\x00",
        "x = '\x1b[31m'",
    ],
    ids=range(21),
)
def test_hostile_text_is_refused_quickly(write, text):
    refused(write("hostile", text), "recipe 'hostile'")


def test_size_is_bounded_before_parsing(write):
    refused(write("large", "#" * MAX_FILE_BYTES + "\n"), "larger than 256 KiB")


def test_bytes_that_are_no_text(folder):
    path = folder / "latin.toml"
    path.write_bytes(b"# gr\xfc\xdfe\n")
    refused(path, "not UTF-8 text: byte 4")


def test_folder_pipe_and_dangling_link(folder):
    (folder / "dir.toml").mkdir()
    refused(folder / "dir.toml", "not a regular file")
    os.mkfifo(folder / "pipe.toml")
    refused(folder / "pipe.toml", "not a regular file")
    (folder / "link.toml").symlink_to(folder / "none")
    refused(folder / "link.toml", "No such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(write):
    path = write("secret", "")
    path.chmod(0)
    refused(path, "Permission denied")


def test_windows_text_is_read(folder):
    path = folder / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 3\r\n")
    assert read_recipe(path, "test").settings == {"train": {"steps": 3}}


def test_dots_in_strings_comments_and_numbers_are_no_keys(write):
    dots = "a." * 40
    path = write(
        "dots",
        f"# {dots}\n[data]\npath = '{dots}'\n[model]\nx = [{', '.join(['1.5'] * 40)}]\n"
        f'y = """{dots}\n{dots}"""\n',
    )
    assert read_recipe(path, "test").settings["data"]["path"] == dots


def test_empty_file_is_all_defaults(write):
    recipe = read_recipe(write("empty", ""), "test")
    assert (recipe.settings, recipe.axes, recipe.extends) == ({}, {}, ())
    assert recipe.info.name == "empty"
