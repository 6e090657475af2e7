"""tsx tag, note and rename."""

from __future__ import annotations

import json
import shlex

import pytest

from tsx.cli.verbs import VERBS, load_verb

RED = "\x1b[31mred"


@pytest.fixture
def two(record):
    """Record two runs and return the folder of the newer."""
    record("aaaaaaaa", "first", {"train/loss": [3.0, 2.0]}, tags=("old",))
    return record("bbbbbbbb", "second", {"train/loss": [1.0]}, time=1_700_000_100.0)


def test_tags_are_put_on_and_taken_off(tsx, two):
    row = json.loads(tsx("tag", "first", "new", "paper", "new", "--json").out)
    assert row["tags"] == ["old", "new", "paper"]
    done = tsx("tag", "first", "more", "--remove", "old", "--remove", "paper")
    assert (done.status, done.out) == (0, "")
    assert "run aaaaaaaa first: tags +more, -old, -paper" in done.err
    runs = json.loads(tsx("runs", "--json", "--tag", "more").out)["runs"]
    assert [(run["id"], run["tags"]) for run in runs] == [("aaaaaaaa", ["new", "more"])]


def test_a_note_is_replaced_added_to_and_taken_away(tsx, two):
    assert json.loads(tsx("note", "@last", "one", "--json").out)["note"] == "one"
    row = json.loads(tsx("note", "@last", "two\n", "--append", "--json").out)
    assert row["note"] == "one\ntwo"
    assert "note taken away" in tsx("note", "@last", "").err
    assert json.loads(tsx("show", "@last", "--json").out)["run"]["note"] == ""


def test_a_name_changes_and_the_id_stays(tsx, two):
    row = json.loads(tsx("rename", "first", "  Zwölf Experten ", "--json").out)
    assert (row["id"], row["name"]) == ("aaaaaaaa", "Zwölf Experten")
    assert tsx("show", "Zwölf Experten", "--json").status == 0


def test_what_is_already_so_is_not_written_again(tsx, two):
    tsx("rename", "bbbbbbbb", "third")
    before = (two / "events.jsonl").read_bytes()
    assert "nothing to change" in tsx("rename", "bbbbbbbb", "third").err
    assert "nothing to change" in tsx("note", "bbbbbbbb", "").err
    assert (two / "events.jsonl").read_bytes() == before


def test_edits_survive_a_rebuild(tsx, two):
    tsx("tag", "first", "new")
    tsx("note", "first", "why\nso")
    tsx("rename", "first", "other")
    assert tsx("registry", "rebuild").status == 0
    row = json.loads(tsx("show", "aaaaaaaa", "--json").out)["run"]
    assert (row["name"], row["note"], row["tags"]) == ("other", "why\nso", ["old", "new"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tag", "first"), "no tag is given"),
        (("tag", "first", " "), "is empty"),
        (("tag", "first", RED), "tag ␛[31mred holds control characters"),
        (("tag", "first", "a\nb"), "a\\nb holds control characters"),
        (("tag", "first", "x" * 201), "a tag of 201 characters"),
        (("tag", "first", "a", "--remove", "a"), "to be taken off"),
        (("tag", "first", "--remove", "zz"), "has no tag 'zz'; it has: old"),
        (("tag", "first", *(f"t{number}" for number in range(120))), "at most 100"),
        (("note", "first", RED), "note ␛[31mred holds control characters"),
        (("note", "first", "x" * 1_000_000), "a note of 1,000,000 characters"),
        (("note", "first", " ", "--append"), "empty text"),
        (("note", "first"), "Missing argument 'TEXT'"),
        (("rename", "first", ""), "is empty"),
        (("rename", "first", "@last"), "begins like a position"),
        (("rename", "first", "\udcff"), "holds control characters"),
        (("rename", "first", "y" * 1_000_000), "a name of 1,000,000 characters"),
    ],
)
def test_texts_that_do_not_hold_are_refused_and_nothing_is_written(tsx, two, words, told):
    journal = two.with_name("aaaaaaaa") / "events.jsonl"
    before = journal.read_bytes()
    done = tsx(*words)
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert "\x1b" not in done.err
    assert len(done.err) < 1000
    assert journal.read_bytes() == before


def test_a_note_that_grows_too_long_is_refused(tsx, two):
    assert tsx("note", "first", "x" * 60_000).status == 0
    done = tsx("note", "first", "y" * 60_000, "--append")
    assert done.status == 2
    assert "would have 120,001 characters" in done.err


@pytest.mark.parametrize("verb", ["tag", "note", "rename"])
def test_an_unknown_run_offers_the_nearest(tsx, two, verb):
    done = tsx(verb, "frist", "x")
    assert (done.status, done.out) == (1, "")
    assert "nearest: first" in done.err


@pytest.mark.parametrize("verb", ["tag", "note", "rename"])
def test_a_run_whose_folder_is_gone_is_a_registry_error(tsx, two, verb):
    two.rename(two.with_name("cccccccc-moved"))
    done = tsx(verb, "bbbbbbbb", "x")
    assert (done.status, done.out) == (3, "")
    assert str(two) in done.err


def test_every_example_of_every_help_parses(tsx):
    seen = []
    for entry in VERBS:
        command = load_verb(entry.name)
        for line in command.examples:
            words = shlex.split(line)
            assert words[0] == "tsx"
            verb = command if words[1] == entry.name else load_verb(words[1])
            with verb.make_context(f"tsx {words[1]}", words[2:]) as context:
                if hasattr(verb, "commands"):
                    verb.resolve_command(context, [*context._protected_args, *context.args])
            assert line in tsx(entry.name, "--help").out
            seen.append(words[1])
    assert {"tag", "note", "rename", "sql", "du", "gc", "registry"} <= set(seen)
