"""Parameters that a model uses and does not know: in a plain list, or in a dict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from tsx.diagnostics.detector import Scene
from tsx.diagnostics.frozen.gradient_paths import Place
from tsx.diagnostics.frozen.holders import Holders
from tsx.diagnostics.frozen.report import KIND_NAME
from tsx.diagnostics.tracing.source_lines import find_class_line

MAX_HELD = 256  # things in one list


def report_strangers(
    scene: Scene,
    holders: Holders,
    used: dict[int, tuple[Tensor, Place]],
    told: set[int],
    step: int,
) -> None:
    """Report parameters of modules in plain lists, which nobody trains; each is asked for once.

    Args:
        scene: where to report.
        holders: knows the optimizers.
        used: parameters that calls have used, with the place of their use.
        told: ids of those that were asked for before; gets the new ones.
        step: of the last look.
    """
    new = set(used) - told
    told |= new
    if not new:
        return
    known = {id(param) for param in scene.model.parameters()}
    strangers = {key for key in new - known if not holders.is_alive(key)}
    if not strangers:
        return
    for name, module in scene.model.named_modules():
        for attribute, value in vars(module).items():
            found = {id(p) for p in _iter_params(value)} & strangers
            if found:
                pattern = re.compile(rf"\bself\.{re.escape(attribute)}\s*[:=](?!=)")
                scene.report(
                    KIND_NAME,
                    "not-registered",
                    f"{len(found)} parameters in the plain {type(value).__name__} '{attribute}' "
                    "are no parameters of the model: no optimizer and no checkpoint has them",
                    "put the layers into an nn.ModuleList or nn.ModuleDict, parameters into an "
                    "nn.ParameterList",
                    step=step,
                    phase="optimizer",
                    module=name,
                    where=find_class_line(type(module), pattern)[0],
                    evidence={"num_parameters": len(found), "attribute": attribute},
                )


def _iter_params(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the parameters in lists and dicts that are no modules themselves."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple) or len(value) > MAX_HELD or depth > 2:
        return
    for item in value:
        if isinstance(item, nn.Module):
            yield from item.parameters()
        elif isinstance(item, nn.Parameter):
            yield item
        else:
            yield from _iter_params(item, depth + 1)
