"""Model FLOPs of one token, without torch. The definition is in docs/mfu.md."""

from __future__ import annotations

from dataclasses import dataclass

from tsx.config import ModelConfig
from tsx.model.size import count_params


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of one model token, forward and backward.

    Attributes:
        matmul: 6 per active matrix weight.
        attention: 12 L D T, every token against every other, as is the convention.
        attention_causal: 6 L D T, what a causal kernel has to do.
    """

    matmul: float
    attention: float
    attention_causal: float

    @property
    def total(self) -> float:
        """What throughput in TFLOP/s and MFU are counted from: matmul + attention."""
        return self.matmul + self.attention

    @property
    def total_causal(self) -> float:
        """The same with causal attention counted once: the work a causal kernel cannot avoid."""
        return self.matmul + self.attention_causal


def flops_per_token(model: ModelConfig, context_tokens: int) -> Flops:
    """Count the FLOPs of one token of a context of `context_tokens` tokens.

        matmul = 6 N_active;  attention = 12 L D T

    A token is a model token: a patch counts once, however many points it holds. N_active leaves
    out norm weights and biases. Padded tokens cost as much as valid ones and are counted.

    Source: PaLM (arXiv 2204.02311), appendix B; attention as in torchtitan.
    """
    attention = 12.0 * model.num_layers * model.hidden_size * context_tokens
    return Flops(
        matmul=6.0 * count_params(model).matmul_active,
        attention=attention,
        attention_causal=attention / 2,
    )
