"""Everything a run has at hand while it trains, made ready before the first step.

Owns the order: device, data, model, optimizer, data order, then the checkpoint of a resumed run or
the official weights that a new one starts from, then what is said about all of it. Nothing is
emitted before a resume is known to be allowed, so a refused one leaves no trace in the run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.optim import AdamW

from registry.events import Finding, RunPrepared, RunResumed, Severity
from tsx import config as configs
from tsx.config import Precision, RunConfig
from tsx.data.corpus import Corpus, open_corpus
from tsx.data.stream import BatchStream
from tsx.diagnostics.config_lint import DataFacts, lint
from tsx.diagnostics.nonfinite.dump import DumpFolder
from tsx.diagnostics.tracing.replay import Rewinder
from tsx.errors import ConfigError, DataError
from tsx.model import official
from tsx.model.forecaster import Forecaster, build_forecaster
from tsx.model.size import count_params
from tsx.model.weights import read_weights
from tsx.perf.attention_kernel import find_kernel
from tsx.perf.budget import MemoryBudget
from tsx.perf.device import find_device_name, resolve_device, resolve_precision, synchronize
from tsx.perf.flops import Flops, flops_per_token
from tsx.perf.memory import PeakMemory
from tsx.perf.peaks import Peak, get_peak
from tsx.perf.timing import IntervalTimer
from tsx.trainer import optim, rng
from tsx.trainer.checkpoint import Best, CheckpointFolder, CheckpointState
from tsx.trainer.compiling import GRAPH_MODES, check_can_compile, compile_blocks
from tsx.trainer.diagnosing import Diagnosis
from tsx.trainer.memory_errors import check_capacity
from tsx.trainer.resume import (
    ResumePoint,
    check_resumable,
    list_allowed_changes,
    load_resume_point,
)
from tsx.trainer.telemetry import Telemetry

# What the eager model reaches of the peak, for the expected time before anything is timed.
# CPU: 0.37 on 2 cores of an AMD EPYC, torch 2.13, D 64, context 512, 2026-11; others guessed.
EXPECTED_MFU = {"cpu": 0.35, "cuda": 0.15, "mps": 0.15}


@dataclass(slots=True)
class Progress:
    """How far a run is; what a checkpoint carries beside tensors."""

    step: int = 0  # optimizer steps done, skipped updates included
    skipped_steps: int = 0
    best: Best | None = None
    saved_step: int | None = None  # of the newest whole checkpoint
    scored_step: int | None = None  # where a resumed run was evaluated already


@dataclass(frozen=True, slots=True)
class Session:
    """One run, ready to train."""

    config: RunConfig
    device: torch.device
    precision: Precision
    corpus: Corpus
    model: Forecaster
    optimizer: AdamW
    stream: BatchStream
    telemetry: Telemetry
    checkpoints: CheckpointFolder
    dumps: DumpFolder
    rewinder: Rewinder
    timer: IntervalTimer
    memory: PeakMemory
    base_gib: float = 0.0  # memory held right before the model was built
    progress: Progress = field(default_factory=Progress)
    diagnosis: Diagnosis = field(default_factory=Diagnosis)


def prepare(
    config: RunConfig,
    telemetry: Telemetry,
    *,
    folder: Path,
    home: Path,
    resume: bool = False,
    budget: MemoryBudget | None = None,
) -> Session:
    """Make a run ready and say what it turned out to be.

    Args:
        config: of the run.
        telemetry: gets RunResumed on a resume, RunPrepared, and what the config lint finds.
        folder: of the run; its `checkpoints/` is read on a resume.
        home: where caches and the demo corpus live.
        resume: go on from the newest whole checkpoint.
        budget: limits the memory from where the model is built; it stays the caller's to lift.

    Raises:
        ConfigError: a device, a compiler or an attention kernel that is not there, weights that are
            not this model's, or a resume that is refused.
        DataError: series that cannot be read as the run needs them.
        OutOfMemory: the model alone is larger than the memory there is.
    """
    device = resolve_device(config.train.device)
    precision = resolve_precision(config.train.precision, device)
    check_capacity(config, device)
    check_can_compile(config, device)
    attention = find_kernel(config, device, precision)
    memory = PeakMemory(device)
    corpus = open_corpus(
        config.data,
        home=home,
        patch_len=config.model.patch_len,
        origin_stride=config.eval.origin_stride,
    )
    torch.manual_seed(config.train.seed)
    if budget is not None:
        budget.apply(device)
    base_gib = memory.read_now_gib()
    model = build_forecaster(
        config.model, seed=config.train.seed, device=device, num_tokens=_count_tokens(config)
    )
    if config.perf.compile:
        compile_blocks(model, config.perf.compile_mode)
    peak = _find_peak(config, device, precision, home)
    session = Session(
        config=config,
        device=device,
        precision=precision,
        corpus=corpus,
        model=model,
        optimizer=optim.build_optimizer(model, config.optim),
        stream=_build_stream(config, corpus),
        telemetry=telemetry,
        checkpoints=CheckpointFolder(folder),
        dumps=DumpFolder(folder),
        rewinder=Rewinder(model),
        timer=_build_timer(config, device, peak),
        memory=memory,
        base_gib=base_gib,
    )
    origin = None
    if resume:
        _announce_resume(session, _restore(session))
    elif config.train.init_from is not None:
        origin = _load_official(session, Path(config.train.init_from))
    _announce(session, peak, attention)
    if origin is not None:
        telemetry.emit(origin)
    _announce_remarks(session, peak)
    return session


def _build_stream(config: RunConfig, corpus: Corpus) -> BatchStream:
    return BatchStream(
        corpus.train,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        fixed_batches=config.train.fixed_batches,
    )


def _build_timer(config: RunConfig, device: torch.device, peak: Peak) -> IntervalTimer:
    return IntervalTimer(
        flops_per_token=_count_flops(config).total,
        peak_tflops=peak.tflops,
        warmup_steps=_count_slow_steps(config),
        synchronize=lambda: synchronize(device),
    )


def _count_slow_steps(config: RunConfig) -> int:
    """Return the first steps that speeds leave out: allocation, the compiler, captured graphs."""
    captures = config.perf.compile and config.perf.compile_mode in GRAPH_MODES
    return 4 if captures else 2


def _find_peak(config: RunConfig, device: torch.device, precision: Precision, home: Path) -> Peak:
    name, override = find_device_name(device), config.perf.mfu_peak_tflops
    return get_peak(device.type, name, precision, override, home / "cache" / "peaks.json")


def _count_tokens(config: RunConfig) -> int:
    """Return the model tokens of one window."""
    return config.data.context_length // config.model.patch_len


def _count_flops(config: RunConfig) -> Flops:
    """Return model FLOPs per token of this run's context."""
    return flops_per_token(config.model, _count_tokens(config))


