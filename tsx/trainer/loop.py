"""The training loop: steps, and what happens between them.

A step is taken; on its interval it is logged, the model is scored on held-out series, a checkpoint
is written. Every interval counts optimizer steps. The model is also scored before the first step,
at every checkpoint (so that the best one is known) and at the end. A run ends with its last step,
with its wall-clock budget, when it is asked to stop, or when a step is not finite.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from registry.events import EventSink, Finding, Severity, Status
from tsx.config import RunConfig
from tsx.perf.attention_kernel import forced_kernel
from tsx.perf.budget import MemoryBudget
from tsx.perf.system import SystemSampler
from tsx.perf.timing import Speed
from tsx.trainer.checkpoint import CheckpointFolder, check_writable
from tsx.trainer.evaluate import Evaluator, StopSignal
from tsx.trainer.instruments import Instruments
from tsx.trainer.memory_errors import explain_out_of_memory
from tsx.trainer.saving import Saver
from tsx.trainer.session import Session, prepare
from tsx.trainer.step import NonFiniteWatch, StepReport, get_step_metrics
from tsx.trainer.telemetry import Pulse, Telemetry


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended. `reason` is one line, empty when the run went its whole way."""

    status: Status
    reason: str
    step: int  # optimizer steps done


def train(
    config: RunConfig,
    sink: EventSink,
    *,
    folder: Path,
    home: Path,
    stop: StopSignal,
    resume: bool = False,
) -> Outcome:
    """Train one run from its config to its end.

    Args:
        config: of the run.
        sink: gets RunPrepared, Metrics, Finding, Artifact and Heartbeat, and RunResumed first of
            all on a resume. A sink that fails before the first step ends the run, later it does
            not.
        folder: of the run; checkpoints go to `checkpoints/` inside it.
        home: where caches and the demo corpus live.
        stop: looked at after every step; a `reason` it has is passed on in the outcome.
        resume: go on from the newest whole checkpoint in `folder`.

    Raises:
        ConfigError: a device, a compiler or an attention kernel that is not there, or a resume
            that is refused.
        DataError: series that cannot be read as the run needs them.
        OutOfMemory: the device or the host has none left, or the budget is spent.
        TsxError: checkpoints are asked for and cannot be written, or the model does not compile.
    """
    telemetry = Telemetry(sink)
    if config.train.checkpoint_every > 0:
        check_writable(CheckpointFolder(folder))
    kernel = forced_kernel(config.perf.attn_backend)
    with (
        MemoryBudget(config.perf.memory_budget_gib) as budget,
        explain_out_of_memory(config),
        kernel,
    ):
        session = prepare(config, telemetry, folder=folder, home=home, resume=resume, budget=budget)
        telemetry.guard()
        with closing(SystemSampler(session.device)) as sampler:
            pulse = Pulse(telemetry, sampler.sample, period_s=config.perf.sample_every_s)
            try:
                with pulse:
                    return Trainer(session, stop, pulse, Instruments(session, folder)).run()
            finally:
                session.diagnosis.close(is_whole=False)
                memory = {
                    "sys/peak_mem_gib": session.memory.read_gib(),
                    "sys/base_mem_gib": session.base_gib,
                }
                telemetry.metrics(session.progress.step, memory)


def rehearse(config: RunConfig, sink: EventSink, *, home: Path) -> None:
    """Make a run ready, say what it would be, and train nothing.

    Raises:
        ConfigError, DataError, OutOfMemory: as `train` does.
    """
    kernel = forced_kernel(config.perf.attn_backend)
    with (
        MemoryBudget(config.perf.memory_budget_gib) as budget,
        explain_out_of_memory(config),
        kernel,
        tempfile.TemporaryDirectory() as nowhere,
    ):
        prepare(config, Telemetry(sink), folder=Path(nowhere), home=home, budget=budget)


