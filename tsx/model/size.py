"""Closed-form parameter counts of a forecaster, without torch.

Owns: how many parameters a config has (total), how many one token uses (active), and how many of
those sit in matrices a token is multiplied with (what FLOPs are counted from).
Letters: L layers, D hidden size, E experts, K experts per token, F width of the shared expert,
X width of a routed expert, P points per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from tsx.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ParamCount:
    """Parameters of one model.

    Attributes:
        total: every parameter.
        active: those one token uses, K of the E experts.
        matmul_active: `active` without norm weights and biases.
    """

    total: int
    active: int
    matmul_active: int


def count_params(config: ModelConfig) -> ParamCount:
    """Count parameters of the model that `config` describes.

        total  = L(4DD + 3D + 3EDX + 3DF + ED + D + 2D) + 2DP + D + sum_h Dh
        active = total - 3L(E - K)DX

    The terms of a layer: attention and its q, k, v biases; routed experts; shared expert; router;
    shared gate; two norms. Then embedding, final norm and heads.
    """
    layers, width = config.num_layers, config.hidden_size
    expert = 3 * width * config.expert_width
    layer_matrices = (
        4 * width * width
        + config.num_experts * expert
        + 3 * width * config.ff_width
        + config.num_experts * width
        + width
    )
    layer_vectors = 3 * width + 2 * width
    ends = 2 * width * config.patch_len + width * sum(config.horizons)
    idle = layers * (config.num_experts - config.top_k) * expert
    vectors = layers * layer_vectors + width
    total = layers * layer_matrices + ends + vectors
    return ParamCount(total=total, active=total - idle, matmul_active=total - idle - vectors)
