"""How a forecaster is initialised.

Every matrix is drawn from normal(0, init_std), as the official code does whatever the fan; every
bias is 0 and every norm weight 1. Stacked experts are matrices like any other, so expert e looks
like a single linear. Parameters are drawn in the order in which the modules are defined.
"""

from __future__ import annotations

import torch
from torch import nn

from tsx.model.experts import Experts
from tsx.model.norm import RMSNorm


@torch.no_grad()
def init_parameters(model: nn.Module, std: float, generator: torch.Generator | None) -> None:
    """Draw every parameter of `model` anew; None draws from torch's global generator.

    Raises:
        TypeError: a module owns parameters that no rule here covers.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, Experts):
            module.gate_up_EYD.normal_(0.0, std, generator=generator)
            module.down_EDX.normal_(0.0, std, generator=generator)
        elif isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"no initialisation for module '{name}' ({type(module).__name__})")
