"""Which device and arithmetic a run gets, and what the device is called."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from tsx.config import Device, Precision
from tsx.errors import ConfigError


def resolve_device(wanted: Device) -> torch.device:
    """Return the device a run trains on: CUDA, then MPS, then the CPU when left to us.

    Raises:
        ConfigError: the device asked for is not there.
    """
    if wanted is Device.CPU:
        return torch.device("cpu")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted in (Device.AUTO, Device.CUDA) and has_cuda:
        return torch.device("cuda", torch.cuda.current_device())
    if wanted in (Device.AUTO, Device.MPS) and has_mps:
        return torch.device("mps")
    if wanted is Device.AUTO:
        return torch.device("cpu")
    present = ["cpu", *(["cuda"] if has_cuda else []), *(["mps"] if has_mps else [])]
    raise ConfigError(
        f"[train] device='{wanted}' is not available to torch {torch.__version__} on this machine; "
        f"available: {', '.join(present)}",
        next_command="--device auto",
    )


def resolve_precision(wanted: Precision, device: torch.device) -> Precision:
    """Return FP32 or BF16: what was asked for, else bf16 on CUDA devices that have it in hardware.

    On a CPU fp32 is the default: many have no bf16 unit and emulate it at a fraction of the speed.
    """
    if wanted is not Precision.AUTO:
        return wanted
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision.BF16
    return Precision.FP32


def find_device_name(device: torch.device) -> str:
    """Return the model name of the device, or of its host's processor; never empty."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _find_cpu_model() or platform.processor() or platform.machine() or "unknown processor"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _find_cpu_model() -> str:
    """Return "model name" of Linux' /proc/cpuinfo, or an empty string."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return " ".join(value.split())
    return ""
