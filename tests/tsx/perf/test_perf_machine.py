"""Devices, memory and system samples, with and without a GPU."""

from __future__ import annotations

import builtins
import os
import sys
import types
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tsx.config import Device, Precision
from tsx.errors import ConfigError
from tsx.perf.device import find_device_name, resolve_device, resolve_precision, synchronize
from tsx.perf.memory import (
    GIB,
    PeakMemory,
    read_capacity_gib,
    read_peak_rss_gib,
    read_rss_gib,
)
from tsx.perf.system import SystemSampler

pytestmark = pytest.mark.trainer

CPU = torch.device("cpu")


def offer(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"),
    [(True, True, "cuda:0"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_cuda_then_mps_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, auto: str
) -> None:
    offer(monkeypatch, cuda=cuda, mps=mps)
    assert str(resolve_device(Device.AUTO)) == auto
    assert resolve_device(Device.CPU) == CPU


@pytest.mark.parametrize("wanted", [Device.CUDA, Device.MPS])
def test_a_missing_device_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, wanted: Device) -> None:
    offer(monkeypatch, cuda=False, mps=False)
    with pytest.raises(ConfigError, match=f"device='{wanted}'.*available: cpu") as caught:
        resolve_device(wanted)
    assert caught.value.next_command == "--device auto"


def test_precision_left_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, cuda=True, mps=True)
    cuda = torch.device("cuda", 0)
    assert resolve_precision(Precision.AUTO, cuda) is Precision.BF16
    assert resolve_precision(Precision.AUTO, CPU) is Precision.FP32
    assert resolve_precision(Precision.AUTO, torch.device("mps")) is Precision.FP32
    assert resolve_precision(Precision.BF16, CPU) is Precision.BF16
    assert resolve_precision(Precision.FP32, cuda) is Precision.FP32
    offer(monkeypatch, cuda=True, mps=False, bf16=False)
    assert resolve_precision(Precision.AUTO, cuda) is Precision.FP32


def test_the_cpu_has_a_name() -> None:
    name = find_device_name(CPU)
    assert name.strip() == name
    assert name
    assert "\n" not in name
    synchronize(CPU)


def test_capacity_is_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_rss_gib() < read_capacity_gib(CPU) < 1e6
    facts = SimpleNamespace(total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    assert read_capacity_gib(torch.device("cuda", 0)) == 80


def test_peak_covers_an_allocation_that_is_gone() -> None:
    memory = PeakMemory(CPU)
    before = memory.read_gib()
    block = torch.ones(64 << 20)  # 256 MiB
    del block
    assert memory.read_gib() >= before + 0.2
    assert read_peak_rss_gib() >= read_rss_gib() * 0.99


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot forget a peak"
)
def test_reset_forgets_the_peak() -> None:
    memory = PeakMemory(CPU)
    block = torch.ones(64 << 20)
    del block
    high = memory.read_gib()
    memory.reset()
    assert memory.read_gib() < high


def test_samples_of_the_host() -> None:
    sampler = SystemSampler(CPU)
    values = sampler.sample()
    assert set(values) == {"sys/cpu_pct", "sys/ram_gib", "sys/ram_pct"}
    assert values["sys/ram_gib"] == pytest.approx(read_rss_gib(), rel=0.2)
    assert 0 < values["sys/ram_pct"] <= 100
    sampler.close()
    sampler.close()
    assert set(sampler.sample()) == set(values)


class FakeNvml(types.ModuleType):
    """As much of pynvml as is asked for."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, broken: bool = False, no_power: bool = False) -> None:
        super().__init__("pynvml")
        self.broken, self.no_power, self.shutdowns = broken, no_power, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise self.NVMLError("no driver")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shutdowns += 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "GPU-abc"
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=97, memory=41)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=3 * GIB)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        if self.no_power:
            raise self.NVMLError("not supported")
        return 651_000


def sample_with(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> dict[str, float]:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc")
    )
    sampler = SystemSampler(torch.device("cuda", 0))
    values = sampler.sample()
    sampler.close()
    return {key: value for key, value in values.items() if "gpu" in key}


def test_samples_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    assert sample_with(monkeypatch, nvml) == {
        "sys/gpu_util_pct": 97.0,
        "sys/gpu_mem_ctrl_util_pct": 41.0,
        "sys/gpu_mem_gib": 3.0,
        "sys/gpu_power_w": 651.0,
    }
    assert nvml.shutdowns == 1


def test_a_figure_nvml_lacks_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    values = sample_with(monkeypatch, FakeNvml(no_power=True))
    assert "sys/gpu_power_w" not in values
    assert values["sys/gpu_util_pct"] == 97.0


def test_no_driver_is_silent(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sample_with(monkeypatch, FakeNvml(broken=True)) == {}
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_no_nvml_at_all_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    sampler = SystemSampler(torch.device("cuda", 0))
    assert not any("gpu" in key for key in sampler.sample())


class FakeGpm(FakeNvml):
    """A Hopper: samples are counters, and a share is what one has more than the other."""

    NVML_SUCCESS, NVML_GPM_METRICS_GET_VERSION, NVML_GPM_METRIC_DRAM_BW_UTIL = 0, 1, 10

    def __init__(self, *, supported: bool = True, answer: int = 0) -> None:
        super().__init__()
        self.supported, self.answer, self.freed, self.clock = supported, answer, 0, 0

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(isSupportedDevice=int(self.supported))

    def nvmlGpmSampleAlloc(self) -> Any:  # noqa: N802
        return SimpleNamespace(count=-1)

    def nvmlGpmSampleGet(self, handle: str, sample: Any) -> None:  # noqa: N802
        self.clock += 10 + self.clock  # 10, 30, 70: the steps between samples are 20, 40
        sample.count = self.clock

    def nvmlGpmSampleFree(self, sample: Any) -> None:  # noqa: N802
        self.freed += 1

    def c_nvmlGpmMetricsGet_t(self) -> Any:  # noqa: N802
        return SimpleNamespace(metrics=[SimpleNamespace()])

    def nvmlGpmMetricsGet(self, query: Any) -> Any:  # noqa: N802
        assert (query.version, query.numMetrics, query.metrics[0].metricId) == (1, 1, 10)
        query.metrics[0].value = query.sample2.count - query.sample1.count
        query.metrics[0].nvmlReturn = self.answer
        return query


def test_bandwidth_is_of_the_time_since_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeGpm()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc")
    )
    sampler = SystemSampler(torch.device("cuda", 0))
    assert [sampler.sample()["sys/gpu_hbm_util_pct"] for _ in range(2)] == [20.0, 40.0]
    sampler.close()
    sampler.close()
    assert nvml.freed == 2


@pytest.mark.parametrize("nvml", [FakeGpm(supported=False), FakeGpm(answer=3), FakeNvml()])
def test_a_gpu_that_does_not_count_bytes_has_no_bandwidth(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml
) -> None:
    values = sample_with(monkeypatch, nvml)
    assert "sys/gpu_hbm_util_pct" not in values
    assert values["sys/gpu_mem_ctrl_util_pct"] == 41.0
