"""Weights to and from the official names.

Ours are stacked and joined (q, k, v in one matrix, gate over up, experts along a first axis), the
official ones one tensor a linear. Moving between the two copies numbers and never computes one, so
a round trip is the identity. `tsx.model.official` owns the names.

Shapes: E experts, D hidden size, X width of a routed expert, Y = 2X.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tsx.config import ModelConfig
from tsx.errors import ConfigError, TsxError
from tsx.model import official

_LAYER = {  # ours -> official, one tensor each
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "moe_norm.weight": "post_attention_layernorm.weight",
    "moe.router.proj.weight": "ffn_layer.gate.weight",
    "moe.shared_gate.weight": "ffn_layer.shared_expert_gate.weight",
    "moe.shared.down.weight": "ffn_layer.shared_expert.down_proj.weight",
}
_ENDS = {
    "embedding.value.weight": "model.embed_layer.emb_layer.weight",
    "embedding.gate.weight": "model.embed_layer.gate_layer.weight",
    "norm.weight": "model.norm.weight",
}


def to_official(state: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return a forecaster's state dict under the official names, as views where possible."""
    tensors = {theirs: state[ours] for ours, theirs in _ENDS.items()}
    for index in range(len(model.horizons)):
        tensors[f"lm_heads.{index}.out_layer.weight"] = state[f"heads.heads.{index}.weight"]
    for layer in range(model.num_layers):
        at, to = f"blocks.{layer}.", f"model.layers.{layer}."
        tensors |= {to + theirs: state[at + ours] for ours, theirs in _LAYER.items()}
        for kind in ("weight", "bias"):
            parts = state[f"{at}attention.qkv.{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                tensors[f"{to}self_attn.{name}_proj.{kind}"] = part
        gate_up = state[f"{at}moe.shared.gate_up.weight"].chunk(2)
        for name, part in zip(("gate", "up"), gate_up, strict=True):
            tensors[f"{to}ffn_layer.shared_expert.{name}_proj.weight"] = part
        for expert in range(model.num_experts):
            gate, up = state[f"{at}moe.experts.gate_up_EYD"][expert].chunk(2)
            name = f"{to}ffn_layer.experts.{expert}."
            tensors[f"{name}gate_proj.weight"] = gate
            tensors[f"{name}up_proj.weight"] = up
            tensors[f"{name}down_proj.weight"] = state[f"{at}moe.experts.down_EDX"][expert]
    return tensors


def from_official(tensors: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return a forecaster's state dict from tensors under the official names, in fp32.

    Raises:
        KeyError: a tensor is missing; `official.find_files` lists what a folder lacks.
    """
    state = {ours: tensors[theirs] for ours, theirs in _ENDS.items()}
    for index in range(len(model.horizons)):
        state[f"heads.heads.{index}.weight"] = tensors[f"lm_heads.{index}.out_layer.weight"]
    for layer in range(model.num_layers):
        state |= dict(_iter_layer(tensors, model, f"blocks.{layer}.", f"model.layers.{layer}."))
    return {name: tensor.float() for name, tensor in state.items()}


def _iter_layer(
    tensors: Mapping[str, Tensor], model: ModelConfig, at: str, to: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one layer under our names."""
    for ours, theirs in _LAYER.items():
        yield at + ours, tensors[to + theirs]
    for kind in ("weight", "bias"):
        parts = [tensors[f"{to}self_attn.{name}_proj.{kind}"] for name in "qkv"]
        yield f"{at}attention.qkv.{kind}", torch.cat(parts)

    def join(part: str) -> Tensor:
        name = f"{to}ffn_layer.{part}."
        return torch.cat([tensors[f"{name}gate_proj.weight"], tensors[f"{name}up_proj.weight"]])

    yield f"{at}moe.shared.gate_up.weight", join("shared_expert")
    experts = [f"experts.{expert}" for expert in range(model.num_experts)]
    yield f"{at}moe.experts.gate_up_EYD", torch.stack([join(expert) for expert in experts])
    down = [tensors[f"{to}ffn_layer.{expert}.down_proj.weight"] for expert in experts]
    yield f"{at}moe.experts.down_EDX", torch.stack(down)


def list_state_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name to shape of a forecaster's state dict; nothing is built or allocated.

    Raises:
        ConfigError: as `official.list_tensor_shapes`.
    """
    shapes = official.list_tensor_shapes(model)
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {name: tuple(part.shape) for name, part in from_official(empty, model).items()}


def read_weights(folder: Path, model: ModelConfig) -> dict[str, Tensor]:
    """Return the state dict of a forecaster from a folder of official weights, fp32 on the host.

    Raises:
        ConfigError: what `official.find_files` refuses, or a number that is not finite in fp32.
    """
    where = official.find_files(folder, model)
    tensors: dict[str, Tensor] = {}
    try:
        for path in sorted(set(where.values())):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    tensors[name] = file.get_tensor(name).float()
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error
    _check_finite(tensors, folder)
    return from_official(tensors, model)


def write_weights(
    folder: Path, state: Mapping[str, Tensor], model: ModelConfig, *, context_tokens: int
) -> None:
    """Write `config.json` and `model.safetensors`, fp32, into a new or empty folder.

    Both are written beside their place and moved there when they are on the disk, config.json
    last: a folder that has one is whole.

    Raises:
        ConfigError: the official class has no such model, a number is not finite, or the folder
            holds something.
        TsxError: the disk does not take it; what was begun is gone.
    """
    config = official.encode_config(model, context_tokens=context_tokens)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists and is not an empty folder; nothing was written",
            next_command="tsx model export RUN DIR with a DIR that is new",
        )
    official_state = to_official(state, model).items()
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in official_state}
    _check_finite(tensors, "the model")
    is_new = not folder.exists()
    draft = (folder.parent if is_new else folder) / f".draft-{secrets.token_hex(4)}"
    try:
        draft.mkdir(parents=True)
        _write_files(draft, config, tensors)
        if is_new:
            draft.rename(folder)
        else:
            for name in (official.WEIGHTS, official.CONFIG):
                (draft / name).rename(folder / name)
    except (OSError, SafetensorError) as error:
        raise TsxError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_files(folder: Path, config: Mapping[str, object], tensors: dict[str, Tensor]) -> None:
    """Write both files and wait until they are on the disk."""
    text, weights = folder / official.CONFIG, folder / official.WEIGHTS
    text.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # The `format` mark is what the official class's loader looks for.
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.copymode(text, weights)  # the library makes a file that nobody else may read
    for path in (text, weights):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _check_finite(tensors: Mapping[str, Tensor], place: object) -> None:
    """Raise ConfigError that names the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise ConfigError(f"{place}: tensor {name} holds {bad} numbers that are not finite")
