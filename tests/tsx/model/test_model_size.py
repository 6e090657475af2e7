"""Parameter counts: the published sizes to the last digit, and the module's own parameters."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tsx.config import ModelConfig
from tsx.model.forecaster import Forecaster
from tsx.model.size import count_params

pytestmark = pytest.mark.trainer

SIZES = [
    (ModelConfig(), 113_352_192, 49_651_200),
    (ModelConfig(hidden_size=768), 453_196_800, 198_392_832),
    (
        ModelConfig(hidden_size=1024, num_layers=36, num_heads=16),
        2_416_545_792,
        1_057_591_296,
    ),
    (ModelConfig(hidden_size=768, d_ff=2048, d_expert=2048), 538_131_456, 198_392_832),
    (ModelConfig(hidden_size=768, d_ff=3072, d_expert=3072), 792_935_424, 283_327_488),
]


@pytest.mark.parametrize(("config", "total", "active"), SIZES)
def test_counts_are_the_published_ones(config: ModelConfig, total: int, active: int) -> None:
    count = count_params(config)
    assert (count.total, count.active) == (total, active)


@pytest.mark.parametrize(
    "config",
    [
        *(config for config, _, _ in SIZES),
        ModelConfig(hidden_size=12, num_layers=1, num_heads=3, num_experts=1, top_k=1),
        ModelConfig(hidden_size=8, num_layers=3, num_heads=2, patch_len=7, horizons=(5,), d_ff=9),
    ],
)
def test_counts_equal_the_module(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Forecaster(config, num_tokens=0)
    assert count_params(config).total == sum(p.numel() for p in model.parameters())


def test_matmul_active_leaves_out_vectors_and_idle_experts(tiny: ModelConfig) -> None:
    with torch.device("meta"):
        model = Forecaster(tiny, num_tokens=0)
    expected = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3:  # stacked experts: K of E are used
            expected += parameter.numel() * tiny.top_k // tiny.num_experts
        elif parameter.ndim == 2:
            expected += parameter.numel()
        else:
            assert name.endswith(("norm.weight", "bias"))
    assert count_params(tiny).matmul_active == expected


def test_counting_needs_no_torch() -> None:
    code = "import sys, tsx.model.size, tsx.perf.flops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
