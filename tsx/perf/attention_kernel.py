"""Which kernel scaled_dot_product_attention runs: forced by the config, and found out by asking.

torch picks a kernel by device, dtype, head size and version, silently; a mask or a dtype can move
it to a much slower one. What runs is therefore asked on tensors shaped like the run's, before the
first step, and recorded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tsx.config import AttnBackend, Precision, RunConfig
from tsx.errors import ConfigError

BACKENDS = {
    AttnBackend.FLASH: SDPBackend.FLASH_ATTENTION,
    AttnBackend.EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
    AttnBackend.CUDNN: SDPBackend.CUDNN_ATTENTION,
    AttnBackend.MATH: SDPBackend.MATH,
}
_NAMES = {backend: str(name) for name, backend in BACKENDS.items()}


def forced_kernel(wanted: AttnBackend) -> AbstractContextManager[object]:
    """Return a context in which attention runs the kernel wanted and no other; AUTO leaves it."""
    return nullcontext() if wanted is AttnBackend.AUTO else sdpa_kernel(BACKENDS[wanted])


def find_kernel(config: RunConfig, device: torch.device, precision: Precision) -> str:
    """Return which kernel the attention of a run takes: "flash", "math", ...; "" if unknown.

    Raises:
        ConfigError: `perf.attn_backend` names a kernel that this device cannot run on tensors of
            this run's shape and dtype.
    """
    wanted = config.perf.attn_backend
    shape = (1, config.model.num_heads, _count_tokens(config), config.model.head_dim)
    if wanted is AttnBackend.AUTO:
        return _ask(shape, device, precision)
    if not _can_run(wanted, shape, device, precision):
        others = [str(name) for name in BACKENDS if _can_run(name, shape, device, precision)]
        raise ConfigError(
            f"[perf] attn_backend='{wanted}' cannot run on {device.type} in {precision} with "
            f"head_dim={config.model.head_dim}; these can: {', '.join(['auto', *others])}",
            next_command="--set perf.attn_backend=auto",
        )
    return str(wanted)


def _count_tokens(config: RunConfig) -> int:
    return config.data.context_length // config.model.patch_len


def _draw(shape: tuple[int, ...], device: torch.device, precision: Precision) -> torch.Tensor:
    dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
    return torch.zeros(shape, device=device, dtype=dtype, requires_grad=True)


def _ask(shape: tuple[int, ...], device: torch.device, precision: Precision) -> str:
    """Return torch's own choice; the question has no public form, so it may go unanswered."""
    ask = getattr(torch, "_fused_sdp_choice", None)
    if ask is None:
        return ""
    x = _draw(shape, device, precision)
    try:
        return _NAMES.get(SDPBackend(ask(x, x, x, is_causal=True)), "")
    except (RuntimeError, NotImplementedError, ValueError):
        return ""


def _can_run(
    wanted: AttnBackend, shape: tuple[int, ...], device: torch.device, precision: Precision
) -> bool:
    """Try forward and backward; few tokens, for what a kernel refuses is not their number."""
    x = _draw((*shape[:2], min(shape[2], 64), shape[3]), device, precision)
    try:
        with forced_kernel(wanted):
            y = F.scaled_dot_product_attention(x, x, x, is_causal=True)
            y.float().sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return True
