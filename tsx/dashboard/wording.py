"""What the overview says: snapshots to lines and cells. Pure; no Textual."""

from __future__ import annotations

from typing import NamedTuple

from registry.views import RunRow
from tsx.cli.output import clean
from tsx.dashboard.messages import Snapshot
from tsx.ink import STATUS_GLYPHS, Line, Piece, find_status_kind
from tsx.loss_names import TRAIN_LOSSES, VAL_LOSSES, find_value
from tsx.run_table import make_mark
from tsx.text import format_age, format_step, format_value


class Column(NamedTuple):
    """A column of the run table. Columns of a higher rank go first when room is short."""

    title: str
    width: int
    right: bool
    rank: int


_NAME = Column("run", 12, False, 0)  # takes what room is left
_COLUMNS = (
    Column("", 1, False, 0),
    _NAME,
    Column("recipe", 12, False, 5),
    Column("status", 11, False, 4),
    Column("step", 13, True, 2),
    Column("loss", 8, True, 0),
    Column("val", 8, True, 1),
    Column("mfu", 6, True, 3),
    Column("found", 7, False, 2),
    Column("age", 4, True, 1),
)
_MAX_NAME = 36


def list_columns(width: int) -> tuple[Column, ...]:
    """Return the columns that fit a table of `width` cells, the name as wide as there is room."""
    columns = list(_COLUMNS)
    while _measure(columns) > width and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
    spare = width - _measure(columns)
    wide = max(4, min(_NAME.width + spare, _MAX_NAME))
    return tuple(c._replace(width=wide) if c is _NAME else c for c in columns)


def list_cells(run: RunRow, columns: tuple[Column, ...], now: float) -> list[Piece]:
    """Return the cells of one run."""
    kind = find_status_kind(run.status)
    mfu = run.metrics.get("train/mfu")
    cells = {
        "": Piece(STATUS_GLYPHS[kind], kind),
        "run": Piece(clean(run.name or run.id), "strong"),
        "recipe": Piece(clean(run.recipe), "muted"),
        "status": Piece(clean(run.status), kind),
        "step": Piece(format_step(run.step, run.steps), "text"),
        "loss": Piece(format_value(find_value(TRAIN_LOSSES, run.metrics)), "text"),
        "val": Piece(format_value(find_value(VAL_LOSSES, run.metrics)), "text"),
        "mfu": Piece(format_value(mfu, 3) + ("%" if mfu is not None else ""), "text"),
        "found": make_mark(run),
        "age": Piece(format_age(run.created, now), "muted"),
    }
    return [cells[column.title] for column in columns]


def make_title(snapshot: Snapshot | None, place: str) -> Line:
    """Return the top line: how many runs, how many of them running, and where they are kept."""
    left = [Piece(" tsx ", "accent")]
    if snapshot is not None and snapshot.num_runs:
        count = snapshot.num_runs
        left.append(Piece(f" {count} run{'s' if count != 1 else ''}", "text"))
        if snapshot.num_running:
            left.append(Piece(f"  ● {snapshot.num_running} running", "running"))
    return Line(tuple(left), (Piece(f"{clean(place)} ", "muted"),))


def make_keys(keys: tuple[tuple[str, str], ...], trouble: str) -> Line:
    """Return the bottom line: what each key does, and any trouble with the registry."""
    left: list[Piece] = [Piece(" ")]
    if trouble:
        left.append(Piece(f"▲ {clean(trouble)}  ", "warning"))
    right: list[Piece] = []
    for key, purpose in keys:
        right += [Piece(key, "accent"), Piece(f" {purpose}  ", "muted")]
    if not trouble:
        return Line((*left, *right))
    return Line(tuple(left), tuple(right))


def list_empty_lines(trouble: str) -> list[Line]:
    """Return what stands where the runs will be while there are none."""
    if trouble:
        return [
            Line((Piece("The registry cannot be read.", "warning"),)),
            Line((Piece(clean(trouble)),)),
        ]
    return [
        Line((Piece("No runs yet.", "strong"),)),
        Line(),
        Line((Piece("Start the first one in another terminal:", "muted"),)),
        Line((Piece("  tsx run sanity", "accent"),)),
        Line(),
        Line((Piece("It shows up here by itself.", "muted"),)),
    ]


def _measure(columns: list[Column]) -> int:
    """Return the cells a line of these columns takes: a mark, and two spaces after each."""
    return 2 + sum(column.width + 2 for column in columns)
