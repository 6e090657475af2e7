"""Projects, rollups of long curves, histograms, and views for questions in SQL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

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
    _create_rollups()
    _create_histograms()
    for name, query in _VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def _create_rollups() -> None:
    op.create_table(
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
