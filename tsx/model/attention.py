"""Causal self-attention with rotary positions.

Windows are padded on the right and attention is causal, so a valid token never sees a padded one:
no padding mask exists here, and none may be added. A mask that is not None silently selects a
slower kernel, and an inverted one was the cause of a week of NaN.

Shapes: B batch, T tokens, S tokens the table holds, D hidden size, H heads, A = D / H head size,
h = A / 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RotaryTable(nn.Module):
    """cos and sin of every position, fp32, computed once and shared by all layers.

    Not in the state dict. Kept in fp32 under autocast: a bf16 table cannot tell neighbouring
    positions apart beyond a few hundred tokens.
    """

    cos_Sh: Tensor
    sin_Sh: Tensor

    def __init__(self, head_dim: int, theta: float, num_tokens: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.register_buffer("cos_Sh", torch.empty(0), persistent=False)
        self.register_buffer("sin_Sh", torch.empty(0), persistent=False)
        self.build(num_tokens)

    def build(self, num_tokens: int) -> None:
        """Fill the table for positions 0 .. num_tokens - 1, on the device it is on.

        angle[s, i] = s * theta^(-2i / A) for i < A/2.
        """
        # A buffer born under inference_mode could not be used in training later.
        with torch.inference_mode(False), torch.no_grad():
            exponent_h = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
            position_S = torch.arange(num_tokens, dtype=torch.float32)
            angle_Sh = torch.outer(position_S, 1.0 / self.theta**exponent_h)
            device = self.cos_Sh.device
            self.cos_Sh = angle_Sh.cos().to(device)
            self.sin_Sh = angle_Sh.sin().to(device)

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens`; does nothing where there is room. Not for the hot path."""
        held = self.cos_Sh.shape[0]
        if num_tokens > held:
            self.build(max(num_tokens, 2 * held))

    def forward(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each [T, A/2], of the first `num_tokens` positions."""
        return self.cos_Sh[:num_tokens], self.sin_Sh[:num_tokens]


def rotate(x_BTGHA: Tensor, cos_Th: Tensor, sin_Th: Tensor) -> Tensor:
    """Rotate each head by its position; the two halves of a head are the pairs.

        (u, v) -> (u cos - v sin, v cos + u sin)

    Source: RoFormer (arXiv 2104.09864), eq. 34, in the half-split layout of GPT-NeoX. G is how
    many of q and k are rotated together. Computed in fp32, returned in the dtype of `x_BTGHA`.
    """
    cos, sin = cos_Th[:, None, None, :], sin_Th[:, None, None, :]
    u, v = x_BTGHA.chunk(2, dim=-1)
    return torch.cat((u * cos - v * sin, v * cos + u * sin), dim=-1).to(x_BTGHA.dtype)


class CausalAttention(nn.Module):
    """Multi-head attention: q, k, v with bias in one matrix, output without.

    `qkv.weight` is [3D, D]: rows of q, then k, then v, each head by head.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=True)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos_Th: Tensor, sin_Th: Tensor) -> Tensor:
        """Return softmax(q k^T / sqrt(A)) v over the tokens up to and including each one."""
        qkv_BT3HA = torch.unflatten(self.qkv(x_BTD), -1, (3, self.num_heads, -1))
        qk_BT2HA = rotate(qkv_BT3HA[:, :, :2], cos_Th, sin_Th)
        q_BHTA, k_BHTA = (x.transpose(1, 2) for x in qk_BT2HA.unbind(2))
        v_BHTA = qkv_BT3HA[:, :, 2].transpose(1, 2)
        y_BHTA = F.scaled_dot_product_attention(q_BHTA, k_BHTA, v_BHTA, is_causal=True)
        y_BTD: Tensor = self.out(y_BHTA.transpose(1, 2).flatten(2))
        return y_BTD
