"""tsx runs."""

import json
import math
import sqlite3

import pytest

import registry.recover
from registry.events import Finding, Severity, Status
from tsx.text import count_cells

EVIL = "\x1b[31m[bold]evil[/bold]\u202e\n"


@pytest.fixture
def three(record):
    """Record three runs, the oldest first."""
    curves = {"train/loss": [3.0, 2.0], "val/loss": [2.5]}
    record("aaaaaaaa", "first", curves, tags=("a", "b"), project="vision")
    ending = {"status": Status.DIVERGED, "reason": "train/loss is NaN at step 2"}
    curves = {"train/loss": [3.0, math.nan]}
    record("bbbbbbbb", "second", curves, time=1_700_000_100.0, recipe="overfit", ending=ending)
    record("cccccccc", EVIL, {"train/loss": [1.0]}, time=1_700_000_200.0, steps=9, smoke=True)


def test_json_has_every_run_newest_first(tsx, three):
    done = tsx("runs", "--json")
    assert done.status == 0
    runs = json.loads(done.out)["runs"]
    assert [run["id"] for run in runs] == ["cccccccc", "bbbbbbbb", "aaaaaaaa"]
    oldest = runs[-1]
    assert oldest["name"] == "first"
    assert (oldest["recipe"], oldest["project"]) == ("sanity", "vision")
    assert oldest["status"] == "completed"
    assert oldest["reason"] == ""
    assert oldest["created"] == 1_700_000_000.0
    assert (oldest["step"], oldest["steps"]) == (2, 2)
    assert oldest["tags"] == ["a", "b"]
    assert oldest["parent"] == ""
    assert oldest["metrics"] == {"train/loss": 2.0, "val/loss": 2.5}
    assert runs[1]["metrics"] == {"train/loss": "NaN"}
    assert runs[1]["reason"] == "train/loss is NaN at step 2"
    assert runs[0]["smoke"] is True


def test_without_runs_the_list_is_empty_and_the_next_command_named(tsx):
    assert json.loads(tsx("runs", "--json").out) == {"runs": []}
    done = tsx("runs")
    assert (done.status, done.out) == (0, "")
    assert "tsx run sanity" in done.err


def test_reading_an_absent_registry_makes_none(tsx, tmp_path):
    tsx("runs")
    assert not (tmp_path / "tsx-home").exists()


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        (("--limit", "1"), ["cccccccc"]),
        (("--limit", "99"), ["cccccccc", "bbbbbbbb", "aaaaaaaa"]),
        (("--limit", "1", "--offset", "1"), ["bbbbbbbb"]),
        (("--offset", "2"), ["aaaaaaaa"]),
        (("--offset", "99999999999999999999999"), []),
        (("--project", "vision"), ["aaaaaaaa"]),
        (("--project", ""), ["cccccccc", "bbbbbbbb"]),
        (("--status", "diverged"), ["bbbbbbbb"]),
        (("--tag", "b"), ["aaaaaaaa"]),
        (("--recipe", "overfit"), ["bbbbbbbb"]),
        (("--tag", "none"), []),
        (("--recipe", "sanity", "--limit", "1"), ["cccccccc"]),
    ],
)
def test_the_list_is_narrowed(tsx, three, flags, ids):
    assert [run["id"] for run in json.loads(tsx("runs", "--json", *flags).out)["runs"]] == ids


def test_the_table_is_whole_aligned_and_inert(tsx, three):
    done = tsx("runs")
    head, *rows = done.out.splitlines()
    assert head.split()[:5] == ["id", "name", "project", "recipe", "status"]
    assert [row.split()[0] for row in rows] == ["cccccccc", "bbbbbbbb", "aaaaaaaa"]
    place = count_cells(head[: head.index("status")])
    assert all("✓✗"[row.split()[0] == "bbbbbbbb"] == cell_at(row, place) for row in rows)
    assert "␛[31m[bold]evil[/bold]\\u202e\\n" in rows[0]
    assert "(smoke)" in rows[0]
    assert "NaN" in rows[1]
    assert done.out.replace("\n", "").isprintable()


def cell_at(row, place):
    """Return the character at a cell of a line."""
    used = 0
    for char in row:
        if used == place:
            return char
        used += count_cells(char)
    return ""


