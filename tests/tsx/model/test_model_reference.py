"""The model against one written out in numpy float64, loop by loop, and against hand arithmetic.

Nothing here calls the code under test for an expected value: the reference below reads the weights
and does the sums of docs/model.md one token, one head and one expert at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tsx.config import ModelConfig
from tsx.model.attention import RotaryTable, rotate
from tsx.model.embedding import PointEmbedding
from tsx.model.experts import Experts
from tsx.model.forecaster import Forecaster
from tsx.model.norm import RMSNorm
from tsx.model.router import Router

pytestmark = pytest.mark.trainer

Array = np.ndarray[Any, np.dtype[np.float64]]


def silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / math.sqrt(sum(v * v for v in x) / len(x) + eps) * weight


def swiglu(x: Array, gate_up: Array, down: Array) -> Array:
    width = gate_up.shape[0] // 2
    return down @ (silu(gate_up[:width] @ x) * (gate_up[width:] @ x))


def rotated(x: Array, position: int, theta: float) -> Array:
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
        out[half + i] = x[half + i] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def attend(tokens: list[Array], w: dict[str, Array], name: str, config: ModelConfig) -> list[Array]:
    size, heads, head = config.hidden_size, config.num_heads, config.head_dim
    qkv = [w[f"{name}.qkv.weight"] @ x + w[f"{name}.qkv.bias"] for x in tokens]
    outputs = []
    for t in range(len(tokens)):
        joined = np.zeros(size)
        for h in range(heads):
            part = slice(h * head, (h + 1) * head)
            q = rotated(qkv[t][:size][part], t, config.rope_theta)
            scores = [
                q @ rotated(qkv[s][size : 2 * size][part], s, config.rope_theta) / math.sqrt(head)
                for s in range(t + 1)
            ]
            exps = [math.exp(score - max(scores)) for score in scores]
            for s in range(t + 1):
                joined[part] += exps[s] / sum(exps) * qkv[s][2 * size :][part]
        outputs.append(w[f"{name}.out.weight"] @ joined)
    return outputs


def mix(x: Array, w: dict[str, Array], name: str, config: ModelConfig) -> Array:
    logits = w[f"{name}.router.proj.weight"] @ x
    exps = [math.exp(v) for v in logits]
    probs = [v / sum(exps) for v in exps]
    chosen = sorted(range(len(probs)), key=lambda e: -probs[e])[: config.top_k]
    gate = 1.0 / (1.0 + math.exp(-(w[f"{name}.shared_gate.weight"][0] @ x)))
    y = gate * swiglu(x, w[f"{name}.shared.gate_up.weight"], w[f"{name}.shared.down.weight"])
    for e in chosen:
        gate_up, down = (w[f"{name}.experts.{key}"][e] for key in ("gate_up_EYD", "down_EDX"))
        y = y + probs[e] * swiglu(x, gate_up, down)
    return y


def reference(model: Forecaster, points: Array) -> list[list[Array]]:
    """Return predictions[horizon][token] of one window."""
    config = model.config
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    tokens = [
        silu(w["embedding.gate.weight"] @ patch) * (w["embedding.value.weight"] @ patch)
        for patch in points.reshape(-1, config.patch_len)
    ]
    for i in range(config.num_layers):
        normed = [
            rms_norm(x, w[f"blocks.{i}.attention_norm.weight"], config.norm_eps) for x in tokens
        ]
        attended = attend(normed, w, f"blocks.{i}.attention", config)
        tokens = [x + y for x, y in zip(tokens, attended, strict=True)]
        normed = [rms_norm(x, w[f"blocks.{i}.moe_norm.weight"], config.norm_eps) for x in tokens]
        tokens = [
            x + mix(y, w, f"blocks.{i}.moe", config) for x, y in zip(tokens, normed, strict=True)
        ]
    final = [rms_norm(x, w["norm.weight"], config.norm_eps) for x in tokens]
    count = len(config.horizons)
    return [[w[f"heads.heads.{h}.weight"] @ x for x in final] for h in range(count)]


@pytest.mark.parametrize("changes", [{}, {"patch_len": 3}, {"top_k": 1}, {"num_experts": 2}])
def test_forecaster_equals_the_written_out_one(
    make_tiny: Callable[..., Forecaster],
    series: Callable[..., torch.Tensor],
    changes: dict[str, int],
) -> None:
    model = make_tiny(seed=3, **changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # norms and biases away from 1 and 0, so that they count
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    window = series(2, 12)
    forecast = model(window)
    for b in range(2):
        expected = reference(model, window[b].double().numpy())
        for got, want in zip(forecast.predictions, expected, strict=True):
            np.testing.assert_allclose(
                got[b].detach().numpy(), np.stack(want), rtol=2e-4, atol=2e-5
            )


def test_rms_norm_by_hand() -> None:
    norm = RMSNorm(2, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 10.0])
    # mean square of (3, 4) is 12.5; plus 0.5 is 13
    expected = torch.tensor([3 / math.sqrt(13), 40 / math.sqrt(13)])
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), expected)


def test_embedding_by_hand() -> None:
    embedding = PointEmbedding(patch_len=2, hidden_size=1)
    embedding.gate.weight.data = torch.tensor([[1.0, -1.0]])
    embedding.value.weight.data = torch.tensor([[2.0, 1.0]])
    # patch (3, 1): gate 2, value 7, silu(2) = 2 / (1 + e^-2); patch (0, 0) is 0
    out = embedding(torch.tensor([[3.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(out, torch.tensor([[[14 / (1 + math.exp(-2))], [0.0]]]))


def test_rotation_by_hand() -> None:
    table = RotaryTable(head_dim=4, theta=100.0, num_tokens=3)
    cos, sin = table(3)
    # pairs are (0, 2) at 1 rad a position and (1, 3) at 100^(-1/2) = 0.1 rad a position
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 3, 1, 1, 4)
    out = rotate(x, cos, sin)[0, :, 0, 0]
    for position in range(3):
        expected = [
            math.cos(position),
            math.cos(0.1 * position),
            math.sin(position),
            math.sin(0.1 * position),
        ]
        torch.testing.assert_close(out[position], torch.tensor(expected))


def test_rotated_products_depend_on_distance_alone() -> None:
    table = RotaryTable(head_dim=8, theta=10000.0, num_tokens=40)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=generator).expand(1, 40, 1, 1, 8) for _ in range(2))
    q, k = (rotate(x, *table(40))[0, :, 0, 0] for x in (q, k))
    products = q @ k.T
    for distance in (0, 1, 7):
        along = products.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-5, atol=1e-5)


def test_mixture_by_hand() -> None:
    """One feature; expert e multiplies: silu(x) * e * x with weight p_e, not renormalised."""
    router, experts = Router(1, 3, top_k=2), Experts(3, 1, 1)
    router.proj.weight.data = torch.tensor([[math.log(1.0)], [math.log(2.0)], [math.log(5.0)]])
    experts.gate_up_EYD.data = torch.tensor([[[1.0], [1.0]], [[1.0], [2.0]], [[1.0], [3.0]]])
    experts.down_EDX.data = torch.ones(3, 1, 1)
    x = torch.tensor([[1.0]])
    routing = router(x)
    torch.testing.assert_close(routing.probs_NE, torch.tensor([[1 / 8, 2 / 8, 5 / 8]]))
    assert routing.experts_NK.tolist() == [[2, 1]]
    assert routing.counts_E.tolist() == [0, 1, 1]
    silu_1 = 1 / (1 + math.exp(-1))
    expected = torch.tensor([[silu_1 * (5 / 8 * 3 + 2 / 8 * 2)]])
    torch.testing.assert_close(experts(x, routing), expected)
