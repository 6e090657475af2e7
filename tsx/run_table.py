"""The list of runs as lines of aligned cells. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from registry.views import RunRow
from tsx.cli.output import MAX_CELL, clean
from tsx.ink import SEVERITY_GLYPHS, STATUS_GLYPHS, Line, Piece, find_status_kind
from tsx.loss_names import TRAIN_LOSSES, VAL_LOSSES, find_value
from tsx.text import count_cells, format_age, format_step, format_value, pad


class Column(NamedTuple):
    """A column. Where room is short, columns of a higher rank go first, then names are cut."""

    title: str
    right: bool = False
    rank: int = 0


_COLUMNS = (
    Column("id"),
    Column("name"),
    Column("project", rank=3),
    Column("recipe", rank=3),
    Column("status"),
    Column("step", right=True, rank=1),
    Column("loss", right=True),
    Column("val loss", right=True),
    Column("found"),
    Column("age", right=True),
    Column("data", rank=4),
    Column("tags", rank=5),
)
_MIN_NAME = 12
_OPTIONAL = ("project", "found", "tags")  # columns that are left out where they would be empty

KEYS = (*TRAIN_LOSSES, *VAL_LOSSES)  # metrics that a line shows


def make_lines(runs: Sequence[RunRow], now: float, width: int | None) -> list[Line]:
    """Return a head and one line per run.

    Args:
        runs: what to list.
        now: UTC seconds since the epoch, for ages.
        width: cells of a line, or None to cut no cell below MAX_CELL characters.
    """
    rows = [_make_cells(run, now) for run in runs]
    columns = [
        column
        for column in _COLUMNS
        if column.title not in _OPTIONAL or any(row[column.title].text for row in rows)
    ]
    widths = {
        title: max([count_cells(title), *(count_cells(row[title].text) for row in rows)])
        for title in (column.title for column in columns)
    }
    if width is not None:
        columns = _narrow(columns, widths, width)
    head = {column.title: Piece(column.title, "head") for column in columns}
    return [Line(tuple(_list_pieces(row, columns, widths))) for row in (head, *rows)]


def make_mark(run: RunRow) -> Piece:
    """Return how many errors and warnings were found in a run, in the colour of the gravest."""
    found = [name for name in ("error", "warning") if run.finding_counts.get(name)]
    text = " ".join(f"{SEVERITY_GLYPHS[name]}{run.finding_counts[name]}" for name in found)
    return Piece(text, found[0] if found else "text")


def _make_cells(run: RunRow, now: float) -> dict[str, Piece]:
    """Return the cells of one run by column."""
    kind = find_status_kind(run.status)
    data = f"{clean(run.data_source)} (smoke)" if run.smoke else clean(run.data_source)
    return {
        "id": Piece(clean(run.id), "hint"),
        "name": Piece(clean(run.name, limit=MAX_CELL), "strong"),
        "project": Piece(clean(run.project, limit=MAX_CELL), "text"),
        "recipe": Piece(clean(run.recipe, limit=MAX_CELL), "text"),
        "status": Piece(f"{STATUS_GLYPHS[kind]} {clean(run.status)}", kind),
        "step": Piece(format_step(run.step, run.steps), "text"),
        "loss": Piece(format_value(find_value(TRAIN_LOSSES, run.metrics)), "text"),
        "val loss": Piece(format_value(find_value(VAL_LOSSES, run.metrics)), "text"),
        "found": make_mark(run),
        "age": Piece(format_age(run.created, now), "muted"),
        "data": Piece(data, "muted"),
        "tags": Piece(clean(" ".join(run.tags), limit=MAX_CELL), "muted"),
    }


def _narrow(columns: list[Column], widths: dict[str, int], width: int) -> list[Column]:
    """Return the columns that fit, the name cut where that is not enough; changes `widths`."""
    kept = list(columns)

    def excess() -> int:
        return sum(widths[column.title] + 2 for column in kept) - 2 - width

    while excess() > 0 and any(column.rank for column in kept):
        spare = widths["name"] - _MIN_NAME
        if 0 < excess() <= spare // 2:
            break
        kept.remove(max(kept, key=lambda column: column.rank))
    if excess() > 0:
        widths["name"] = max(widths["name"] - excess(), _MIN_NAME)
    return kept


def _list_pieces(
    cells: dict[str, Piece], columns: list[Column], widths: dict[str, int]
) -> list[Piece]:
    """Return one line's pieces, two spaces between columns and none after the last."""
    pieces = []
    for column in columns:
        cell = cells[column.title]
        text = pad(cell.text, widths[column.title], right=column.right)
        is_last = column is columns[-1]
        pieces.append(Piece(text.rstrip() if is_last else text + "  ", cell.kind))
    return pieces
