"""The FLOP formula against what torch counts, and the diary's figure taken apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tsx.config import ModelConfig, Precision
from tsx.model.forecaster import build_forecaster
from tsx.model.losses import forecast_loss
from tsx.model.size import count_params
from tsx.perf.flops import flops_per_token
from tsx.perf.peaks import find_datasheet_tflops, find_sparse_warning

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


DIARY = ModelConfig(hidden_size=768, d_ff=2048, d_expert=2048)  # what 538M / 198M is in SwiGLU


def count_diary() -> tuple[int, int]:
    """Return total and active as the performance diary has them: biased heads, no final norm."""
    count, change = count_params(DIARY), sum(DIARY.horizons) - DIARY.hidden_size
    return count.total + change, count.active + change


@pytest.mark.parametrize(
    ("tok_per_s", "sparse_peak", "tflops", "mfu_pct"),
    [
        (39_256, 1671, "93.46", "5.59"),
        (53_296, 1671, "126.88", "7.59"),
        (89_583, 1671, "213.27", "12.76"),
        (77_863, 1979, "185.37", "9.37"),
        (133_710, 1979, "318.32", "16.09"),
        (134_339, 1979, "319.82", "16.16"),
    ],
)
def test_the_diary_counted_12_n_against_a_sparse_peak(
    tok_per_s: int, sparse_peak: int, tflops: str, mfu_pct: str
) -> None:
    """Each of its lines, digit by digit: no attention, every active parameter, 12 of them."""
    total, active = count_diary()
    assert (total, active) == (538_130_793, 198_392_169)
    said = 12 * active * tok_per_s / 1e12
    assert f"{said:.2f}" == tflops
    assert f"{100 * said / sparse_peak:.2f}" == mfu_pct
    assert find_sparse_warning(sparse_peak)


def test_docs_take_the_diary_apart_as_the_code_does() -> None:
    """docs/mfu.md: the diary's arithmetic, the same with 6 N and 989, and what tsx would show."""
    _, active = count_diary()
    flops = flops_per_token(DIARY, context_tokens=4096)
    dense = find_datasheet_tflops("cuda", "NVIDIA H100 80GB HBM3", Precision.BF16)
    assert dense == 989
    rows = [(12 * active, 1979), (6 * active, dense)]
    rows += [(flops.matmul, dense), (flops.total, dense), (flops.total_causal, dense)]
    text = (Path(__file__).parents[3] / "docs" / "mfu.md").read_text(encoding="utf-8")
    for per_token, peak in rows:
        tflops = per_token * 134_339 / 1e12
        line = rf"{tflops:.2f} TFLOP/s +/ +{peak:.0f} = {100 * tflops / peak:.2f}%"
        assert re.search(line, text), line
    for count in (active, flops.matmul / 6, flops.attention):
        assert f"{count:,.0f}" in text
