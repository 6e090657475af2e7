"""The layout of official Time-MoE weights: `config.json` beside `model.safetensors`. No torch.

Owns what the two files say: the architecture in the official class's words, and the name and
shape of every tensor. Reads headers, never values; moving values is `tsx.model.weights`. Pickled
weights are refused: loading one runs whatever its author put in.

Source: the public repository Time-MoE/Time-MoE (TimeMoeConfig, TimeMoeForPrediction).

Letters: L layers, D hidden size, E experts, F width of the shared expert, X of a routed one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tsx.config import AuxReduction, ModelConfig, decode
from tsx.errors import ConfigError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPE, ARCHITECTURE = "time_moe", "TimeMoeForPrediction"
MAX_JSON_BYTES = 16 * 2**20  # an index of the largest model is under 2 MiB
MAX_LISTED = 8  # tensors named in one message
FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

_SAME = {  # official key -> ours
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "intermediate_size": "d_ff",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
    "initializer_range": "init_std",
    "router_aux_loss_factor": "aux_loss_weight",
}
_REQUIRED = tuple(_SAME)[:6]
# What the official class can do and this model does not: the only value that is accepted.
_ONLY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "input_size": 1,
    "hidden_act": "silu",
    "use_dense": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}


def encode_config(model: ModelConfig, *, context_tokens: int) -> dict[str, Any]:
    """Return what `config.json` says of a model.

    Args:
        model: its architecture.
        context_tokens: the longest context it was trained on.

    Raises:
        ConfigError: the official class has no such model.
    """
    if model.patch_len != 1:
        raise ConfigError(
            f"[model] patch_len={model.patch_len}: the official Time-MoE class reads single points "
            "and has no patches; only a model of patch_len=1 can be exported"
        )
    if model.expert_width != model.ff_width // model.top_k:
        raise ConfigError(
            f"[model] d_expert={model.expert_width}: the official Time-MoE class has no such key "
            f"and takes d_ff / top_k = {model.ff_width // model.top_k}"
        )
    config: dict[str, Any] = {"architectures": [ARCHITECTURE], **_ONLY}
    config |= {official: getattr(model, ours) for official, ours in _SAME.items()}
    return config | {
        "apply_aux_loss": True,
        "horizon_lengths": list(model.horizons),
        "intermediate_size": model.ff_width,
        "max_position_embeddings": max(context_tokens + max(model.horizons), 4096),
        "num_key_value_heads": model.num_heads,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def decode_config(raw: Mapping[str, Any], *, place: str) -> ModelConfig:
    """Return the architecture that a `config.json` describes.

    Raises:
        ConfigError: another architecture, a variant this model does not have, or values out of
            range; the message has key and value.
    """
    for key, only in _ONLY.items():
        found = raw.get(key, None if key == "model_type" else only)
        if found != only:
            raise ConfigError(f"{place}: {key}={_show(found)}; expected {_show(only)} of Time-MoE")
    missing = [key for key in (*_REQUIRED, "horizon_lengths") if key not in raw]
    if missing:
        raise ConfigError(f"{place}: says nothing of {', '.join(missing)}")
    heads = raw["num_attention_heads"]
    if raw.get("num_key_value_heads", heads) not in (heads, None):
        raise ConfigError(
            f"{place}: num_key_value_heads={_show(raw['num_key_value_heads'])} is not "
            f"num_attention_heads={_show(heads)}; grouped-query attention is not built in"
        )
    horizons = raw["horizon_lengths"]
    model = {ours: raw[official] for official, ours in _SAME.items() if official in raw}
    model["horizons"] = horizons if isinstance(horizons, list) else [horizons]
    model["aux_reduction"] = str(AuxReduction.CONCATENATED)  # what the weights were trained with
    return decode({"model": model}, place=place).model


def read_config(folder: Path) -> ModelConfig:
    """Return the architecture that `folder/config.json` describes.

    Raises:
        ConfigError: no such file, no JSON, or not one of ours (`decode_config`).
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; expected one with {CONFIG} and {WEIGHTS}",
            next_command="tsx model import DIR",
        )
    return decode_config(_read_json(folder / CONFIG), place=str(folder / CONFIG))


