"""--set section.key=VALUE."""

from __future__ import annotations

import pytest

from recipes.errors import RecipeFileError
from recipes.overrides import parse_override, parse_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1", -1),
        ("1_000", 1000),
        ("1e-3", 1e-3),
        ("0.5", 0.5),
        ("true", True),
        ('"1"', "1"),
        ("'a b'", "a b"),
        ("[1, 8]", [1, 8]),
        ('["finance/*"]', ["finance/*"]),
        ("cosine", "cosine"),
        ("/tmp/some where", "/tmp/some where"),
        ("True", "True"),
        ("a=b", "a=b"),
        ("", ""),
        ("  7  ", 7),
        ("2024-01-01", "2024-01-01"),
        ("finance/* # all", "finance/* # all"),
        ("{a = 1}", "{a = 1}"),
        ("1\nother = 2", "1\nother = 2"),
        ("[" * 1000, "[" * 1000),
        ('"unclosed', '"unclosed'),
        ("\x1b[31m", "\x1b[31m"),
    ],
)
def test_value_is_toml_or_a_bare_string(text, value):
    key, parsed = parse_override(f"a.b={text}")
    assert key == "a.b"
    assert parsed == value
    assert type(parsed) is type(value)


def test_nan_reaches_the_config_that_refuses_it():
    _, value = parse_override("optim.lr=nan")
    assert value != value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "a.b",
        "a=1",
        "=1",
        ".=1",
        "a.=1",
        ".b=1",
        "a.b.c=1",
        "a b.c=1",
        "a..b=1",
        "1a.b=1",
        "ä.b=1",
        "a.b=" + "1" * 5000,
        "x" * 10_000,
        "\x1b[31m.b=1",
    ],
)
def test_wrong_flag_is_refused_with_what_was_given(text):
    with pytest.raises(RecipeFileError, match="--set") as caught:
        parse_override(text)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("text", ["9" * 30, "-" + "9" * 30, "0x" + "f" * 400])
def test_integer_beyond_64_bits_is_refused(text):
    with pytest.raises(RecipeFileError, match="beyond 64 bits"):
        parse_override(f"train.seed={text}")


def test_last_of_a_repeated_key_wins_and_is_reported_once():
    given = parse_overrides(["a.b=1", "c.d=2", "a.b=3", " a.b =4"])
    assert given.values == {"a.b": 4, "c.d": 2}
    assert given.repeated == ("a.b",)
