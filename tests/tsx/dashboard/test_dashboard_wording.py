"""What the overview says, and that it fits."""

import pytest

from tsx.dashboard.messages import Snapshot
from tsx.dashboard.wording import list_cells, list_columns, list_empty_lines, make_keys, make_title
from tsx.text import count_cells


def test_columns_fit_every_width_from_forty_cells():
    for width in range(40, 260):
        columns = list_columns(width)
        assert 2 + sum(column.width + 2 for column in columns) <= width
        assert {"run", "loss"} <= {column.title for column in columns}


def test_more_room_never_shows_fewer_columns():
    counts = [len(list_columns(width)) for width in range(20, 260)]
    assert counts == sorted(counts)
    assert [column.title for column in list_columns(120)] == [
        *("", "run", "recipe", "status", "step", "loss", "val", "mfu", "found", "age")
    ]


def test_cells_belong_to_their_columns(filled):
    columns = list_columns(120)
    cells = list_cells(filled.runs[0], columns, 1_790_000_000.0)
    by_title = {column.title: cell for column, cell in zip(columns, cells, strict=True)}
    assert by_title["run"].text == "sanity"
    assert by_title["status"] == ("running", "running")
    assert by_title["step"].text == "124/200"
    assert by_title["age"].text == "1m"
    assert by_title["mfu"].text.endswith("%")
    assert by_title["found"].text == ""
    diverged = next(run for run in filled.runs if run.status == "diverged")
    by_title = dict(zip(columns, list_cells(diverged, columns, 1_790_000_000.0), strict=True))
    assert {c.title: cell for c, cell in by_title.items()}["found"] == ("✗1 ▲2", "error")


def test_a_run_without_metrics_or_plan_has_dashes(empty):
    empty.add("n0000001", "", "strange", steps=10, age=5)
    run = empty.runs[0]
    run.metrics.clear()
    cells = list_cells(run, list_columns(120), 1_790_000_000.0)
    assert cells[1].text == "n0000001"
    assert cells[0].kind == "failed"
    assert [cell.text for cell in cells].count("\N{EN DASH}") == 3


@pytest.mark.parametrize("trouble", ["", "locked \x1b[31m by [bold]pid 7"])
def test_every_line_is_inert(filled, trouble):
    snapshot = Snapshot(runs=tuple(filled.runs), trouble=trouble)
    lines = [make_title(snapshot, "/x\x1b[2J"), make_keys((("q", "quit"),), trouble)]
    lines += list_empty_lines(trouble)
    for line in lines:
        assert all(piece.text.isprintable() for piece in (*line.left, *line.right))


def test_trouble_stands_before_the_keys():
    line = make_keys((("q", "quit"),), "registry is locked")
    assert "registry is locked" in "".join(piece.text for piece in line.left)
    assert "quit" in "".join(piece.text for piece in line.right)
    assert count_cells("".join(piece.text for piece in line.left)) > 10


def test_the_title_counts_all_runs_and_not_the_page():
    text = "".join(piece.text for piece in make_title(Snapshot(num_runs=6, num_running=1), "").left)
    assert "6 runs" in text
    assert "1 running" in text
    text = "".join(piece.text for piece in make_title(Snapshot(num_runs=1), "").left)
    assert "1 run" in text
    assert "running" not in text
