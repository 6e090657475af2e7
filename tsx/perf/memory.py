"""Memory of the process and of its device, in GiB.

Peaks: CUDA by its allocator; MPS, which keeps no peak, by the largest figure seen at a read; else
the process's resident set.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

GIB = 1 << 30


class PeakMemory:
    """The peak since it was made or reset, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mps_peak = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew, where the system allows it (Linux and CUDA do, macOS hosts do not)."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "mps":
            self._mps_peak = 0
        else:
            # 5 resets the high-water mark of the resident set; see proc(5).
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read_now_gib(self) -> float:
        """Return what is held at this moment."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device) / GIB
        if self._device.type == "mps":
            return float(torch.mps.driver_allocated_memory()) / GIB
        return read_rss_gib()

    def read_gib(self) -> float:
        """Return the peak so far."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / GIB
        if self._device.type == "mps":
            self._mps_peak = max(self._mps_peak, torch.mps.driver_allocated_memory())
            return self._mps_peak / GIB
        return read_peak_rss_gib()


def read_capacity_gib(device: torch.device) -> float:
    """Return all the memory a process could ever have on a device, swap included on a host."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory) / GIB
    return float(psutil.virtual_memory().total + psutil.swap_memory().total) / GIB


def read_rss_gib() -> float:
    """Return the resident set of this process now."""
    return float(psutil.Process().memory_info().rss) / GIB


def read_peak_rss_gib() -> float:
    """Return the largest resident set of this process.

    Linux' VmHWM rather than ru_maxrss: the latter survives exec, so a child started by a large
    process would report its parent's size.
    """
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
