"""Measure what a device really reaches on large square matrix products."""

from __future__ import annotations

import time

import torch

from tsx.config import Precision
from tsx.perf.device import synchronize

SIZES = (256, 512, 1024, 2048, 4096, 8192)
BUDGET_S = 1.2  # of timed products; a larger size is tried only where one product fits what is left
GLANCE_S = 0.3  # of another look at a peak that is known: has the machine a quieter moment now?
REPEATS = 8  # at most, of one size: the best of a few is the peak, their mean is the neighbours


def measure_gemm_tflops(
    device: torch.device, precision: Precision, budget_s: float = BUDGET_S
) -> float:
    """Return the best TFLOP/s of C = A B over growing sizes, within about `budget_s`.

    A and B are normal numbers from a generator of their own: constants draw less power and read
    too high on a GPU. fp32 is measured as torch is set, TF32 included where it is switched on.
    """
    dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    deadline = time.perf_counter() + budget_s
    best = 0.0
    for size in SIZES:
        expected_s = 2.0 * size**3 / (best * 1e12) if best else 0.0
        if time.perf_counter() + 2 * expected_s > deadline:
            break
        try:
            a, b = (torch.randn(size, size, device=device, generator=generator) for _ in range(2))
            fastest_s = _time_product(a.to(dtype), b.to(dtype), device, deadline)
        except RuntimeError:
            if not best:
                raise
            break  # no memory for this size, under a budget for one: the smaller ones tell enough
        best = max(best, 2.0 * size**3 / fastest_s / 1e12)
    return best


def _time_product(a: torch.Tensor, b: torch.Tensor, device: torch.device, deadline: float) -> float:
    """Return the seconds of the fastest of a few products, after one that is not counted."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        out = a @ b
        fastest_s = float("inf")
        for _ in range(REPEATS):
            synchronize(device)
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            synchronize(device)
            now = time.perf_counter()
            fastest_s = min(fastest_s, now - start)
            if now > deadline:
                break
    return max(fastest_s, 1e-9)
