"""Projects, rollups of long curves, histograms, and views for questions in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BUCKET, _FANOUT = 16, 4  # points of a rollup of level 1, rollups of one of the next level
_ROWS = 10_000  # read or written in one go

_VIEWS = {
    "points": """
        SELECT runs.id AS run, runs.name AS name, metric_keys.key AS key, metrics.step AS step,
            metrics.value AS value, metrics.flag AS flag,
            runs.created + metrics.time_ms / 1000.0 AS time
        FROM metrics JOIN runs ON runs.key = metrics.run
        JOIN metric_keys ON metric_keys.id = metrics.key
    """,
    "curves": """
        SELECT runs.id AS run, runs.name AS name, metric_keys.key AS key,
            summaries.last AS last, summaries.last_step AS last_step,
            summaries.min AS min, summaries.min_step AS min_step,
            summaries.max AS max, summaries.max_step AS max_step,
            summaries.count AS count, summaries.nonfinite_count AS nonfinite_count
        FROM summaries JOIN runs ON runs.key = summaries.run
        JOIN metric_keys ON metric_keys.id = summaries.key
    """,
}


def upgrade() -> None:
    """Add what is new; registry/schema.py says what the columns mean."""
    op.add_column("runs", sa.Column("project", sa.Text, nullable=False, server_default=""))
    op.create_index("runs_by_project", "runs", ["project"])
    _fill_rollups(_create_rollups())
    _create_histograms()
    for name, query in _VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def _create_rollups() -> sa.Table:
    return op.create_table(
        "rollups",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("level", sa.SmallInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("min", sa.Double),
        sa.Column("min_step", sa.BigInteger, nullable=False),
        sa.Column("min_ms", sa.BigInteger, nullable=False),
        sa.Column("max", sa.Double),
        sa.Column("max_step", sa.BigInteger, nullable=False),
        sa.Column("max_ms", sa.BigInteger, nullable=False),
        sa.Column("odd_flag", sa.SmallInteger, nullable=False),
        sa.Column("odd_step", sa.BigInteger, nullable=False),
        sa.Column("odd_ms", sa.BigInteger, nullable=False),
        sa.Column("odd_count", sa.Integer, nullable=False),
        sa.Column("first_step", sa.BigInteger, nullable=False),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", "key", "level", "seq", name="rollups_pk"),
        sqlite_with_rowid=False,
    )


def _fill_rollups(rollups: sa.Table) -> None:
    """Sum up the curves that are there, as folding their journals anew would."""
    connection = op.get_bind()
    points = connection.execute(
        sa.text(
            "SELECT run, key, seq, step, value, flag, time_ms FROM metrics ORDER BY run, key, seq"
        ),
        execution_options={"yield_per": _ROWS},
    )
    names = [column.name for column in rollups.columns]
    rows: list[dict[str, Any]] = []
    curve: tuple[int, int] | None = None
    parts: list[list[tuple[Any, ...]]] = []  # by level, what no rollup of the next one holds yet
    for run, key, *point in points:
        if (run, key) != curve:
            curve, parts = (run, key), [[]]
        parts[0].append(_make_part(*point))
        level = 0
        while len(parts[level]) == (_FANOUT if level else _BUCKET):
            part, parts[level] = _join(parts[level]), []
            level += 1
            if level == len(parts):
                parts.append([])
            parts[level].append(part)
            rows.append(dict(zip(names, (run, key, level, *part), strict=True)))
        if len(rows) >= _ROWS:
            connection.execute(rollups.insert(), rows)
            rows = []
    if rows:
        connection.execute(rollups.insert(), rows)


def _make_part(
    seq: int, step: int, value: float | None, flag: int, time_ms: int
) -> tuple[Any, ...]:
    """Return a point as the columns of a rollup from `seq` on."""
    if flag:
        return (seq, *(None, 0, 0), *(None, 0, 0), *(flag, step, time_ms, 1), step, step)
    here = (value, step, time_ms)
    return (seq, *here, *here, *(0, 0, 0, 0), step, step)


def _join(parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the columns of the rollup over neighbours."""
    finite = [part for part in parts if part[1] is not None] or parts[:1]
    low = min(finite, key=lambda part: part[1])  # the first of several
    high = max(finite, key=lambda part: part[4])
    odd = next((part for part in parts if part[7]), parts[0])
    count = sum(part[10] for part in parts)
    first, last = min(part[11] for part in parts), max(part[12] for part in parts)
    return (parts[-1][0], *low[1:4], *high[4:7], *odd[7:10], count, first, last)


def _create_histograms() -> None:
    op.create_table(
        "histograms",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("edges", sa.Text, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
        sa.Column("nonfinite_count", sa.BigInteger, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", "key", "seq", name="histograms_pk"),
    )


def downgrade() -> None:
    """Older versions of tsx refuse a newer registry; the copy made before is the way back."""
    raise NotImplementedError("restore the copy that was made before the migration")
