"""A memory budget that stands in for a smaller device.

CUDA: the caching allocator's own limit. A CPU (Linux): RLIMIT_DATA, which counts what is private
and writable and so leaves mapped data sets and libraries out; RLIMIT_AS would count those too.
Beyond the limit an allocation fails in this process, as it does on a full device; nothing is
killed. The budget is counted from what the process holds when it is applied.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch

from tsx.errors import ConfigError
from tsx.perf.allocator import grow_in_small_steps
from tsx.perf.memory import GIB


class MemoryBudget:
    """Limits the process from `apply` to the end of the `with` block.

    Args:
        gib: `perf.memory_budget_gib`; None limits nothing.
    """

    def __init__(self, gib: float | None) -> None:
        self._gib = gib
        self._device: torch.device | None = None
        self._soft: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lift()

    def apply(self, device: torch.device) -> None:
        """Limit the device, or the host where that is the device, from now on.

        Raises:
            ConfigError: neither CUDA nor a CPU under Linux; nothing else can be limited.
        """
        if self._gib is None:
            return
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            allowed = torch.cuda.memory_reserved(device) + self._gib * GIB
            torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
        elif device.type == "cpu" and sys.platform.startswith("linux"):
            self._limit_host(self._gib)
        else:
            raise ConfigError(
                f"[perf] memory_budget_gib={self._gib:g} cannot be held to on {device.type} under "
                f"{sys.platform}; CUDA and CPUs under Linux can be limited",
                next_command="leave perf.memory_budget_gib out",
            )
        self._device = device

    def lift(self) -> None:
        """Take the limit away; there is room then to say what happened. Safe to call twice."""
        device, self._device = self._device, None
        if device is None:
            return
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        elif self._soft is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (self._soft, hard))

    def _limit_host(self, gib: float) -> None:
        grow_in_small_steps()
        _start_threads()
        self._soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        allowed = _read_data_bytes() + int(gib * GIB)
        if hard != resource.RLIM_INFINITY:
            allowed = min(allowed, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))


def _start_threads() -> None:
    """Make the worker threads and the libraries' first buffers exist before the limit does.

    A thread whose stack does not fit any more ends the process; a tensor that does not fit is an
    error that can be told.
    """
    x = torch.zeros(512, 512)
    torch.mm(x, x)
    torch.zeros(1 << 20).exp_().sum()


def _read_data_bytes() -> int:
    """Return what RLIMIT_DATA counts of this process; see VmData in proc(5)."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
