"""Tables of the registry, as SQLAlchemy Core. Every column has its unit in a comment.

Owns the schema's revision and how SQLite marks the file as ours. A change here comes with a new
file in `registry/migrations/versions` and a new `REVISION`; a test holds the two together.
JSON is kept as text: strict, written by `registry.codec`, never searched by the database.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)

REVISION = "0002"  # Alembic's head; revisions are numbered, so that older and newer can be told
APPLICATION_ID = 0x74737872  # "tsxr" in the header of the SQLite file

BUCKET = 16  # points of a curve that one rollup of level 1 sums up
FANOUT = 4  # rollups of one level that one of the next sums up

FINITE, NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY = range(4)  # metrics.flag, summaries.last_flag

metadata = MetaData()
alembic_metadata = MetaData()  # Alembic owns this table; it is declared to be read without Alembic

alembic_version = Table(
    "alembic_version",
    alembic_metadata,
    Column("version_num", String(32), nullable=False),  # revision of the schema
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def _run_column() -> Column[int]:
    """Return the reference to a run that every other table starts with."""
    return Column("run", Integer, ForeignKey("runs.key", ondelete="CASCADE"), nullable=False)


runs = Table(
    "runs",
    metadata,
    Column("key", Integer, nullable=False),  # small number that other tables refer to
    Column("id", String(64), nullable=False),  # name of the run's folder, 8 of [a-z0-9]
    Column("name", Text, nullable=False),  # as given, or made from the recipe
    Column("recipe", Text, nullable=False),  # name or path; empty for a run without one
    Column("status", String(16), nullable=False),  # registry.events.Status
    Column("reason", Text, nullable=False),  # one line; empty while all is well
    Column("created", Double, nullable=False),  # UTC seconds since the epoch
    Column("ended", Double),  # UTC seconds since the epoch; NULL while it runs
    Column("heartbeat", Double, nullable=False),  # UTC seconds of the newest event folded in
    Column("step", BigInteger, nullable=False),  # optimizer steps done
    Column("steps", BigInteger, nullable=False),  # optimizer steps planned
    Column("note", Text, nullable=False),  # free text of the user
    Column("parent", Text, nullable=False),  # id of the sweep; empty for a single run
    Column("seed", BigInteger, nullable=False),  # of every random choice of the run
    Column("smoke", Boolean, nullable=False),  # shrunk to a minute
    Column("device", Text, nullable=False),  # "cpu", "cuda:0"; empty until it is known
    Column("precision", Text, nullable=False),  # "fp32" or "bf16"; empty until it is known
    Column("data_source", Text, nullable=False),  # "demo", "time300b" or a path
    Column("host", Text, nullable=False),  # name of the machine that trains
    Column("pid", BigInteger, nullable=False),  # of the process that trains; 0 is unknown
    Column("config", Text, nullable=False),  # JSON object, resolved config
    Column("environment", Text, nullable=False),  # JSON object, the rest of RunStarted, RunPrepared
    Column("folder", Text, nullable=False),  # absolute path on `host`
    Column("journal_offset", BigInteger, nullable=False),  # bytes of the journal folded in
    Column("journal_lines", BigInteger, nullable=False),  # lines of the journal folded in
    Column("bad_lines", BigInteger, nullable=False),  # of these, lines that were not events
    Column("rewinds", Integer, nullable=False),  # times a resume has cut the curves
    Column("presumed", Boolean, nullable=False),  # `killed` is a guess; the next event undoes it
    Column("project", Text, nullable=False, server_default=""),  # group of a user's own runs
    PrimaryKeyConstraint("key", name="runs_pk"),
    UniqueConstraint("id", name="runs_id_unique"),
)
Index("runs_by_created", runs.c.created)
Index("runs_by_status", runs.c.status)
Index("runs_by_project", runs.c.project)

tags = Table(
    "tags",
    metadata,
    _run_column(),
    Column("position", Integer, nullable=False),  # order in which they were given, from 0
    Column("tag", Text, nullable=False),  # as given
    PrimaryKeyConstraint("run", "position", name="tags_pk"),
    sqlite_with_rowid=False,
)

metric_keys = Table(
    "metric_keys",
    metadata,
    Column("id", Integer, nullable=False),  # small number that metrics and summaries refer to
    Column("key", Text, nullable=False),  # "train/loss"
    PrimaryKeyConstraint("id", name="metric_keys_pk"),
    UniqueConstraint("key", name="metric_keys_key_unique"),
)

metrics = Table(
    "metrics",
    metadata,
    _run_column(),
    Column("key", Integer, nullable=False),  # metric_keys.id; not declared, to spare each insert
    Column("seq", BigInteger, nullable=False),  # line of the journal, from 1
    Column("step", BigInteger, nullable=False),  # optimizer steps done
    Column("value", Double),  # unit by key; NULL where flag is not 0
    Column("flag", SmallInteger, nullable=False),  # 0 finite, 1 NaN, 2 Infinity, 3 -Infinity
    Column("time_ms", BigInteger, nullable=False),  # milliseconds after runs.created
    PrimaryKeyConstraint("run", "key", "seq", name="metrics_pk"),
    sqlite_with_rowid=False,
)

rollups = Table(
    "rollups",
    metadata,
    _run_column(),
    Column("key", Integer, nullable=False),  # metric_keys.id
    Column("level", SmallInteger, nullable=False),  # sums up BUCKET * FANOUT ** (level - 1) points
    Column("seq", BigInteger, nullable=False),  # metrics.seq of the last of these points
    Column("min", Double),  # over finite values; NULL when there are none
    Column("min_step", BigInteger, nullable=False),  # first step that reached it
    Column("min_ms", BigInteger, nullable=False),  # metrics.time_ms of that point
    Column("max", Double),  # over finite values; NULL when there are none
    Column("max_step", BigInteger, nullable=False),  # first step that reached it
    Column("max_ms", BigInteger, nullable=False),  # metrics.time_ms of that point
    Column("odd_flag", SmallInteger, nullable=False),  # of the first non-finite point; 0: none
    Column("odd_step", BigInteger, nullable=False),  # its step
    Column("odd_ms", BigInteger, nullable=False),  # its metrics.time_ms
    Column("odd_count", Integer, nullable=False),  # non-finite points
    Column("first_step", BigInteger, nullable=False),  # smallest step of these points
    Column("last_step", BigInteger, nullable=False),  # largest step of these points
    PrimaryKeyConstraint("run", "key", "level", "seq", name="rollups_pk"),
    sqlite_with_rowid=False,
)

histograms = Table(
    "histograms",
    metadata,
    _run_column(),
    Column("key", Integer, nullable=False),  # metric_keys.id
    Column("seq", BigInteger, nullable=False),  # line of the journal, from 1
    Column("step", BigInteger, nullable=False),  # optimizer steps done
    Column("edges", Text, nullable=False),  # JSON array, rising; unit by key
    Column("counts", Text, nullable=False),  # JSON array, values per bin
    Column("nonfinite_count", BigInteger, nullable=False),  # values in no bin
    Column("time_ms", BigInteger, nullable=False),  # milliseconds after runs.created
    PrimaryKeyConstraint("run", "key", "seq", name="histograms_pk"),
)

summaries = Table(
    "summaries",
    metadata,
    _run_column(),
    Column("key", Integer, nullable=False),  # metric_keys.id
    Column("last", Double),  # value at last_step; NULL where last_flag is not 0
    Column("last_flag", SmallInteger, nullable=False),  # as metrics.flag
    Column("last_step", BigInteger, nullable=False),  # largest step
    Column("min", Double),  # over finite values; NULL when there are none
    Column("min_step", BigInteger, nullable=False),  # first step that reached it
    Column("max", Double),  # over finite values; NULL when there are none
    Column("max_step", BigInteger, nullable=False),  # first step that reached it
    Column("count", BigInteger, nullable=False),  # points, non-finite ones included
    Column("nonfinite_count", BigInteger, nullable=False),  # points
    PrimaryKeyConstraint("run", "key", name="summaries_pk"),
    sqlite_with_rowid=False,
)

findings = Table(
    "findings",
    metadata,
    _run_column(),
    Column("digest", String(32), nullable=False),  # of kind, module, op, where and cause
    Column("seq", BigInteger, nullable=False),  # line of the journal that had it first
    Column("kind", Text, nullable=False),  # "nan-origin", "config-lint"
    Column("severity", String(16), nullable=False),  # registry.events.Severity
    Column("step", BigInteger, nullable=False),  # first optimizer step that showed it
    Column("phase", Text, nullable=False),  # "data", "forward", "backward", ...
    Column("module", Text, nullable=False),  # dotted module or config path
    Column("op", Text, nullable=False),  # operation; empty where none is known
    Column("where", Text, nullable=False),  # "file.py:123"
    Column("cause", Text, nullable=False),  # one sentence: the true cause
    Column("evidence", Text, nullable=False),  # JSON object, of the first time
    Column("fix", Text, nullable=False),  # one sentence: what to do
    Column("count", BigInteger, nullable=False),  # times seen
    Column("time", Double, nullable=False),  # UTC seconds since the epoch, of the first time
    PrimaryKeyConstraint("run", "digest", name="findings_pk"),
)

artifacts = Table(
    "artifacts",
    metadata,
    _run_column(),
    Column("digest", String(32), nullable=False),  # of the path: a file written again is one row
    Column("seq", BigInteger, nullable=False),  # line of the journal that had it last
    Column("kind", Text, nullable=False),  # "checkpoint", "trace", "batch"
    Column("path", Text, nullable=False),  # relative to the run's folder
    Column("step", BigInteger, nullable=False),  # optimizer steps done
    Column("size_bytes", BigInteger, nullable=False),  # bytes
    Column("metadata", Text, nullable=False),  # JSON object
    Column("time", Double, nullable=False),  # UTC seconds since the epoch
    PrimaryKeyConstraint("run", "digest", name="artifacts_pk"),
)

outputs = Table(
    "outputs",
    metadata,
    _run_column(),
    Column("stream", String(16), nullable=False),  # "stdout" or "stderr"
    Column("text", Text, nullable=False),  # capped, secrets redacted
    Column("dropped_bytes", BigInteger, nullable=False),  # cut from the middle
    PrimaryKeyConstraint("run", "stream", name="outputs_pk"),
)

resumes = Table(
    "resumes",
    metadata,
    _run_column(),
    Column("seq", BigInteger, nullable=False),  # line of the journal
    Column("time", Double, nullable=False),  # UTC seconds since the epoch
    Column("from_step", BigInteger, nullable=False),  # optimizer steps kept
    Column("steps", BigInteger, nullable=False),  # optimizer steps planned from then on
    Column("command", Text, nullable=False),  # JSON array, the command line
    PrimaryKeyConstraint("run", "seq", name="resumes_pk"),
)

VIEWS = {  # for people who ask in SQL: names in place of numbers
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
