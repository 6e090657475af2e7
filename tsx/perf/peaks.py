"""The peak a run's speed is held against: dense TFLOP/s by config, by device name, or measured.

A peak that was measured is what matrix products reach on this very machine, so MFU against it says
how far the model is from its own hardware; it cannot be compared with MFU against a datasheet.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tsx.config import Precision
from tsx.perf.gemm import BUDGET_S, GLANCE_S, measure_gemm_tflops

CACHE_BYTES = 1 << 20  # a cache beyond this was not written by us
CACHE_ENTRIES = 256

# Datasheet figures with structured sparsity (twice the dense one), and what they belong to.
SPARSE_BF16 = {
    1979: ("H100 SXM or H200", 989),
    1671: ("H100 NVL or H200 NVL", 835),
    1513: ("H100 PCIe", 756),
    624: ("A100", 312),
}

# (words that must all be in the device's name, dense bf16, fp32 without tensor cores), TFLOP/s,
# from NVIDIA's and AMD's datasheets; the first match wins. On the NVIDIA parts listed TF32 is half
# of bf16. fp32 is None where we are not sure: it is measured then.
DENSE: tuple[tuple[tuple[str, ...], float, float | None], ...] = (
    (("H200", "NVL"), 835.0, 60.0),
    (("H200",), 989.0, 67.0),
    (("GH200",), 989.0, 67.0),
    (("H100", "NVL"), 835.0, 60.0),
    (("H100", "PCIe"), 756.0, 51.0),
    (("H100", "HBM3"), 989.0, 67.0),
    (("A100",), 312.0, 19.5),
    (("B200",), 2250.0, None),
    (("L40S",), 362.0, 91.6),
    (("L4",), 121.0, 30.3),
    (("A10",), 125.0, 31.2),
    (("MI300X",), 1307.0, None),
)


@dataclass(frozen=True, slots=True)
class Peak:
    """Dense peak of a device in one precision.

    Attributes:
        tflops: TFLOP/s; 0 where nothing could be found out.
        source: "config", "device name" or "measured"; empty where nothing could be found out.
        warning: why the figure looks wrong, or empty.
    """

    tflops: float
    source: str
    warning: str = ""


def get_peak(
    device_type: str,
    device_name: str,
    precision: Precision,
    override: float | None,
    cache: Path,
) -> Peak:
    """Return the dense peak that MFU is counted against.

    Args:
        device_type: "cpu", "cuda" or "mps".
        device_name: as the driver gives it.
        precision: FP32 or BF16, of the run.
        override: TFLOP/s from the config, taken as it is.
        cache: JSON file that keeps the best ever measured. Each run takes another short look: what
            was measured beside other work is too low, and a peak only rises. A cache that cannot
            be read is replaced; one that cannot be written is left.
    """
    if override is not None:
        return Peak(override, "config", find_sparse_warning(override))
    known = find_datasheet_tflops(device_type, device_name, precision)
    if known is not None:
        return Peak(known, "device name")
    key = _cache_key(device_type, device_name, precision)
    best = _read_cache(cache).get(key, 0.0)
    try:
        budget_s = GLANCE_S if best else BUDGET_S
        measured = measure_gemm_tflops(torch.device(device_type), precision, budget_s)
    except (RuntimeError, TypeError) as error:  # a dtype the device lacks, or no memory left
        return Peak(0.0, "", f"no peak for MFU: measuring {precision} products failed: {error}")
    if measured > best:
        _write_cache(cache, key, measured)
    return Peak(max(measured, best), "measured")


def find_sparse_warning(tflops: float) -> str:
    """Return a sentence where `tflops` is a figure with sparsity, else an empty string."""
    known = SPARSE_BF16.get(round(tflops))
    if known is None:
        return ""
    name, dense = known
    return (
        f"[perf] mfu_peak_tflops={tflops:g} is the bf16 figure of {name} with structured sparsity, "
        f"which training does not use; the dense one is {dense}, and MFU is half of what it should "
        "be until that is set"
    )


def find_datasheet_tflops(device_type: str, name: str, precision: Precision) -> float | None:
    """Return the dense datasheet figure for a GPU we know, else None."""
    if device_type != "cuda":
        return None
    # "NVIDIA A100-SXM4-80GB" -> {NVIDIA, A100, SXM4, 80GB}: whole words, so A10 is not A100.
    words = {word.upper() for word in name.replace("-", " ").split()}
    if "MIG" in words:  # a slice of the device has a slice of its peak
        return None
    for wanted, bf16, fp32 in DENSE:
        if all(word.upper() in words for word in wanted):
            return bf16 if precision is Precision.BF16 else _fp32_tflops(bf16, fp32)
    return None


def _fp32_tflops(bf16: float, fp32: float | None) -> float | None:
    """Return the fp32 figure for the way torch multiplies fp32 matrices now."""
    if fp32 is None:
        return None
    return bf16 / 2 if torch.get_float32_matmul_precision() != "highest" else fp32


def _cache_key(device_type: str, name: str, precision: Precision) -> str:
    """Return what a measured peak depends on, as one string."""
    parts = (
        platform.node(),
        device_type,
        name,
        str(precision),
        f"threads={torch.get_num_threads()}",
        f"matmul={torch.get_float32_matmul_precision()}",
        f"torch={torch.__version__}",
    )
    return " | ".join(parts)


def _read_cache(path: Path) -> dict[str, float]:
    """Return the believable entries of the cache; nothing from a file that is not ours."""
    try:
        if not path.is_file() or path.stat().st_size > CACHE_BYTES:
            return {}
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = raw.get("peaks") if isinstance(raw, dict) else None
    if not isinstance(entries, dict):
        return {}
    return {
        key: float(entry["tflops"])
        for key, entry in entries.items()
        if isinstance(entry, dict) and _is_believable(entry.get("tflops"))
    }


def _is_believable(tflops: object) -> bool:
    """Tell whether a number can be the peak of one device."""
    if isinstance(tflops, bool) or not isinstance(tflops, int | float):
        return False
    return 1e-5 < tflops < 1e5  # false for NaN


def _write_cache(path: Path, key: str, tflops: float) -> None:
    """Add one entry, atomically; where that fails the next run measures again."""
    if not _is_believable(tflops):
        return
    kept = dict(list(_read_cache(path).items())[-(CACHE_ENTRIES - 1) :])
    kept[key] = tflops
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entries = {name: {"tflops": value} for name, value in kept.items()}
    text = json.dumps({"written": stamp, "peaks": entries}, indent=1, allow_nan=False)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
