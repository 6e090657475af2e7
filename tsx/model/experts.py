"""Feed-forward parts: one SwiGLU, and E of them stacked.

`Experts.run_loop` is written to be read; `Experts.forward` is the path that runs, of static shapes,
and is tested against it.

Shapes: N tokens, K experts per token, R = N * K routed rows, D hidden size, E experts,
X expert width, F feed-forward width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsx.model.grouped import gather_rows, grouped_linear
from tsx.model.router import Routing


class SwiGLU(nn.Module):
    """y = down(silu(gate x) * (up x)), no bias. `gate_up.weight` is [2F, D], rows of gate first.

    Source: Shazeer 2020 (arXiv 2002.05202), eq. 6.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * width, bias=False)
        self.down = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


class Experts(nn.Module):
    """E SwiGLU experts in two stacked parameters, each expert laid out as an nn.Linear.

    `gate_up_EYD` is [E, 2X, D] (rows of gate first), `down_EDX` is [E, D, X]. They start
    uninitialised: `tsx.model.init` draws each expert as it draws a single linear. (A generic
    fan-in rule takes the product of all axes but the first for the fan of a 3-D tensor and makes
    such experts some thousand times too small.)
    """

    def __init__(self, num_experts: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up_EYD = nn.Parameter(torch.empty(num_experts, 2 * width, hidden_size))
        self.down_EDX = nn.Parameter(torch.empty(num_experts, hidden_size, width))

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Return y[n] = sum_k weights[n, k] * expert_{experts[n, k]}(x[n]).

        Rows are sorted by expert and put back by index, so each result is written once and no
        sum depends on the order of atomic adds. Every shape depends on N and K alone.
        """
        top_k = routing.experts_NK.shape[1]
        row_of_sorted_R = routing.experts_NK.flatten().argsort(stable=True)
        sorted_of_row_R = row_of_sorted_R.argsort()
        x_RD = gather_rows(x_ND, row_of_sorted_R // top_k, sorted_of_row_R, top_k)
        gate_RX, up_RX = grouped_linear(x_RD, self.gate_up_EYD, routing.counts_E).chunk(2, dim=-1)
        y_RD = grouped_linear(F.silu(gate_RX) * up_RX, self.down_EDX, routing.counts_E)
        y_RD = gather_rows(y_RD, sorted_of_row_R, row_of_sorted_R, 1)
        y_NKD = torch.unflatten(y_RD, 0, (-1, top_k))
        return (y_NKD * routing.weights_NK.to(y_NKD.dtype)[..., None]).sum(1)

    def run_loop(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Return what `forward` does, written to be read: the reference it is tested against."""
        num_tokens, top_k = routing.experts_NK.shape
        row_of_sorted_R = routing.experts_NK.flatten().argsort(stable=True)
        x_RD = x_ND.index_select(0, row_of_sorted_R // top_k)
        parts = zip(
            torch.split(x_RD, routing.counts_E.tolist()),
            self.gate_up_EYD.unbind(),
            self.down_EDX.unbind(),
            strict=True,
        )
        y_RD = torch.cat([_apply_expert(x_MD, gate_up, down) for x_MD, gate_up, down in parts])
        sorted_of_row_R = row_of_sorted_R.argsort()
        y_NKD = y_RD.index_select(0, sorted_of_row_R).view(num_tokens, top_k, -1)
        return (y_NKD * routing.weights_NK.to(y_NKD.dtype)[..., None]).sum(1)


def _apply_expert(x_MD: Tensor, gate_up_YD: Tensor, down_DX: Tensor) -> Tensor:
    """Run the M rows of one expert; M may be 0."""
    gate_MX, up_MX = F.linear(x_MD, gate_up_YD).chunk(2, dim=-1)
    return F.linear(F.silu(gate_MX) * up_MX, down_DX)
