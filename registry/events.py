"""The records a run emits, and the sink they go to.

One journal line is one event: strict JSON with a `type` tag, encoded by `registry.journal`.
Steps count optimizer steps that are done (the first is 1; 0 is "before training"). Times are UTC
seconds since the epoch. A field is only ever added, with a default: old journals stay readable.

Order in a journal: RunStarted (by the launcher, before the process exists), RunPrepared (by the
trainer, when model and data stand), then Metrics, Histogram, Finding, Artifact, Heartbeat in any
order, Output and RunEnded last. A resumed run continues the same journal with RunResumed; Edited
and Removed come from a user's command, at any time, after the end too.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct


class Status(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DIVERGED = "diverged"
    OOM = "oom"
    INTERRUPTED = "interrupted"
    KILLED = "killed"


class Severity(StrEnum):
    """How much a finding matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _Record(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of every event."""

    time: float  # UTC seconds since the epoch


class _Said(_Record, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what a recorded program may say of itself; see docs/events.md."""

    inbox_end: int = 0  # bytes of the run's inbox up to behind this; 0 where it came another way


class RunStarted(_Record, frozen=True, tag="run_started"):
    """A run exists: who asked for it, with what, from which code. Emitted by the launcher."""

    run_id: str
    name: str
    project: str = ""  # what a user's own runs are grouped by
    recipe: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""
    parent: str = ""  # id of the sweep, or of the `tsx exec`, that this run belongs to
    seed: int = 0
    smoke: bool = False
    steps: int = 0  # planned optimizer steps
    config: dict[str, Any] = {}
    fingerprint: str = ""  # of the config
    command: tuple[str, ...] = ()  # exact command line, secrets redacted
    cwd: str = ""
    git_commit: str = ""
    git_branch: str = ""
    git_diff: str = ""  # capped, no binaries, secrets redacted
    host: str = ""
    versions: dict[str, str] = {}  # python, tsx, torch, ... as installed
    pid: int = 0  # of the process that trains; 0 while it does not exist yet


class RunPrepared(_Record, frozen=True, tag="run_prepared"):
    """Model and data stand; what they turned out to be. Emitted by the trainer before step 1."""

    pid: int
    device: str  # "cpu", "cuda:0", "mps"
    device_name: str  # "NVIDIA H100 80GB HBM3", or the CPU's model name
    precision: str  # "fp32" or "bf16"
    attention: str = ""  # kernel: "flash", "efficient", "cudnn", "math"; empty is unknown
    threads: int = 0  # torch intra-op threads
    params_total: int = 0
    params_active: int = 0
    flops_per_token: float = 0.0  # model FLOPs, forward and backward; see docs/mfu.md
    flops_matmul_per_token: float = 0.0  # of these, 6 per active matrix weight
    flops_attention_per_token: float = 0.0  # of these, attention counted full
    flops_attention_causal_per_token: float = 0.0  # what a causal kernel has to do of it
    peak_tflops: float = 0.0  # dense; 0 is unknown
    peak_source: str = ""  # "config", "device name", "measured"
    warmup_steps: int = 0
    expected_s: float = 0.0  # expected training time; 0 is unknown
    data_source: str = ""  # "demo", "time300b" or the path
    data_fingerprint: str = ""
    data: dict[str, Any] = {}  # series, points, windows, domains of train, val and ood
    versions: dict[str, str] = {}  # libraries only the trainer knows (torch's build, CUDA)


class RunResumed(_Record, frozen=True, tag="run_resumed"):
    """The run goes on from a checkpoint; metrics after `from_step` are history of a dead branch."""

    from_step: int
    steps: int
    command: tuple[str, ...] = ()
    config: dict[str, Any] = {}
    fingerprint: str = ""
    pid: int = 0  # of the process that goes on; 0 where RunPrepared tells it


class Metrics(_Said, frozen=True, kw_only=True, tag="metrics"):
    """Values of one step. Values may be non-finite; keys are "train/loss", "val/mse_h8", ..."""

    step: int
    values: dict[str, float]


class Finding(_Said, frozen=True, kw_only=True, tag="finding"):
    """A fault or remark: what, where and why. Equal (kind, module, op, where, cause) count up."""

    kind: str  # "nan-origin", "config-lint", ...
    severity: Severity
    step: int = 0
    phase: str = ""  # "config", "data", "forward", "backward", "optimizer", "eval"
    module: str = ""  # dotted module or config path
    op: str = ""
    where: str = ""  # "file.py:123"
    cause: str = ""  # one sentence: the true cause
    evidence: dict[str, Any] = {}
    fix: str = ""  # one sentence: what to do
    count: int = 1


class Artifact(_Said, frozen=True, kw_only=True, tag="artifact"):
    """A file the run wrote. `path` is relative to the run's folder."""

    kind: str  # "checkpoint", "trace", "batch"
    path: str
    step: int = 0
    size_bytes: int = 0
    metadata: dict[str, Any] = {}  # for a checkpoint: {"best": bool, "val_loss": float}


class Histogram(_Said, frozen=True, kw_only=True, tag="histogram"):
    """How the values of an array were spread at one step."""

    step: int
    key: str
    edges: tuple[float, ...]  # rising, finite, one more than counts; empty when no value is finite
    counts: tuple[int, ...]  # values in [edge, next edge); the last bin holds its right edge too
    nonfinite_count: int = 0  # values that are in no bin


class Removed(_Record, frozen=True, tag="removed"):
    """A file that the run wrote was deleted to make room; `path` is an Artifact's."""

    path: str


class Edited(_Record, frozen=True, tag="edited"):
    """The user renamed, tagged or annotated the run; None leaves as it is."""

    name: str | None = None
    note: str | None = None
    tags: tuple[str, ...] | None = None


class Heartbeat(_Record, frozen=True, tag="heartbeat"):
    """The run is alive at this step though it has nothing to say."""

    step: int = 0


class Output(_Record, frozen=True, tag="output"):
    """Captured stdout or stderr of the run's process, capped, secrets redacted."""

    stream: str  # "stdout" or "stderr"
    text: str
    dropped_bytes: int = 0


class RunEnded(_Record, frozen=True, tag="run_ended"):
    """The run is over. A run without this event whose process is gone was killed."""

    status: Status
    reason: str = ""  # one line; empty when completed
    exit_code: int = 0
    step: int = 0


Event = (
    RunStarted
    | RunPrepared
    | RunResumed
    | Metrics
    | Histogram
    | Finding
    | Artifact
    | Removed
    | Edited
    | Heartbeat
    | Output
    | RunEnded
)


class EventSink(Protocol):
    """Where events go. Implementations: SQLite with journal, journal alone, a list in memory.

    Contract (tests/contracts/event_sink.py): `emit` returns once the event survives a kill of
    this process (in-memory sinks aside), never blocks on a database, never raises after the first
    event was accepted; order is kept; `close` is idempotent and waits for what is under way, with
    a bound. Safe to call from several threads.
    """

    def emit(self, event: Event) -> None:
        """Record one event."""

    def close(self) -> None:
        """Flush and release; emitting afterwards raises ValueError."""
