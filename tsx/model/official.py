"""The layout of official Time-MoE weights: `config.json` beside `model.safetensors`. No torch.

Owns what the two files say: the architecture in the official class's words, and the name and
shape of every tensor. Reads headers, never values; moving values is `tsx.model.weights`. Pickled
weights are refused: loading one runs whatever its author put in.

Source: the public repository Time-MoE/Time-MoE (TimeMoeConfig, TimeMoeForPrediction).

Letters: L layers, D hidden size, E experts, F width of the shared expert, X of a routed one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tsx.config import AuxReduction, ModelConfig, decode
from tsx.errors import ConfigError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPE, ARCHITECTURE = "time_moe", "TimeMoeForPrediction"
MAX_JSON_BYTES = 16 * 2**20  # an index of the largest model is under 2 MiB, its header smaller
MAX_TENSORS = 100_000  # the largest official model has 1,375
MAX_LISTED = 8  # tensors named in one message
MAX_SHOWN = 80  # characters of a name or value in a message
MAX_REASON = 300  # characters of what the safetensors library says
FLOATS = ("F64", "F32", "BF16", "F16")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
DOWNLOAD = "hf download Maple728/TimeMoE-50M --local-dir DIR, then tsx model import DIR"

_SHARD = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")  # no folder, nothing that a terminal acts on

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
    "apply_aux_loss": True,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}

# What a model computes from its weights; the other keys of [model] matter to training alone.
_ARCHITECTURE = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_experts",
    "top_k",
    "ff_width",
    "expert_width",
    "patch_len",
    "horizons",
    "rope_theta",
    "norm_eps",
)
_KEY_OF = {"ff_width": "d_ff", "expert_width": "d_expert"}  # where the value has a default


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
            "and has no patches; only a model of patch_len=1 can be exported",
            next_command="tsx run RECIPE --set model.patch_len=1 --set train.checkpoint_every=N",
        )
    if model.expert_width != model.ff_width // model.top_k:
        raise ConfigError(
            f"[model] d_expert={model.expert_width}: the official Time-MoE class has no such key "
            f"and takes d_ff / top_k = {model.ff_width // model.top_k}",
            next_command="tsx run RECIPE without model.d_expert",
        )
    config: dict[str, Any] = {"architectures": [ARCHITECTURE], **_ONLY}
    config |= {official: getattr(model, ours) for official, ours in _SAME.items()}
    return config | {
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
    missing = [key for key in (*_REQUIRED, "horizon_lengths") if raw.get(key) is None]
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
    decoded = decode({"model": model}, place=place).model
    _check_count(decoded, place)
    return decoded


def read_config(folder: Path) -> ModelConfig:
    """Return the architecture that `folder/config.json` describes.

    Raises:
        ConfigError: no such file, no JSON, or not one of ours (`decode_config`).
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; expected one with {CONFIG} and {WEIGHTS}",
            next_command=DOWNLOAD,
        )
    return decode_config(_read_json(folder / CONFIG), place=str(folder / CONFIG))


def list_differences(model: ModelConfig, other: ModelConfig) -> list[tuple[str, Any, Any]]:
    """Return key, value and other value where two models compute different things.

    Keys that matter to training alone (`aux_loss_weight`, `huber_delta`, ...) may differ.
    """
    pairs = ((key, getattr(model, key), getattr(other, key)) for key in _ARCHITECTURE)
    return [(_KEY_OF.get(key, key), one, two) for key, one, two in pairs if one != two]


def count_tensors(model: ModelConfig) -> int:
    """Return the number of tensors of a model under the official names."""
    return 3 + model.num_layers * (11 + 3 * (model.num_experts + 1)) + len(model.horizons)


