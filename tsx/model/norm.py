"""RMSNorm with an fp32 weight that stays in the fused kernel under bf16 autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsx.model.precision import no_autocast


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4, with eps inside the root.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; the result has the dtype of `x`.

        The weight is kept in fp32 (in bf16 an Adam step at 1.0 is under half an ulp and the weight
        never moves) and cast here: an fp32 weight beside a bf16 input leaves the fused kernel, and
        CUDA's autocast would turn the whole op to fp32. The kernel itself sums in fp32.
        """
        with no_autocast(x.device.type):
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