class Trainer:
    """Takes a prepared run through its steps."""

    def __init__(
        self, session: Session, stop: StopSignal, pulse: Pulse, instruments: Instruments
    ) -> None:
        self._session = session
        self._config = session.config
        self._stop = stop
        self._pulse = pulse
        self._instruments = instruments
        self._evaluator = Evaluator(session, stop)
        self._saver = Saver(session)
        self._watch = NonFiniteWatch(session.telemetry)
        self._started = monotonic()
        self._peak_doubted = False

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._session.progress.step

    def run(self) -> Outcome:
        """Train until the last step, or until there is a reason to stop before it."""
        self._instruments.start()
        self._session.diagnosis.start(self._session)
        if self.step == 0:
            self._evaluate_when_due()
        while self.step < self._config.train.steps:
            if self._stop.is_set():
                return self._interrupt()
            if self._is_out_of_time():
                return self._complete(self._describe_budget())
            report = self._instruments.take_step()
            self._session.telemetry.step = self.step
            if report.finding is not None:
                self._watch.see(report.finding)
                self._session.diagnosis.note(report.finding)
            if report.halted:
                return self._diverge(report)
            self._log_when_due(report)
            self._evaluate_when_due()
            self._checkpoint_when_due()
        if not self._config.train.steps and self._stop.is_set():  # scoring was all there was to do
            return self._interrupt()
        return self._complete("")

    def _log_when_due(self, report: StepReport) -> None:
        if self.step % self._config.train.log_every:
            return
        values = get_step_metrics(self._session, report)
        values |= self._instruments.get_metrics()
        speed = self._session.timer.read()
        if speed is not None:
            values |= speed.to_metrics()
            self._doubt_peak(speed)
        values |= self._pulse.take_device_means()
        self._session.telemetry.metrics(self.step, values)
        self._session.diagnosis.log(values, self.step)

    def _doubt_peak(self, speed: Speed) -> None:
        """Say, once, that no run is faster than its device: the peak is wrong."""
        if self._peak_doubted or speed.mfu is None or speed.mfu <= 1.0:
            return
        self._peak_doubted = True
        self._session.telemetry.emit(
            Finding(
                time=self._session.telemetry.now(),
                kind="peak-suspect",
                severity=Severity.INFO,
                step=self.step,
                cause=f"MFU is {100 * speed.mfu:.0f} %: the peak it is counted against is too low; "
                "a measured one is where the machine was busy with other work",
                evidence={"mfu": speed.mfu, "tflops": speed.tflops},
                fix="trust train/tflops here; the next run measures again, and "
                "perf.mfu_peak_tflops sets the peak",
            )
        )

    def _evaluate_when_due(self) -> None:
        every = self._config.eval.every
        if every > 0 and self.step % every == 0:
            self._evaluate()

    def _checkpoint_when_due(self) -> None:
        every = self._config.train.checkpoint_every
        if every > 0 and self.step % every == 0:
            self._evaluate(ood=False)
            self._checkpoint()

    def _evaluate(self, *, ood: bool = True) -> None:
        """Score the model, unless it was scored at this very step already."""
        if self._config.eval.every > 0:
            with self._session.timer.paused():
                self._evaluator.run(ood=ood)

    def _checkpoint(self) -> None:
        """Write a checkpoint, unless this very step's is there already or none are wanted."""
        if self._config.train.checkpoint_every > 0:
            with self._session.timer.paused():
                self._saver.save(self._evaluator.get_score(self.step))

    def _is_out_of_time(self) -> bool:
        budget = self._config.train.max_wall_time_s
        return budget > 0 and monotonic() - self._started >= budget

    def _describe_budget(self) -> str:
        budget = self._config.train.max_wall_time_s
        return f"wall-clock budget of {budget:g} s reached at step {self.step}"

    def _complete(self, reason: str) -> Outcome:
        """Score and save the model as it is now."""
        self._evaluate()
        self._checkpoint()
        return self._end(Status.COMPLETED, reason)

    def _interrupt(self) -> Outcome:
        """Save what there is, without an evaluation: whoever asked is waiting."""
        self._checkpoint()
        reason = str(getattr(self._stop, "reason", "") or "asked to stop")
        return self._end(Status.INTERRUPTED, f"{reason} at step {self.step}")

    def _diverge(self, report: StepReport) -> Outcome:
        """Log the step that was not finite; the weights are still those before it."""
        assert report.finding is not None
        self._session.telemetry.metrics(report.step, get_step_metrics(self._session, report))
        evidence = report.finding.evidence
        return self._end(
            Status.DIVERGED,
            f"not finite at step {report.step}: loss {evidence['loss']}, gradient norm "
            f"{evidence['grad_norm']}; {report.finding.cause}",
        )

    def _end(self, status: Status, reason: str) -> Outcome:
        self._watch.flush()
        self._session.diagnosis.close(is_whole=status is Status.COMPLETED)
        self._instruments.finish()
        return Outcome(status, reason, self.step)
