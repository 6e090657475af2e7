"""The Time-MoE forecaster: embedding, pre-norm blocks, final norm, one head per horizon.

    h = x + Attention(RMSNorm(x));  y = h + MoE(RMSNorm(h))

Owns how the parts are joined and how a model is built from a seed. Parameters are fp32; bf16 comes
from autocast around `forward`. Autoregressive forecasting is not done here.

Source: Time-MoE (arXiv 2409.16040), section 3.

Shapes: B batch, C points of the context, P points per token, T = C / P tokens, N = B * T,
D hidden size, h points of a horizon.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tsx.config import AuxReduction, ModelConfig
from tsx.model.attention import CausalAttention, RotaryTable
from tsx.model.embedding import PointEmbedding
from tsx.model.heads import HorizonHeads
from tsx.model.init import init_parameters
from tsx.model.moe import MixtureOfExperts
from tsx.model.norm import RMSNorm
from tsx.model.router import RouterStats

DEFAULT_TOKENS = 4096  # positions the rotary table starts with: the longest context of the paper


class Forecast(NamedTuple):
    """What a forward pass returns.

    Attributes:
        predictions: one [B, T, h] per horizon, in the order of the config; [b, t] predicts the h
            points that follow token t. bf16 under autocast.
        routing: statistics of each layer's router.
    """

    predictions: tuple[Tensor, ...]
    routing: tuple[RouterStats, ...]


class Block(nn.Module):
    """One pre-norm layer: attention, then the mixture of experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = CausalAttention(config.hidden_size, config.num_heads)
        self.moe_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.moe = MixtureOfExperts(config)

    def forward(
        self, x_BTD: Tensor, cos_Th: Tensor, sin_Th: Tensor, valid_N: Tensor | None
    ) -> tuple[Tensor, RouterStats]:
        """Return the block's output and its router's statistics."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_Th, sin_Th)
        mixed_BTD, stats = self.moe(self.moe_norm(x_BTD), valid_N)
        return x_BTD + mixed_BTD, stats


class Forecaster(nn.Module):
    """A decoder-only mixture-of-experts forecaster.

    Build one with `build_forecaster`; the constructor draws from torch's global generator.
    """

    def __init__(self, config: ModelConfig, *, num_tokens: int = DEFAULT_TOKENS) -> None:
        super().__init__()
        self.config = config
        self.embedding = PointEmbedding(config.patch_len, config.hidden_size)
        self.rotary = RotaryTable(config.head_dim, config.rope_theta, num_tokens)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.heads = HorizonHeads(config.hidden_size, config.horizons)
        init_parameters(self, config.init_std, generator=None)

    def forward(self, input_BC: Tensor, valid_BC: Tensor | None = None) -> Forecast:
        """Predict every horizon at every token.

        Args:
            input_BC: scaled points, zeros where padded.
            valid_BC: bool, points that are not padding (on the right). They decide which tokens
                the router's statistics count, never what a prediction is. None: all are valid.

        Raises:
            ValueError: C is not a multiple of patch_len, or the shapes differ.
        """
        self._check(input_BC, valid_BC)
        num_tokens = input_BC.shape[1] // self.config.patch_len
        self.rotary.reserve(num_tokens)  # nothing to do but for a context longer than any before
        cos_Th, sin_Th = self.rotary(num_tokens)
        valid_N = self._find_valid_tokens(valid_BC)
        x_BTD = self.embedding(input_BC)
        routing: list[RouterStats] = []
        for block in self.blocks:
            x_BTD, stats = block(x_BTD, cos_Th, sin_Th, valid_N)
            routing.append(stats)
        return Forecast(self.heads(self.norm(x_BTD)), tuple(routing))

    def _find_valid_tokens(self, valid_BC: Tensor | None) -> Tensor | None:
        """Return the tokens [N] with a valid point, or None where all tokens count."""
        if valid_BC is None or self.config.aux_reduction is AuxReduction.CONCATENATED:
            return None  # the official code counts padding
        return torch.unflatten(valid_BC, 1, (-1, self.config.patch_len)).any(-1).flatten()

    def _check(self, input_BC: Tensor, valid_BC: Tensor | None) -> None:
        """Raise ValueError for shapes that do not fit."""
        if input_BC.ndim != 2 or input_BC.shape[1] % self.config.patch_len:
            raise ValueError(
                f"input of shape {tuple(input_BC.shape)}: expected [batch, points] with points a "
                f"multiple of patch_len={self.config.patch_len}"
            )
        if valid_BC is not None and valid_BC.shape != input_BC.shape:
            raise ValueError(
                f"valid points of shape {tuple(valid_BC.shape)} beside an input of shape "
                f"{tuple(input_BC.shape)}"
            )


def build_forecaster(
    config: ModelConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    num_tokens: int = DEFAULT_TOKENS,
) -> Forecaster:
    """Build a forecaster whose weights are a function of `config` and `seed` alone.

    Weights are drawn on the CPU whatever the device, and torch's global generators are neither
    read nor moved.

    Args:
        config: sizes and init.
        seed: of the weights.
        device: where the model ends up.
        num_tokens: positions to prepare; longer contexts work and enlarge the table once.
    """
    with torch.device("meta"):
        model = Forecaster(config, num_tokens=0)
    model.to_empty(device="cpu")
    model.rotary.build(num_tokens)
    init_parameters(model, config.init_std, torch.Generator("cpu").manual_seed(seed))
    return model.to(device)
