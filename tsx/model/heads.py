"""One linear head per horizon, without bias.

Shapes: B batch, T tokens, D hidden size, h points of a horizon.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HorizonHeads(nn.Module):
    """Predict, at each token, the next h points for every horizon h."""

    def __init__(self, hidden_size: int, horizons: Sequence[int]) -> None:
        super().__init__()
        self.horizons = tuple(horizons)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, h, bias=False) for h in self.horizons)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """Return one [B, T, h] per horizon.

        One product with the joined weights: the 1-wide head alone would be a slow one.
        """
        weight = torch.cat([head.get_parameter("weight") for head in self.heads])
        return torch.split(F.linear(x_BTD, weight), list(self.horizons), dim=-1)