def list_tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return official name to shape of every tensor of a model."""
    width, wide, narrow = model.hidden_size, model.ff_width, model.expert_width
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_layer.emb_layer.weight": (width, model.patch_len),
        "model.embed_layer.gate_layer.weight": (width, model.patch_len),
        "model.norm.weight": (width,),
    }
    for layer in range(model.num_layers):
        at = f"model.layers.{layer}."
        for name in "qkv":
            shapes[f"{at}self_attn.{name}_proj.weight"] = (width, width)
            shapes[f"{at}self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{at}self_attn.o_proj.weight"] = (width, width)
        shapes[f"{at}input_layernorm.weight"] = (width,)
        shapes[f"{at}post_attention_layernorm.weight"] = (width,)
        shapes[f"{at}ffn_layer.gate.weight"] = (model.num_experts, width)
        shapes[f"{at}ffn_layer.shared_expert_gate.weight"] = (1, width)
        parts = [(f"experts.{expert}", narrow) for expert in range(model.num_experts)]
        for part, size in [*parts, ("shared_expert", wide)]:
            shapes[f"{at}ffn_layer.{part}.gate_proj.weight"] = (size, width)
            shapes[f"{at}ffn_layer.{part}.up_proj.weight"] = (size, width)
            shapes[f"{at}ffn_layer.{part}.down_proj.weight"] = (width, size)
    for index, horizon in enumerate(model.horizons):
        shapes[f"lm_heads.{index}.out_layer.weight"] = (horizon, width)
    return shapes


def find_files(folder: Path, model: ModelConfig) -> dict[str, Path]:
    """Return the file of each tensor, after checking every header against the architecture.

    Raises:
        ConfigError: no safetensors file, one with a header that lies, or other tensors than the
            architecture has; they are listed.
    """
    where: dict[str, Path] = {}
    found: dict[str, tuple[int, ...]] = {}
    for path in _list_weight_files(folder):
        for name, shape in _read_header(path).items():
            if name in where:
                raise ConfigError(f"{path}: tensor {name} is also in {where[name].name}")
            where[name], found[name] = path, shape
    _check_tensors(folder, found, list_tensor_shapes(model))
    return where


def _list_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: one, or the shards that its index names."""
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        names = shards.values() if isinstance(shards, dict) else ()
        files = sorted({str(name) for name in names})
        for name in files:
            if Path(name).name != name or not (folder / name).is_file():
                raise ConfigError(f"{index}: names {_show(name)}, which is no file beside it")
        if files:
            return [folder / name for name in files]
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise ConfigError(
            f"{folder}: {pickled[0]} is pickled, and loading a pickle can run anything; "
            f"expected {WEIGHTS}",
            next_command="where you trust its author: "
            "save_pretrained(DIR, safe_serialization=True) of the official class, then import DIR",
        )
    raise ConfigError(f"{folder}: no {WEIGHTS} in it")


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name to shape of the tensors of one file; the format checks its own offsets."""
    shapes = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                piece = file.get_slice(name)
                if piece.get_dtype() not in FLOATS:
                    raise ConfigError(
                        f"{path}: tensor {_show(name)} is {piece.get_dtype()}; "
                        f"expected one of {', '.join(FLOATS)}"
                    )
                shapes[name] = tuple(piece.get_shape())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is no whole safetensors file: {error}") from error
    return shapes


def _check_tensors(
    folder: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ConfigError that lists what is missing, what is not ours and what has another shape."""
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]
    extra = [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]
    other = [
        f"{name} {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    faults = [
        f"{len(names)} {what}: {_list(names)}"
        for what, names in (
            ("missing", missing),
            ("not of this architecture", extra),
            ("of another shape", other),
        )
        if names
    ]
    if faults:
        raise ConfigError(f"{folder}: tensors do not fit {CONFIG}; {'; '.join(faults)}")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return raw


def _list(names: Iterable[str]) -> str:
    """Return names for a message: the first few, and how many more there are."""
    listed = list(names)
    more = len(listed) - MAX_LISTED
    return ", ".join(listed[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
