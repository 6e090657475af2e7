"""Samples of the machine while a run trains: processor, memory and, with NVML, the GPU.

A machine without NVML, or a driver that does not answer, gives fewer keys and no noise.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psutil
import torch

from tsx.perf.bandwidth import DramBandwidth
from tsx.perf.memory import GIB, read_rss_gib


class SystemSampler:
    """Takes samples for one process and its device. Utilisation is over the time since the last.

    Args:
        device: of the run; a GPU's figures are read only for CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        psutil.cpu_percent(interval=None)  # the first figure has no interval and is always 0
        self._nvml: Any = None
        self._handle: Any = None
        self._bandwidth: DramBandwidth | None = None
        if device.type == "cuda":
            self._nvml, self._handle = _open_nvml(device)
        if self._nvml is not None:
            self._bandwidth = DramBandwidth(self._nvml, self._handle)

    def sample(self) -> dict[str, float]:
        """Return the figures of now.

        sys/cpu_pct and sys/ram_pct are of the whole machine, sys/ram_gib is this process's resident
        set. With NVML: sys/gpu_util_pct, sys/gpu_mem_ctrl_util_pct, sys/gpu_mem_gib (all processes)
        and sys/gpu_power_w; on Hopper and later sys/gpu_hbm_util_pct.
        """
        values = {
            "sys/cpu_pct": float(psutil.cpu_percent(interval=None)),
            "sys/ram_gib": read_rss_gib(),
            "sys/ram_pct": float(psutil.virtual_memory().percent),
        }
        return values | self._sample_gpu()

    def close(self) -> None:
        """Let go of NVML; a later sample has no GPU figures. Safe to call twice."""
        nvml, self._nvml, self._handle = self._nvml, None, None
        if self._bandwidth is not None:
            self._bandwidth.close()
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _sample_gpu(self) -> dict[str, float]:
        """Return what NVML answers; one figure it does not have costs only that figure."""
        nvml, handle = self._nvml, self._handle
        if nvml is None:
            return {}
        values: dict[str, float] = {}
        with suppress(nvml.NVMLError):
            utilisation = nvml.nvmlDeviceGetUtilizationRates(handle)
            values["sys/gpu_util_pct"] = float(utilisation.gpu)
            values["sys/gpu_mem_ctrl_util_pct"] = float(utilisation.memory)
        with suppress(nvml.NVMLError):
            values["sys/gpu_mem_gib"] = float(nvml.nvmlDeviceGetMemoryInfo(handle).used) / GIB
        with suppress(nvml.NVMLError):
            values["sys/gpu_power_w"] = float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1e3
        with suppress(nvml.NVMLError):
            used_pct = self._bandwidth.read_pct() if self._bandwidth is not None else None
            if used_pct is not None:
                values["sys/gpu_hbm_util_pct"] = used_pct
        return values


def _open_nvml(device: torch.device) -> tuple[Any, Any]:
    """Return NVML and the device's handle, or (None, None).

    The device is found by its UUID: NVML knows nothing of CUDA_VISIBLE_DEVICES.
    """
    try:
        import pynvml
    except ImportError:
        return None, None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except (nvml.NVMLError, AttributeError, RuntimeError, AssertionError):
        return None, None
