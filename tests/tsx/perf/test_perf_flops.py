"""The FLOP formula against what torch counts, and the diary's figure taken apart."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tsx.config import ModelConfig
from tsx.model.forecaster import build_forecaster
from tsx.model.losses import forecast_loss
from tsx.perf.flops import flops_per_token

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 32),
        ({"patch_len": 8}, 16),
        ({"num_layers": 1, "top_k": 1}, 96),
        ({"top_k": 4, "d_ff": 96}, 8),
    ],
)
def test_formula_equals_torchs_count(changes: dict[str, int], tokens: int) -> None:
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_experts": 4} | changes
    config = ModelConfig(**sizes)
    model = build_forecaster(config, seed=0)
    points = tokens * config.patch_len
    series = torch.randn(3, points + 1, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, points, dtype=torch.bool)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forecast = model(series[:, :-1])
        forecast_loss(forecast, series[:, 1:], mask, config).total.backward()
    expected = flops_per_token(config, tokens).total * 3 * tokens
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_terms_stand_apart() -> None:
    flops = flops_per_token(ModelConfig(), context_tokens=4096)
    # base: 49,651,200 active, of which 23,424 are norm weights and biases
    assert flops.matmul == 6 * (49_651_200 - 23_424)
    assert flops.attention == 12 * 12 * 384 * 4096
    assert flops.attention_causal == 6 * 12 * 384 * 4096
    assert flops.total == flops.matmul + flops.attention
    assert flops.total_causal == flops.matmul + flops.attention_causal


def test_the_two_errors_of_the_diary_cancel() -> None:
    """319.82 TFLOP/s at 134,339 tok/s and 16.16%: 12 N against a sparse peak is 6 N against 989."""
    model = ModelConfig(hidden_size=768, d_ff=2048, d_expert=2048)
    matmul = flops_per_token(model, context_tokens=4096).matmul
    tok_per_s = 134_339
    assert 2 * matmul * tok_per_s / 1e12 == pytest.approx(319.82, rel=1e-3)
    assert 2 * matmul * tok_per_s / 1979e12 == pytest.approx(0.1616, rel=1e-3)
    assert matmul * tok_per_s / 989e12 == pytest.approx(0.1616, rel=2e-3)
