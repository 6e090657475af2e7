"""From points to tokens: patching and the SwiGLU embedding.

Shapes: B batch, C points of the context, P points per token, T = C / P tokens, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointEmbedding(nn.Module):
    """Embed each run of P points as one token: silu(W_g x) * (W_e x), no bias.

    Source: Time-MoE (arXiv 2409.16040), eq. 1, where P is 1. A patch (P > 1) is ours: the P points
    of a token are its input features.
    """

    def __init__(self, patch_len: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_len = patch_len
        self.gate = nn.Linear(patch_len, hidden_size, bias=False)
        self.value = nn.Linear(patch_len, hidden_size, bias=False)

    def forward(self, input_BC: Tensor) -> Tensor:
        """Return tokens [B, T, D]; C must be a multiple of P."""
        x_BTP = torch.unflatten(input_BC, 1, (-1, self.patch_len))
        embedded: Tensor = F.silu(self.gate(x_BTP)) * self.value(x_BTP)
        return embedded
