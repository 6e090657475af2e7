"""tsx data inspect: what it shows, its exit status, and that hostile data stays inert."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tsx.cli import data_inspect

WAVE = np.sin(np.arange(200) / 5)


@pytest.fixture
def table(tmp_path):
    """Return a csv of two sound series."""
    path = tmp_path / "plain.csv"
    rows = "".join(f"2020-01-01,{a!r},{a * 2!r}\n" for a in WAVE.tolist())
    path.write_text(f"day,load,price\n{rows}")
    return path


def test_a_sound_file_is_shown_and_exits_with_0(tsx, table):
    done = tsx("data", "inspect", str(table), "--set", "data.context_length=32")
    assert (done.status, done.err) == (0, "")
    assert "windows of 32 points and a target, a start every 512" in done.out
    row = next(line for line in done.out.splitlines() if line.startswith(table.parent.name))
    assert row.split()[1:6] == ["2", "400", "200", "200", "2"]
    assert "at most 1e+09 in size" in done.out
    assert "series 1 'price'" in done.out
    assert "█" in done.out


def test_json_holds_the_same(tsx, table):
    done = tsx("data", "inspect", str(table), "--json", "--batch", "1")
    assert done.status == 0
    found = json.loads(done.out)
    (dataset,) = found["datasets"]
    assert (dataset["series"], dataset["points"], dataset["windows"]) == (2, 400, 2)
    assert found["faults"] == []
    assert found["huge_over"] == 1e9
    batch = found["batch"]
    assert batch["unequal"] == 0
    assert batch["target"][0][:50] == batch["input"][0][1:51]
    assert batch["windows"][0]["start"] == 0


def test_a_batch_is_drawn_and_its_shift_is_checked(tsx, tmp_path):
    lines = [WAVE[:60].tolist(), WAVE[:12].tolist()] * 20
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    settings = ("--set", "data.context_length=16", "--set", "train.batch_size=6")
    done = tsx("data", "inspect", str(path), "--batch", "0", *settings)
    assert (done.status, done.err) == (0, "")
    assert "batch 0 of seed 0: 6 windows of 16 points" in done.out
    assert "row 0, first 16 places" in done.out
    assert "11/16" in done.out
    assert "shift: target t is input t+1 at all" in done.out
    cells = [line.split() for line in done.out.partition("target = input")[2].splitlines()[1:7]]
    assert [row[3] for row in cells[:5]] == [row[1] for row in cells[1:6]]


def test_a_point_that_is_left_out_is_shown_where_it_is(tsx, tmp_path):
    values = np.sin(np.arange(200) / 9)
    values[40] = np.nan
    np.save(tmp_path / "a.npy", values)
    settings = ("--set", "data.context_length=100", "--allow-nonfinite", "--batch", "0")
    done = tsx("data", "inspect", str(tmp_path / "a.npy"), *settings)
    assert done.status == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert any(row[0:1] == ["39"] and row[2:] == ["1", "0", "0"] for row in rows)
    assert any(row[0:3] == ["40", "0", "0"] and row[4:] == ["1"] for row in rows)


def test_a_wrong_shift_is_a_failure(tsx, table, monkeypatch):
    from tsx.data import preview as preview_module

    monkeypatch.setattr(preview_module, "count_shift", lambda batch: (10, 3))
    done = tsx("data", "inspect", str(table), "--batch", "0")
    assert done.status == 1
    assert "targets are not the inputs one point later at 3 places" in done.err
    assert "shift: target" not in done.out


def test_every_fault_is_named_and_exits_with_1(tsx, tmp_path, table):
    root = tmp_path / "root"
    root.mkdir()
    table.rename(root / "plain.csv")
    (root / "text.csv").write_text("a,b\n1,2\n3,x\n")
    (root / "old.pkl").write_bytes(b"")
    (root / "holes.jsonl").write_text("[1, 2, null, 4]")
    done = tsx("data", "inspect", str(root))
    assert done.status == 1
    assert "column 2 'b' holds 'x' in row 3" in done.err
    assert "is a pickle" in done.err
    assert "series 0 is nan at point 2 of 4" in done.err
    assert done.err.count("next: ") == 3
    assert "root/plain.csv" in done.out
    assert "root/holes.jsonl: 1 points of 1 series are not finite" in done.out
    told = json.loads(tsx("data", "inspect", str(root), "--json").out)["faults"]
    assert [fault["dataset"] for fault in told] == [
        "root/holes.jsonl",
        "root/old.pkl",
        "root/text.csv",
    ]
    chosen = ("--set", 'data.exclude=["root/[hot]*"]')
    assert tsx("data", "inspect", str(root), *chosen).status == 0


def test_points_that_are_not_finite_may_be_allowed(tsx, tmp_path):
    (tmp_path / "holes.jsonl").write_text("[1, 2, null, 4]")
    done = tsx("data", "inspect", str(tmp_path / "holes.jsonl"), "--allow-nonfinite")
    assert (done.status, done.err) == (0, "")


def test_many_faults_are_counted(tsx, tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(data_inspect.MAX_FAULTS + 3):
        (tmp_path / "many" / f"{number}.json").write_text("")
    done = tsx("data", "inspect", str(tmp_path / "many"))
    assert (done.status, done.out) == (1, "")
    assert done.err.count("error: ") == data_inspect.MAX_FAULTS
    assert "and 3 more faults" in done.err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("gone",), "no such file or folder"),
        (("",), "PATH is empty"),
        ((".", "--set", "data.contxt=3"), "did you mean 'context_length'"),
        ((".", "--set", "data.context_length=0"), "context_length=0"),
        ((".", "--batch", "-1"), "-1"),
    ],
)
def test_a_wrong_command_line_exits_with_2(tsx, tmp_path, monkeypatch, words, fault):
    monkeypatch.chdir(tmp_path)
    done = tsx("data", "inspect", *words)
    assert (done.status, done.out) == (2, "")
    assert fault in done.err


def test_hostile_names_stay_inert(tsx, tmp_path):
    path = tmp_path / "\x1b[31m[red]x.csv"
    path.write_text("day,\x1b[31m[bold]y\nm,1\nt,\nw,2\n")
    done = tsx("data", "inspect", str(path))
    assert done.status == 1
    assert "\x1b" not in done.out + done.err
    assert "[bold]y" in done.err


def test_progress_is_told_where_it_takes_long(tsx, table, monkeypatch):
    monkeypatch.setattr(data_inspect, "_QUIET_S", -1.0)
    monkeypatch.setattr(data_inspect, "_LINE_EVERY_S", 0.0)
    done = tsx("data", "inspect", str(table))
    assert done.status == 0
    assert "inspecting " in done.err
    assert "%, eta " in done.err


def test_torch_is_never_imported(table, tmp_path):
    code = (
        "import sys; from tsx.cli.main import main; "
        "status = main(['data', 'inspect', sys.argv[1], '--batch', '0']); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(table)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_name_with_line_breaks_forges_no_line(tsx, tmp_path):
    hostile = tmp_path / "a\nnext: rm -rf x\n\x1b[31m.npy"
    hostile.write_bytes(b"no npy")
    done = tsx("data", "inspect", str(hostile))
    assert done.status == 1
    assert not [line for line in done.err.splitlines() if line.startswith("next: rm")]
    hostile.with_suffix(".jsonl").write_text("[1, 1, 1]\n")
    done = tsx("data", "inspect", str(hostile.with_suffix(".jsonl")))
    assert done.status == 0
    assert not [line for line in done.out.splitlines() if line.startswith("next: rm")]
    assert "\x1b" not in done.out