def list_tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return official name to shape of every tensor of a model.

    Raises:
        ConfigError: more tensors than any model has.
    """
    _check_count(model, "[model]")
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
    """Return the file of each tensor, after checking config.json and every header.

    Raises:
        ConfigError: what `read_config` refuses; a model that computes something else than
            `model`; no safetensors file, or one with a header that lies; other tensors than the
            architecture has. Keys and tensors are listed.
    """
    expected = list_tensor_shapes(model)
    theirs = read_config(folder)
    if differences := list_differences(model, theirs):
        faults = [f"{key}={_show(one)}, there {_show(two)}" for key, one, two in differences]
        faults += _list_faults(list_tensor_shapes(theirs), expected)
        raise ConfigError(
            f"[model] is not the model in {folder / CONFIG}: {'; '.join(faults)}",
            next_command=f"tsx model import {shlex.quote(str(folder))}",
        )
    where: dict[str, Path] = {}
    found: dict[str, tuple[int, ...]] = {}
    for path in list_weight_files(folder):
        for name, shape in _read_header(path).items():
            if name in where:
                raise ConfigError(f"{path}: tensor {_show(name)} is also in {where[name].name}")
            where[name], found[name] = path, shape
    if faults := _list_faults(found, expected):
        raise ConfigError(f"{folder}: its tensors do not fit the model: {'; '.join(faults)}")
    return where


def hash_files(folder: Path) -> dict[str, str]:
    """Return name to SHA-256 of each safetensors file of a folder.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    digests = {}
    for path in list_weight_files(folder):
        try:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return digests


def list_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: one, or the shards that its index names."""
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        names = shards.values() if isinstance(shards, dict) else ()
        files = sorted({str(name) for name in names})
        for name in files:
            if not _SHARD.fullmatch(name) or not (folder / name).is_file():
                raise ConfigError(
                    f"{index}: names {_show(name)}, which is no safetensors file beside it"
                )
        if not files:
            raise ConfigError(f"{index}: its weight_map names no file")
        return [folder / name for name in files]
    try:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error
    if pickled:
        raise ConfigError(
            f"{folder}: {_show(pickled[0])} is pickled, and loading a pickle can run anything; "
            f"expected {WEIGHTS}",
            next_command="load it where you trust its author, with the official class, and "
            "save_pretrained(DIR, safe_serialization=True); then tsx model import DIR",
        )
    raise ConfigError(f"{folder}: no {WEIGHTS} in it", next_command=DOWNLOAD)


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name to shape of the tensors of one file.

    The safetensors library checks that the header's offsets neither overlap nor leave the file;
    here its length is bounded before anything is read of it.
    """
    shapes = {}
    try:
        with path.open("rb") as head:
            length = int.from_bytes(head.read(8), "little")
        if length > MAX_JSON_BYTES:
            raise ConfigError(
                f"{path} is no safetensors file: it claims a header of {length:,} bytes; "
                f"at most {MAX_JSON_BYTES:,} are read"
            )
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
        reason = " ".join(str(error).split())  # it may quote the header, line breaks and all
        raise ConfigError(f"{path} is no whole safetensors file: {reason[:MAX_REASON]}") from error
    return shapes


def _check_count(model: ModelConfig, place: str) -> None:
    """Raise ConfigError for more tensors than any model has: their names would fill the memory."""
    if count_tensors(model) > MAX_TENSORS:
        raise ConfigError(
            f"{place} num_layers={model.num_layers}, num_experts={model.num_experts}, "
            f"{len(model.horizons)} horizons: {count_tensors(model):,} tensors; "
            f"at most {MAX_TENSORS:,} are read"
        )


def _list_faults(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return what is missing, what is of no use here and what has another shape."""
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]
    extra = [f"{_show(name)} {list(found[name])}" for name in found if name not in expected]
    other = [
        f"{name} {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return [
        f"{len(names)} {what}: {_list(names)}"
        for what, names in (
            ("missing", missing),
            ("not of this architecture", extra),
            ("of another shape", other),
        )
        if names
    ]


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ConfigError: no such file, too large for what it is, or something else than an object.
    """
    if not path.is_file():  # a pipe or a device would never end
        raise ConfigError(f"{path} is not there, or no file", next_command=DOWNLOAD)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes")
        raw = json.loads(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return raw


def _list(listed: list[str]) -> str:
    """Return names for a message: the first few, and how many more there are."""
    more = len(listed) - MAX_LISTED
    return ", ".join(listed[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _show(value: object) -> str:
    """Return a value's repr, cut to what fits in a message."""
    try:
        text = repr(value)
    except RecursionError:
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
