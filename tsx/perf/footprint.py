"""How much memory one training step needs, by arithmetic alone: no torch, nothing is built.

A prediction orders sizes and says where a search may start; what a run took is `sys/peak_mem_gib`.

Letters: L layers, D hidden size, H heads, E experts, K experts per token, F width of the shared
expert, X width of a routed expert, h points of a horizon, N tokens of one micro-batch.
"""

from __future__ import annotations

from tsx.config import Precision, RunConfig
from tsx.model.size import count_params

GIB = 1 << 30
FP32_BYTES, BF16_BYTES = 4, 2
# Copies of each parameter: weight, gradient, two moments of AdamW. Gradients grow while activations
# go, so a step's peak is one or the other.
STATE_COPIES, GRADIENT_COPIES = 3, 1
# What a process takes with its first step whatever the model: code paged in, the libraries' own
# buffers (Linux, torch 2.13 CPU; measured 0.02).
FIRST_STEP_GIB = 0.03
HEAP_MARGIN = 1.15  # of all tensors: what a heap that is never compacted holds beside them


def predict_peak_gib(config: RunConfig, precision: Precision = Precision.FP32) -> float:
    """Return the memory a run's training steps add to what its process had before the model.

    That is `sys/peak_mem_gib - sys/base_mem_gib`. Eager runs of 0.4 to 1.3 GiB on a CPU were within
    8 % of it, fp32 and bf16; compiled ones keep less, a fifth less in the case measured.

        peak = 0.03 GiB + 1.15 max(12 P + N (L A + O + W), 16 P)     bytes, P parameters
        A = 4 ((13 + 2 K) D + 4 F + 4 K X + H + 2 E + 3 K)          kept for backward, per layer
        O = 4 (4 D + 6 sum_h h)                                     embedding, norm, heads, loss
        W = 4 (6 max(F, K X) + 6 D)                                 at work in one layer's backward

    Activations are those of one micro-batch: `train.grad_accum_steps` does not count. In bf16 (an
    autocast over fp32 parameters) matrix products keep half the bytes and every weight has a copy.

    Args:
        config: of the run; its sizes, `train.batch_size` and `data.context_length` decide.
        precision: of the products; BF16 where the run's device takes it.
    """
    model = config.model
    tokens = config.train.batch_size * (config.data.context_length // model.patch_len)
    params = count_params(model).total * FP32_BYTES
    width = FP32_BYTES
    if precision is Precision.BF16:
        width = BF16_BYTES
    routed = model.top_k * model.expert_width
    layer = width * (4 * model.ff_width + 4 * routed)
    layer += (FP32_BYTES + width) // 2 * (13 + 2 * model.top_k) * model.hidden_size
    layer += FP32_BYTES * (model.num_heads + 2 * model.num_experts + 3 * model.top_k)
    ends = FP32_BYTES * (4 * model.hidden_size + 6 * sum(model.horizons))
    working = width * 6 * (max(model.ff_width, routed) + model.hidden_size)
    activations = tokens * (model.num_layers * layer + ends + working)
    copies = params // FP32_BYTES * BF16_BYTES if precision is Precision.BF16 else 0
    held = STATE_COPIES * params + copies + activations
    tensors = max(held, (STATE_COPIES + GRADIENT_COPIES) * params)
    return FIRST_STEP_GIB + HEAP_MARGIN * tensors / GIB
