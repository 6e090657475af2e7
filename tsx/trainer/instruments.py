"""Steps as a run takes them, with what it asks to have measured around them.

Owns when the compiler works, which step the profiler records and on which steps kernel launches are
counted, and that none of these count in the speeds. `tsx.trainer.step` knows nothing of it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import monotonic

from registry.events import Artifact, Finding, Severity
from tsx.perf.device import synchronize
from tsx.perf.profile import STEPS, LaunchCounter, StepProfiler, can_count
from tsx.trainer.compiling import explain_compile_errors
from tsx.trainer.session import Session
from tsx.trainer.step import StepReport, take_step

TRACE = "profiler/chrome_trace.json"  # in the run's folder
COUNT_EVERY = 10  # steps at least between two counts: a step that is counted has no speed


class Instruments:
    """Takes the steps of one run.

    Args:
        session: of the run.
        folder: of the run; the trace goes there.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._perf = session.config.perf
        self._is_compiled = not self._perf.compile
        self._counted_at: int | None = None
        self._profiler: StepProfiler | None = None
        if self._perf.profile:
            self._profiler = StepProfiler(session.device, folder / TRACE)
        self._launches: int | None = None  # of the last step, where they were counted

    def start(self) -> None:
        """Say what cannot be measured here, and make the profiler ready."""
        if self._perf.count_kernels and not can_count(self._session.device):
            self._say(
                "kernel-launches",
                f"kernels per step are counted on CUDA alone; {self._session.device.type} has no "
                "launches to count, so there is no train/kernel_launches_per_step",
            )
        if self._profiler is not None:
            self._profiler.start()

    def take_step(self) -> StepReport:
        """Take the next step under whatever is due."""
        self._launches = None
        if not self._is_compiled:
            return self._compile()
        is_warm = self._profiler is not None and self._profiler.is_warm
        is_traced = self._session.diagnosis.is_trace_due and not self._session.timer.is_warming_up
        if is_warm or is_traced:
            with self._session.timer.paused():
                report = take_step(self._session)
        elif self._is_counting_due():
            report = self._count()
        else:
            report = take_step(self._session)
        self._end_profiled_step()
        return report

    def get_metrics(self) -> dict[str, float]:
        """Return what was counted in the last step; {} where nothing was."""
        if self._launches is None:
            return {}
        return {"train/kernel_launches_per_step": float(self._launches)}

    def finish(self) -> None:
        """Let go of the profiler; say so where the run was too short for it."""
        profiler = self._profiler
        if profiler is not None and not profiler.is_done:
            profiler.stop()
            self._say(
                "profile",
                f"nothing was profiled: the trace is of step {STEPS} of a process (10 are waited "
                "for, 10 warm up) and the run ended before it",
                fix=f"set train.steps to {STEPS} or more",
            )

    def _compile(self) -> StepReport:
        """Take the first step, in which the compiler works."""
        blocks = self._session.config.model.num_layers
        mode = self._perf.compile_mode
        self._say("compile", f"compiling {blocks} blocks ({mode}); this takes a minute")
        started = monotonic()
        with explain_compile_errors():
            report = take_step(self._session)
        synchronize(self._session.device)
        took = monotonic() - started
        self._is_compiled = True
        self._say(
            "compile",
            f"compiled in {took:.0f} s, the first step included; the speeds leave it out",
            evidence={"seconds": round(took, 3), "mode": str(mode)},
        )
        self._end_profiled_step()
        return report

    def _is_counting_due(self) -> bool:
        """Return whether the coming step is logged, and far enough from the last that counted."""
        if not self._perf.count_kernels or not can_count(self._session.device):
            return False
        step = self._session.progress.step + 1
        if step % self._session.config.train.log_every or self._session.timer.is_warming_up:
            return False
        return self._counted_at is None or step - self._counted_at >= COUNT_EVERY

    def _count(self) -> StepReport:
        """Take a step and count its kernel launches."""
        with self._session.timer.paused(), LaunchCounter() as counter:
            report = take_step(self._session)
        self._launches, self._counted_at = counter.launches, report.step
        return report

    def _end_profiled_step(self) -> None:
        """Tell the profiler that a step is over, and record what it has when it is done."""
        profiler, telemetry = self._profiler, self._session.telemetry
        if profiler is None or profiler.is_done:
            return
        step = self._session.progress.step
        try:
            with self._session.timer.paused():
                if not profiler.end_step():
                    return
            size = profiler.path.stat().st_size
        except OSError as error:
            telemetry.warn(
                "profile",
                f"the trace could not be written: {error}",
                "look at the disk that holds the run's folder",
                {"path": TRACE},
            )
            return
        rows = [asdict(kernel) for kernel in profiler.kernels]
        telemetry.emit(
            Artifact(
                time=telemetry.now(),
                kind="trace",
                path=TRACE,
                step=step,
                size_bytes=size,
                metadata={"kernels": rows},
            )
        )
        top = ", ".join(f"{row.name} {row.share_pct:.0f}%" for row in profiler.kernels[:3])
        self._say(
            "profile",
            f"step {step} was profiled; most time went to {top}",
            evidence={"trace": TRACE},
        )

    def _say(
        self, kind: str, cause: str, *, fix: str = "", evidence: dict[str, object] | None = None
    ) -> None:
        telemetry = self._session.telemetry
        finding = Finding(
            time=telemetry.now(),
            kind=kind,
            severity=Severity.INFO,
            step=self._session.progress.step,
            phase="config",
            cause=cause,
            evidence=evidence or {},
            fix=fix,
        )
        telemetry.emit(finding)
