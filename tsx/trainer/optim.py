"""AdamW on fp32 parameters, gradient norm and clipping, and its state as named tensors.

Weight decay touches matrices (stacked experts too), never norms and biases. The state goes to
and from a flat dict of tensors named `<slot>.<parameter>`, so that a checkpoint needs no pickle.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from tsx.config import OptimConfig

SLOTS = ("step", "exp_avg", "exp_avg_sq")


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Return AdamW over the model's parameters; fused where the device has it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in {"cpu", "cuda"} for p in trained)
    betas = (config.beta1, config.beta2)
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=betas,
        eps=config.eps,
        fused=fused,
    )


def set_lr(optimizer: AdamW, lr: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def measure_grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the total L2 norm of the gradients, a 0-d tensor on their device; nothing waits."""
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, total_norm: Tensor) -> None:
    """Scale the gradients in place so that their norm is at most `max_norm`; 0 leaves them."""
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, total_norm)


def list_state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return name to shape of everything a whole optimizer state of this model holds."""
    return {
        f"{slot}.{name}": () if slot == "step" else tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for slot in SLOTS
    }


def get_state(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """Return the optimizer's state as flat named tensors; empty before the first step."""
    return {
        f"{slot}.{name}": optimizer.state[parameter][slot]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for slot in SLOTS
    }


def set_state(model: nn.Module, optimizer: AdamW, tensors: dict[str, Tensor]) -> None:
    """Put back what `get_state` gave; an empty dict is the state before the first step.

    A fused AdamW keeps its step count on the parameter's device, any other on the host.
    """
    fused = bool(optimizer.defaults["fused"])
    optimizer.state.clear()
    if not tensors:
        return
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        step, *moments = (tensors[f"{slot}.{name}"] for slot in SLOTS)
        optimizer.state[parameter] = {
            "step": step.clone().to(parameter.device if fused else "cpu"),
            **{slot: m.clone().to(parameter) for slot, m in zip(SLOTS[1:], moments, strict=True)},
        }
