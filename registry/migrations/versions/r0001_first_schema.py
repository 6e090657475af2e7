"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table; registry/schema.py says what the columns mean."""
    _create_runs()
    _create_curves()
    _create_records()


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("heartbeat", sa.Double, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("steps", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("parent", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("smoke", sa.Boolean, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("precision", sa.Text, nullable=False),
        sa.Column("data_source", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("journal_offset", sa.BigInteger, nullable=False),
        sa.Column("journal_lines", sa.BigInteger, nullable=False),
        sa.Column("bad_lines", sa.BigInteger, nullable=False),
        sa.Column("rewinds", sa.Integer, nullable=False),
        sa.Column("presumed", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("key", name="runs_pk"),
        sa.UniqueConstraint("id", name="runs_id_unique"),
    )
    op.create_index("runs_by_created", "runs", ["created"])
    op.create_index("runs_by_status", "runs", ["status"])
    op.create_table(
        "tags",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("tag", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run", "position", name="tags_pk"),
        sqlite_with_rowid=False,
    )


def _create_curves() -> None:
    op.create_table(
        "metric_keys",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="metric_keys_pk"),
        sa.UniqueConstraint("key", name="metric_keys_key_unique"),
    )
    op.create_table(
        "metrics",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("flag", sa.SmallInteger, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", "key", "seq", name="metrics_pk"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "summaries",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("last", sa.Double),
        sa.Column("last_flag", sa.SmallInteger, nullable=False),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.Column("min", sa.Double),
        sa.Column("min_step", sa.BigInteger, nullable=False),
        sa.Column("max", sa.Double),
        sa.Column("max_step", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("nonfinite_count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", "key", name="summaries_pk"),
        sqlite_with_rowid=False,
    )


def _create_records() -> None:
    op.create_table(
        "findings",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("module", sa.Text, nullable=False),
        sa.Column("op", sa.Text, nullable=False),
        sa.Column("where", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("fix", sa.Text, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run", "digest", name="findings_pk"),
    )
    op.create_table(
        "artifacts",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run", "digest", name="artifacts_pk"),
    )
    op.create_table(
        "outputs",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("stream", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("dropped_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", "stream", name="outputs_pk"),
    )
    op.create_table(
        "resumes",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.key", ondelete="CASCADE"), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("from_step", sa.BigInteger, nullable=False),
        sa.Column("steps", sa.BigInteger, nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run", "seq", name="resumes_pk"),
    )


def downgrade() -> None:
    """There is nothing before the first schema."""
    raise NotImplementedError("the first schema has no predecessor")