def test_on_a_terminal_a_line_never_exceeds_it(tsx, three, monkeypatch):
    monkeypatch.setattr("tsx.cli.output.is_terminal", lambda stream: True)
    for width in (60, 80, 100, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = tsx("runs").out.splitlines()
        assert len(lines) == 4
        assert all(count_cells(line) <= width for line in lines)
        assert "cccccccc" in lines[1]


def test_a_list_is_whole_however_long(tsx, record):
    for number in range(120):
        record(f"r{number:07}", "many", {}, time=1_700_000_000.0 + number)
    assert len(json.loads(tsx("runs", "--json").out)["runs"]) == 120
    assert len(tsx("runs").out.splitlines()) == 121


def test_projects_have_a_column_only_where_there_are_some(tsx, record):
    record("aaaaaaaa", "first", {"train/loss": [1.0]})
    assert "project" not in tsx("runs").out
    record("bbbbbbbb", "second", {"train/loss": [1.0]}, project=EVIL)
    shown = tsx("runs").out
    assert "project" in shown.splitlines()[0]
    assert shown.replace("\n", "").isprintable()
    assert "project ␛[31m[bold]" in tsx("show", "second").out


def test_what_was_found_has_a_column_where_there_is_some(tsx, record):
    record("aaaaaaaa", "first", {"train/loss": [1.0]})
    assert "found" not in tsx("runs").out
    severities = (Severity.ERROR, Severity.WARNING, Severity.WARNING, Severity.INFO)
    found = [
        Finding(time=1.0, kind="router", severity=severity, cause=f"cause {number}")
        for number, severity in enumerate(severities)
    ]
    found = [*found, found[0]]
    record("bbbbbbbb", "second", {"train/loss": [1.0]}, time=1_700_000_100.0, events=found)
    head, row, other = tsx("runs").out.splitlines()
    assert "found" in head
    assert "✗1 ▲2" in row
    assert "▲" not in other
    listed = json.loads(tsx("runs", "--json").out)["runs"]
    assert [run["finding_counts"] for run in listed] == [
        {"error": 1, "warning": 2, "info": 1},
        {},
    ]


def test_an_unknown_status_is_refused_with_the_valid_ones(tsx):
    done = tsx("runs", "--status", "done")
    assert done.status == 2
    assert "'done'" in done.err
    assert "completed" in done.err


@pytest.mark.parametrize("words", ["--limit 0", "--limit -1", "--limit many", "--offset -1"])
def test_a_limit_that_is_no_count_is_refused(tsx, words):
    assert tsx("runs", *words.split()).status == 2


def test_a_corrupt_registry_is_said_and_left_alone(tsx, three, tmp_path):
    file = tmp_path / "tsx-home" / "registry.db"
    for name in ("registry.db-wal", "registry.db-shm"):
        file.with_name(name).unlink(missing_ok=True)
    file.write_bytes(b"this is not a registry" * 500)
    done = tsx("runs", "--json")
    assert done.status == 3
    assert done.out == ""
    assert "tsx registry rebuild" in done.err
    assert file.read_bytes() == b"this is not a registry" * 500


def test_a_run_whose_process_is_gone_shows_as_killed(tsx, three, tmp_path):
    journal = tmp_path / "tsx-home" / "runs" / "aaaaaaaa" / "events.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    folder = tmp_path / "tsx-home" / "runs" / "dddddddd"
    folder.mkdir()
    open_ended = [line.replace(b"aaaaaaaa", b"dddddddd") for line in lines[:-1]]
    (folder / "events.jsonl").write_bytes(b"".join(open_ended))
    runs = {run["id"]: run for run in json.loads(tsx("runs", "--json").out)["runs"]}
    assert runs["dddddddd"]["status"] == "killed"
    assert runs["dddddddd"]["reason"]
    assert runs["dddddddd"]["metrics"] == runs["aaaaaaaa"]["metrics"]


def test_a_name_and_tags_of_any_length_leave_the_table_readable(tsx, record):
    record("aaaaaaaa", "n" * 100_000, {"train/loss": [1.0]}, tags=("t" * 100_000,))
    done = tsx("runs")
    assert max(map(len, done.out.splitlines())) < 1000
    assert "more characters" in done.out or "characters)" in done.out
    assert json.loads(tsx("runs", "--json").out)["runs"][0]["name"] == "n" * 100_000


def test_a_dead_run_that_cannot_be_ended_is_said(tsx, record, tmp_path, monkeypatch):
    folder = record("aaaaaaaa", "first", {"train/loss": [1.0]})
    with (folder / "events.jsonl").open("a") as journal:
        journal.write('{"type":"heartbeat","time":2e9,"step":3}\n')
    monkeypatch.setattr(registry.recover, "_LOOK_S", 0.05)
    holder = sqlite3.connect(tmp_path / "tsx-home" / "registry.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    done = tsx("runs", "--json")
    holder.close()
    assert done.status == 0
    assert len(json.loads(done.out)["runs"]) == 1
    assert "cannot be recorded: registry" in done.err
    assert "is locked by" in done.err
    assert tsx("runs").err == ""