def _load_official(session: Session, folder: Path) -> Finding:
    """Put official weights into the model; return the finding that says which they are."""
    folder = folder.expanduser().absolute()
    session.model.load_state_dict(read_weights(folder, session.config.model))
    digests, count = official.hash_files(folder), official.count_tensors(session.config.model)
    files = ", ".join(f"{name} with SHA-256 {digest}" for name, digest in digests.items())
    return Finding(
        time=session.telemetry.now(),
        kind="weights",
        severity=Severity.INFO,
        phase="config",
        where=str(folder),
        cause=f"the model starts from official weights: {count:,} tensors of {files}",
        evidence={"folder": str(folder), "tensors": count, "sha256": digests},
    )


def _restore(session: Session) -> ResumePoint:
    """Put model, optimizer, data order and random state back to the newest whole checkpoint."""

    def check(state: CheckpointState) -> None:
        check_resumable(
            state,
            session.config,
            data_source=session.corpus.source,
            data_fingerprint=session.corpus.fingerprint,
        )

    model, state_dict = session.model, session.model.state_dict()
    point = load_resume_point(
        session.checkpoints,
        check,
        model_shapes={name: tuple(tensor.shape) for name, tensor in state_dict.items()},
        optimizer_shapes=optim.list_state_shapes(model),
    )
    model.load_state_dict(point.model)
    optim.set_state(model, session.optimizer, point.optimizer)
    try:
        session.stream.load_state_dict(point.state.stream)
        rng.restore(point.state.rng, session.device)
    except (DataError, ValueError) as error:
        path = session.checkpoints.get_path(point.state.step)
        raise ConfigError(f"{path}: {error}") from error
    progress = session.progress
    progress.step = point.state.step
    progress.skipped_steps = point.state.skipped_steps
    progress.best = point.state.best
    progress.saved_step = point.state.step
    progress.scored_step = point.state.step if point.state.val_pred is not None else None
    session.telemetry.step = progress.step
    return point


