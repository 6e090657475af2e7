"""The mixture: routed experts plus a gated shared expert.

Shapes: B batch, T tokens, N = B * T, D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from tsx.config import ModelConfig
from tsx.model.experts import Experts, SwiGLU
from tsx.model.router import Router, RouterStats, measure_routing


class MixtureOfExperts(nn.Module):
    """y = sum_k p_k Expert_k(x) + sigmoid(w x) * Shared(x).

    Source: Time-MoE (arXiv 2409.16040), eqs. 4 to 7.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.router = Router(width, config.num_experts, config.top_k)
        self.experts = Experts(config.num_experts, width, config.expert_width)
        self.shared_gate = nn.Linear(width, 1, bias=False)
        self.shared = SwiGLU(width, config.ff_width)

    def forward(self, x_BTD: Tensor, valid_N: Tensor | None) -> tuple[Tensor, RouterStats]:
        """Return the mixture, and the statistics of its router over the valid tokens."""
        x_ND = x_BTD.flatten(0, 1)
        routing = self.router(x_ND)
        routed_ND = self.experts(x_ND, routing)
        shared_ND = self.shared_gate(x_ND).sigmoid() * self.shared(x_ND)
        return (routed_ND + shared_ND).view_as(x_BTD), measure_routing(routing, valid_N)
