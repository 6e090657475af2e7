"""A tiny model every test of this room can afford."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tsx.config import ModelConfig
from tsx.model.forecaster import Forecaster, build_forecaster

TINY = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_experts": 4,
    "top_k": 2,
    "d_ff": 24,
    "horizons": (1, 3),
    "init_std": 0.3,  # large enough for every part to matter to the output
}


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(**TINY)


@pytest.fixture
def make_tiny() -> Callable[..., Forecaster]:
    def make(seed: int = 0, **changes: object) -> Forecaster:
        return build_forecaster(ModelConfig(**{**TINY, **changes}), seed=seed)

    return make


@pytest.fixture
def series() -> Callable[..., torch.Tensor]:
    """Return `series(batch, points, seed)`: normal numbers from a generator of their own."""

    def draw(batch: int, points: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch, points, generator=torch.Generator().manual_seed(seed))

    return draw
