"""One training step under torch's profiler: a Chrome trace, the kernels that took most, a count.

The schedule is fixed: wait 10 steps, warm up 10, record 1. Python stacks are always recorded. What
the profiler slows is for the caller to leave out of the speeds: `StepProfiler.is_warm` says when.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WAIT, WARMUP, ACTIVE = 10, 10, 1
STEPS = WAIT + WARMUP + ACTIVE  # a run shorter than that has no trace
TOP = 20  # kernels that are kept in the registry
MAX_NAME = 120  # characters of a kernel's name; templates of C++ run to thousands
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchCooperativeKernel", "cuLaunchKernel", "cudaGraphLaunch")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operation of the profiled step.

    Attributes:
        name: as torch has it, cut to 120 characters.
        calls: in that step.
        total_ms: its own time, without what it called: on the device for CUDA, else on the host.
        share_pct: of the time of all operations.
    """

    name: str
    calls: int
    total_ms: float
    share_pct: float


class StepProfiler:
    """Follows the steps of a run and records the 21st.

    Args:
        device: of the run; a GPU's kernels are recorded beside the host's operations.
        path: where the Chrome trace goes, whole or not at all.
    """

    def __init__(self, device: torch.device, path: Path) -> None:
        self.path = path
        self._is_cuda = device.type == "cuda"
        self._step = 0
        self._error: OSError | None = None
        self.kernels: tuple[Kernel, ...] = ()
        self._profile: Any = profile(
            activities=list_activities(device),
            schedule=schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1),
            with_stack=True,
            acc_events=True,  # there is one cycle; without it torch warns of losing others
            on_trace_ready=self._keep,
        )

    @property
    def is_warm(self) -> bool:
        """Whether the step to come runs under the profiler, warm-up included."""
        return WAIT <= self._step < STEPS

    @property
    def is_done(self) -> bool:
        """Whether the trace is written."""
        return self._step >= STEPS

    def start(self) -> None:
        """Begin to count steps."""
        self._profile.start()

    def end_step(self) -> bool:
        """Count one step; return whether it was the one that was recorded.

        Raises:
            OSError: the trace could not be written.
        """
        if self.is_done:
            return False
        self._step += 1
        self._profile.step()
        if self._step < STEPS:
            return False
        self._profile.stop()
        if self._error is not None:
            raise self._error
        return True

    def stop(self) -> None:
        """End early: nothing is written. Safe to call at any time."""
        if not self.is_done:
            self._step = STEPS
            self._profile.on_trace_ready = None
            self._profile.stop()

    def _keep(self, recorded: Any) -> None:
        """Write the trace and keep the table; called by torch within its own `step`."""
        self.kernels = tuple(list_top_kernels(recorded.events(), is_cuda=self._is_cuda))
        draft = self.path.with_name(f".draft-{self.path.name}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(draft))
            os.replace(draft, self.path)
        except (OSError, RuntimeError) as error:
            draft.unlink(missing_ok=True)
            self._error = error if isinstance(error, OSError) else OSError(str(error))


def list_activities(device: torch.device) -> list[ProfilerActivity]:
    """Return what to record for a run on a device."""
    gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    return [ProfilerActivity.CPU, *gpu]


def list_top_kernels(events: Iterable[Any], *, is_cuda: bool) -> list[Kernel]:
    """Return the operations with the most time of their own, at most 20, the largest first.

    Python functions are in the trace and not in this list, nor is the mark of the step itself.
    """
    calls: Counter[str] = Counter()
    total_us: Counter[str] = Counter()
    for event in events:
        # An attribute of newer torch; older ones leave Python functions out of the events.
        if getattr(event, "is_python_function", False) or event.name.startswith("ProfilerStep"):
            continue
        us = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        if us > 0:
            calls[event.name] += 1
            total_us[event.name] += us
    whole = sum(total_us.values())
    return [
        Kernel(name[:MAX_NAME], calls[name], us / 1e3, 100.0 * us / whole)
        for name, us in total_us.most_common(TOP)
    ]


def count_launches(events: Iterable[Any]) -> int:
    """Return how often the host asked the device to run a kernel; a captured graph counts once."""
    return sum(event.name.startswith(LAUNCHES) for event in events)


def can_count(device: torch.device) -> bool:
    """Return whether a device has kernel launches to count."""
    return device.type == "cuda"


class LaunchCounter:
    """Counts the kernel launches of what runs inside the `with` block, on CUDA."""

    def __init__(self) -> None:
        self.launches = 0
        both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        self._profile: Any = profile(activities=both, acc_events=True)

    def __enter__(self) -> LaunchCounter:
        self._profile.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._profile.__exit__(*details)
        self.launches = count_launches(self._profile.events())