def _announce_resume(session: Session, point: ResumePoint) -> None:
    """Say from where the run goes on, what changed, and which checkpoints were of no use."""
    telemetry, config = session.telemetry, session.config
    telemetry.emit(
        RunResumed(
            time=telemetry.now(),
            from_step=point.state.step,
            steps=config.train.steps,
            config=configs.to_plain(config),
            fingerprint=configs.fingerprint(config),
        )
    )
    for message in point.damaged:
        telemetry.warn(
            "checkpoint-damaged",
            "a checkpoint is not whole; the run goes on from the one before it",
            "check the disk that holds the run's folder",
            {"damage": message, "resumed_from_step": point.state.step},
        )
    changes = list_allowed_changes(point.state, config)
    if changes:
        telemetry.emit(
            Finding(
                time=telemetry.now(),
                kind="resume-changes",
                severity=Severity.INFO,
                step=point.state.step,
                phase="config",
                cause="the run goes on with settings that differ from its checkpoint's",
                evidence=changes,
            )
        )


def _announce(session: Session, peak: Peak, attention: str) -> None:
    """Emit RunPrepared."""
    config, corpus, telemetry = session.config, session.corpus, session.telemetry
    params, flops = count_params(config.model), _count_flops(config)
    telemetry.emit(
        RunPrepared(
            time=telemetry.now(),
            pid=os.getpid(),
            device=str(session.device),
            device_name=find_device_name(session.device),
            precision=str(session.precision),
            attention=attention,
            threads=torch.get_num_threads(),
            params_total=params.total,
            params_active=params.active,
            flops_per_token=flops.total,
            flops_matmul_per_token=flops.matmul,
            flops_attention_per_token=flops.attention,
            flops_attention_causal_per_token=flops.attention_causal,
            peak_tflops=peak.tflops,
            peak_source=peak.source,
            warmup_steps=config.warmup_steps,
            expected_s=_expect_time(session, peak),
            data_source=corpus.source,
            data_fingerprint=corpus.fingerprint,
            data=corpus.describe(),
            versions={"torch": str(torch.__version__), "cuda": torch.version.cuda or ""},
        )
    )


def _announce_remarks(session: Session, peak: Peak) -> None:
    """Emit the findings of the config lint, and a peak that looks wrong."""
    config, corpus, telemetry = session.config, session.corpus, session.telemetry
    facts = DataFacts(
        train_windows=len(corpus.train),
        has_val=corpus.val is not None,
        has_ood=corpus.ood is not None,
        is_demo=corpus.is_demo,
        leaks=corpus.leaks,
    )
    for finding in lint(config, facts, time=telemetry.now()):
        telemetry.emit(finding)
    if peak.warning:
        fix = "set perf.mfu_peak_tflops to the dense figure of the device"
        telemetry.warn("peak-suspect", peak.warning, fix, {"peak_tflops": peak.tflops})


def _expect_time(session: Session, peak: Peak) -> float:
    """Return the seconds that the steps left should take, 0 where no peak is known."""
    if peak.tflops <= 0:
        return 0.0
    config = session.config
    windows = config.train.batch_size * config.train.grad_accum_steps
    tokens = windows * _count_tokens(config)
    steps_left = config.train.steps - session.progress.step
    rate = peak.tflops * 1e12 * EXPECTED_MFU.get(session.device.type, 0.15)
    return steps_left * tokens * _count_flops(config).total / rate
