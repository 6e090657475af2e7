"""The official Time-MoE implementation, from a checkout of its repository, beside ours.

Needs an environment of its own (`make parity OFFICIAL=PATH` makes it): transformers 4.40.1 wants
another huggingface_hub than tsx. Nothing of that repository is copied here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsx.config import AuxReduction, ModelConfig
from tsx.model import official
from tsx.model.forecaster import Forecaster, build_forecaster
from tsx.model.weights import from_official

TINY = ModelConfig(
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_experts=2,
    top_k=1,
    d_ff=256,
    aux_reduction=AuxReduction.CONCATENATED,
)
BASE = ModelConfig(aux_reduction=AuxReduction.CONCATENATED)


@dataclass(frozen=True)
class Data:
    """One batch, as the window data sets give it."""

    input_BC: Tensor
    target_BC: Tensor
    mask_BC: Tensor


def open_checkout(path: Path) -> None:
    """Make the official package importable.

    Raises:
        SystemExit: the folder is no checkout, or its requirements are not installed.
    """
    if not (path / "time_moe" / "models" / "modeling_time_moe.py").is_file():
        sys.exit(f"{path}: no checkout of Time-MoE/Time-MoE (time_moe/models is not in it)")
    sys.path.insert(0, str(path))
    try:
        importlib.import_module("time_moe.models.modeling_time_moe")
    except ImportError as error:
        sys.exit(f"{error}; make parity OFFICIAL={path} installs what the checkout needs")


def make_pair(config: ModelConfig, *, seed: int = 0, num_tokens: int = 4096) -> tuple[Any, Any]:
    """Return the official model and ours with the same weights."""
    tensors = draw_tensors(config, seed)
    return make_official(config, tensors), make_ours(config, tensors, num_tokens=num_tokens)


def make_ours(
    config: ModelConfig, tensors: Mapping[str, Tensor], *, num_tokens: int = 4096
) -> Forecaster:
    """Return our model with tensors of the official names."""
    model = build_forecaster(config, seed=0, num_tokens=num_tokens)
    model.load_state_dict(from_official(tensors, config))
    return model


def make_official(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Any:
    """Return an instance of the official class that holds these tensors."""
    models = importlib.import_module("time_moe.models.modeling_time_moe")
    settings = official.encode_config(config, context_tokens=4096)
    model = models.TimeMoeForPrediction(
        models.TimeMoeConfig(**settings, attn_implementation="eager")
    )
    model.load_state_dict(dict(tensors))
    return model.train()


def draw_tensors(config: ModelConfig, seed: int, std: float = 0.02) -> dict[str, Tensor]:
    """Return random tensors under the official names: nothing is trivially 0 or 1.

    Matrices are normal(0, std), by default as the official class starts them, biases
    normal(0, 0.1), norm weights 1 + normal(0, 0.1); the router's and the shared gate's are
    normal(0, 0.2), so that probabilities are far from flat.
    """
    tensors = {}
    for index, (name, shape) in enumerate(official.list_tensor_shapes(config).items()):
        noise = np.random.default_rng([seed, index]).standard_normal(shape).astype(np.float32)
        if "norm" in name:
            noise = 1 + 0.1 * noise
        elif ".ffn_layer.gate." in name or "shared_expert_gate" in name:
            noise = 0.2 * noise
        else:
            noise = (0.1 if name.endswith("bias") else std) * noise
        tensors[name] = torch.from_numpy(noise.astype(np.float32))
    return tensors


def draw_batch(batch: int, points: int, *, seed: int = 0, padded: bool = True) -> Data:
    """Return scaled noise over a slow wave; every second row is padded on the right."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(points + 1) / 7.0 + rng.uniform(0, 6, (batch, 1)))
    series = (wave + 0.5 * rng.standard_normal((batch, points + 1))).astype(np.float32)
    mask = np.ones((batch, points), dtype=bool)
    if padded:
        for row in range(1, batch, 2):
            length = int(rng.integers(points // 4, points))
            series[row, length + 1 :] = 0
            mask[row, length:] = False
    inputs, targets = series[:, :-1].copy(), series[:, 1:].copy()
    return Data(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(mask))


def run_official(model: Any, data: Data) -> Any:
    """Return the official forward pass with its loss; it reshapes in place, so copies go in."""
    return model(
        input_ids=data.input_BC.clone(),
        labels=data.target_BC.clone(),
        loss_masks=data.mask_BC.float(),
        use_cache=False,
        output_hidden_states=True,
    )


def predict_official(model: Any, data: Data) -> list[Tensor]:
    """Return every horizon's predictions of the official model, [B, T, h] each."""
    hidden = model.model(input_ids=data.input_BC.clone(), use_cache=False).last_hidden_state
    return [head(hidden) for head in model.lm_heads]


def predict_ours(model: Forecaster, data: Data) -> list[Tensor]:
    """Return every horizon's predictions of our model, [B, T, h] each."""
    return list(model(data.input_BC, data.mask_BC).predictions)
