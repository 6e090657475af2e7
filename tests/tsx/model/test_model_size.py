"""Parameter counts: the published sizes to the last digit, and the module's own parameters."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from tsx.config import ModelConfig, decode
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
    total = active = vectors = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if parameter.ndim == 3:  # stacked experts: K of E are used
            active += parameter.numel() * config.top_k // config.num_experts
            continue
        active += parameter.numel()
        if parameter.ndim == 1:
            assert name.endswith(("norm.weight", "bias"))
            vectors += parameter.numel()
    count = count_params(config)
    assert (count.total, count.active) == (total, active)
    assert count.matmul_active == active - vectors


@pytest.mark.parametrize("preset", ["base", "large", "ultra"])
def test_presets_have_the_sizes_they_are_named_for(preset: str) -> None:
    path = Path(__file__).parents[3] / "recipes" / "presets" / f"{preset}.toml"
    text = path.read_text(encoding="utf-8")
    count = count_params(decode({"model": tomllib.loads(text)["model"]}).model)
    assert (count.total, count.active) in [size[1:] for size in SIZES[:3]]
    assert f"{count.total:,}" in text
    assert f"{count.active:,}" in text


def test_counting_needs_no_torch() -> None:
    code = "import sys, tsx.model.size, tsx.perf.flops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
