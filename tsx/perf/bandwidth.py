"""How much of a GPU's memory bandwidth is in use, by NVML's GPM counters (Hopper and later).

NVML's older "memory utilisation" is the share of time in which memory was read or written at all:
a device that moves one byte at a time reads 100 % there. GPM counts bytes against the peak.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any


class DramBandwidth:
    """Reads the share of peak bandwidth used since the last read.

    Args:
        nvml: the module pynvml, initialised.
        handle: of the device.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._samples: list[Any] = []  # the last one read, then one to read into
        with suppress(nvml.NVMLError, AttributeError):  # an older driver or pynvml has no GPM
            if nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                samples = [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
                nvml.nvmlGpmSampleGet(handle, samples[0])
                self._samples = samples

    def read_pct(self) -> float | None:
        """Return percent of the peak since the last read, None where the device does not say."""
        if not self._samples:
            return None
        nvml, (before, now) = self._nvml, self._samples
        nvml.nvmlGpmSampleGet(self._handle, now)
        self._samples = [now, before]
        query = nvml.c_nvmlGpmMetricsGet_t()
        query.version, query.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
        query.sample1, query.sample2 = before, now
        query.metrics[0].metricId = nvml.NVML_GPM_METRIC_DRAM_BW_UTIL
        metric = nvml.nvmlGpmMetricsGet(query).metrics[0]
        return float(metric.value) if metric.nvmlReturn == nvml.NVML_SUCCESS else None

    def close(self) -> None:
        """Free both samples."""
        samples, self._samples = self._samples, []
        for sample in samples:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlGpmSampleFree(sample)
