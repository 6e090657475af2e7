"""The preflight of a run alone: everything is made ready, one small step is looked at, none taken.

What a run would find before its first step and in its first gradients: the config's remarks, the
audit of the traced forward pass, its probes, a loss or a gradient that is not finite.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from registry.events import EventSink
from tsx.config import RunConfig
from tsx.data.windows import Batch
from tsx.perf.attention_kernel import forced_kernel
from tsx.perf.budget import MemoryBudget
from tsx.trainer.memory_errors import explain_out_of_memory
from tsx.trainer.session import Session, prepare
from tsx.trainer.step import inspect_step
from tsx.trainer.telemetry import Telemetry

MAX_WINDOWS = 8  # of the first batch: samples can be told apart, and it is quick


def examine(config: RunConfig, sink: EventSink, *, home: Path) -> None:
    """Make a run ready, look at one small step of it, and train nothing.

    Args:
        config: of the run; nothing is compiled.
        sink: gets RunPrepared and each Finding.
        home: where caches and the demo corpus live.

    Raises:
        ConfigError, DataError, OutOfMemory: as `train` does.
    """
    eager = msgspec.structs.replace(config.perf, compile=False)
    config = msgspec.structs.replace(config, perf=eager)
    with (
        MemoryBudget(config.perf.memory_budget_gib) as budget,
        explain_out_of_memory(config),
        forced_kernel(config.perf.attn_backend),
        tempfile.TemporaryDirectory() as nowhere,
    ):
        session = prepare(config, Telemetry(sink), folder=Path(nowhere), home=home, budget=budget)
        _look(session)


def _look(session: Session) -> None:
    """Look at a step on the first windows."""
    diagnosis = session.diagnosis
    diagnosis.start(session)
    try:
        finding = inspect_step(session, [_cut(session.stream.next_batch(), MAX_WINDOWS)])
        if finding is not None:
            session.telemetry.emit(finding)
            diagnosis.note(finding)
    finally:
        diagnosis.close(is_whole=False)


def _cut(batch: Batch, count: int) -> Batch:
    """Return the first windows of a batch."""
    return Batch(
        input_BC=batch.input_BC[:count],
        target_BC=batch.target_BC[:count],
        target_mask_BC=batch.target_mask_BC[:count],
        input_mask_BC=batch.input_mask_BC[:count],
    )
