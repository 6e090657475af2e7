"""The official layout: what config.json and the headers of the tensors may say."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsx.config import AuxReduction, ModelConfig
from tsx.errors import ConfigError
from tsx.model import official
from tsx.model.size import count_params

pytestmark = pytest.mark.trainer

REAL = Path(__file__).resolve().parents[2] / "assets" / "official"
TEMPORARY = {"transformers_version", "max_position_embeddings"}  # of the file, not of the model


@pytest.fixture
def raw():
    """Return the config.json that the official class wrote."""
    return json.loads((REAL / "config.json").read_text())


@pytest.fixture
def folder(tmp_path, raw):
    """Return a folder of official weights that a test may spoil."""
    place = tmp_path / "weights"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(raw))
    (place / "model.safetensors").write_bytes((REAL / "model.safetensors").read_bytes())
    return place


def find(folder, model=None):
    return official.find_files(folder, model or official.read_config(folder))


def refusal(folder, model=None):
    with pytest.raises(ConfigError) as caught:
        find(folder, model)
    return caught.value


def write_header(path, header, *, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# config.json


def test_the_official_file_is_understood(raw):
    model = official.read_config(REAL)
    assert model.hidden_size == raw["hidden_size"]
    assert model.ff_width == raw["intermediate_size"]
    assert model.expert_width == raw["intermediate_size"] // raw["num_experts_per_tok"]
    assert list(model.horizons) == raw["horizon_lengths"]
    assert model.aux_reduction is AuxReduction.CONCATENATED
    assert model.patch_len == 1


def test_the_official_config_survives_a_round_trip(raw):
    model = official.decode_config(raw, place="here")
    again = official.encode_config(model, context_tokens=16)
    assert {k: v for k, v in raw.items() if k not in TEMPORARY} == {
        k: v for k, v in again.items() if k not in TEMPORARY
    }
    assert official.decode_config(again, place="here") == model


def test_one_horizon_may_be_a_number_and_defaults_may_be_left_out(raw):
    few = {key: raw[key] for key in ("model_type", "hidden_size", "num_hidden_layers")}
    few |= {key: raw[key] for key in ("num_attention_heads", "num_experts", "intermediate_size")}
    model = official.decode_config(
        few | {"num_experts_per_tok": 1, "horizon_lengths": 8, "rope_theta": 10000}, place="here"
    )
    assert model.horizons == (8,)
    assert (model.rope_theta, model.norm_eps) == (10000.0, 1e-6)


BAD_CONFIGS = [
    ({"model_type": "llama"}, "model_type='llama'; expected 'time_moe'"),
    ({"model_type": None}, "model_type=None; expected 'time_moe'"),
    ({"use_dense": True}, "use_dense=True; expected False"),
    ({"apply_aux_loss": False}, "apply_aux_loss=False; expected True"),
    ({"num_key_value_heads": 1}, "grouped-query attention"),
    ({"input_size": 2}, "input_size=2; expected 1"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'; expected 'silu'"),
    ({"attention_dropout": 0.1}, "attention_dropout=0.1; expected 0.0"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
    ({"intermediate_size": None}, "says nothing of intermediate_size"),
    ({"hidden_size": "16"}, "hidden_size='16'"),
    ({"hidden_size": True}, "hidden_size=True"),
    ({"hidden_size": -16}, "hidden_size=-16"),
    ({"hidden_size": 10**30}, "hidden_size=1000000000"),
    ({"num_experts_per_tok": 99}, "top_k=99 exceeds num_experts=4"),
    ({"num_attention_heads": 3, "num_key_value_heads": 3}, "is not divisible by num_heads=3"),
    ({"horizon_lengths": []}, "horizons=[]"),
    ({"horizon_lengths": [1, 1]}, "horizons=[1, 1]"),
    ({"horizon_lengths": {"a": 1}}, "horizons="),
    ({"rope_theta": float("nan")}, "expected a finite number"),
    ({"rms_norm_eps": float("inf")}, "expected a finite number"),
    ({"model_type": "\x1b[31mred\nnext: evil"}, r"model_type='\x1b[31mred\nnext: evil'"),
    ({"model_type": "x" * 10_000}, "xxx...; expected 'time_moe'"),
]


@pytest.mark.parametrize(("change", "said"), BAD_CONFIGS, ids=[said for _, said in BAD_CONFIGS])
def test_another_architecture_is_refused_by_key_and_value(folder, raw, change, said):
    (folder / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ConfigError) as caught:
        official.read_config(folder)
    assert said in caught.value.message
    assert str(folder / "config.json") in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"a": ' * 200_000]
)
def test_what_is_no_json_object_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        official.read_config(folder)


def test_a_huge_config_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(official, "MAX_JSON_BYTES", 100)
    with pytest.raises(ConfigError, match="larger than 100 bytes"):
        official.read_config(folder)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_config_json_must_be_a_file(folder, kind):
    path = folder / "config.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not there, or no file"):
        official.read_config(folder)


@pytest.mark.parametrize("name", ["nothing", "weights/model.safetensors"])
def test_what_is_no_folder_is_refused(folder, name):
    with pytest.raises(ConfigError, match="is not a folder") as caught:
        official.read_config(folder.parent / name)
    assert caught.value.next_command


def test_what_the_official_class_cannot_hold_is_not_encoded(tiny):
    with pytest.raises(ConfigError, match="patch_len=4"):
        official.encode_config(ModelConfig(patch_len=4), context_tokens=8)
    with pytest.raises(ConfigError, match=r"d_expert=7.*d_ff / top_k = 768"):
        official.encode_config(ModelConfig(d_expert=7), context_tokens=8)
    official.encode_config(ModelConfig(d_expert=768), context_tokens=8)


# names and shapes


@pytest.mark.parametrize("top_k", [1, 2])
def test_names_and_shapes_agree_with_the_counts(tiny, top_k):
    model = ModelConfig(**{**{f: getattr(tiny, f) for f in tiny.__struct_fields__}, "top_k": top_k})
    shapes = official.list_tensor_shapes(model)
    assert len(shapes) == official.count_tensors(model)
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert numbers == count_params(model).total


def test_the_official_file_has_these_names_and_shapes():
    tensors = load_file(REAL / "model.safetensors")
    model = official.read_config(REAL)
    assert {n: tuple(t.shape) for n, t in tensors.items()} == official.list_tensor_shapes(model)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_experts"])
def test_absurd_counts_are_refused_before_anything_is_listed(folder, raw, key):
    (folder / "config.json").write_text(json.dumps(raw | {key: 2**31 - 1}))
    assert "at most 100,000 are read" in refusal(folder).message


# the files


def test_every_tensor_is_found_in_the_one_file(folder):
    where = find(folder)
    assert set(where.values()) == {folder / "model.safetensors"}
    assert list(official.hash_files(folder)) == ["model.safetensors"]


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors in it" in refusal(folder).message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "\x1b[31m.pkl"])
def test_pickled_weights_are_refused_with_a_safe_way(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    error = refusal(folder)
    assert "is pickled, and loading a pickle can run anything" in error.message
    assert "\x1b" not in error.message
    assert "safe_serialization=True" in error.next_command


def test_a_pickle_under_the_right_name_is_no_safetensors(folder):
    torch.save({"a": torch.ones(2)}, folder / "model.safetensors")
    assert "no safetensors file" in refusal(folder).message


def test_missing_extra_and_misshapen_tensors_are_listed(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    gone = tensors.pop("model.norm.weight")
    tensors["model.layers.9.\x1b[31mevil"] = gone
    tensors["lm_heads.0.out_layer.weight"] = torch.zeros(2, 16)
    save_file(tensors, path)
    message = refusal(folder).message
    assert "1 missing: model.norm.weight [16]" in message
    assert r"1 not of this architecture: 'model.layers.9.\x1b[31mevil' [16]" in message
    assert "1 of another shape: lm_heads.0.out_layer.weight [2, 16], expected [1, 16]" in message


def test_a_long_list_is_cut_and_counted(folder):
    save_file({}, folder / "model.safetensors")
    count = official.count_tensors(official.read_config(folder))
    message = refusal(folder).message
    assert f"{count} missing: " in message
    assert f"and {count - official.MAX_LISTED} more" in message


def test_tensors_that_are_no_floats_are_refused(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(16, dtype=torch.int64)
    save_file(tensors, path)
    assert "'model.norm.weight' is I64; expected one of F64" in refusal(folder).message


@pytest.mark.parametrize(
    ("header", "data", "length", "said"),
    [
        ({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, b"\0" * 4, None, "invalid offset"),
        ({"a": tensor([2], 0, 8), "b": tensor([1], 4, 8)}, b"\0" * 8, None, "invalid offset"),
        ({"a": tensor([1], 4, 0)}, b"\0" * 4, None, "invalid offset"),
        ({"a": tensor([1], 0, 4)}, b"", None, "not fully covered"),
        ({"a": tensor([2**40, 2**40], 0, 4)}, b"\0" * 4, None, "overflow"),
        ({"a": tensor([2**20], 0, 4)}, b"\0" * 4, None, "invalid shape"),
        ({"a": tensor([1], 0, 4, "\x1b[31mX\nnext: evil")}, b"\0" * 4, None, "X next: evil"),
        (b"{}", b"", 2**62, "claims a header of 4,611,686,018,427,387,904 bytes"),
        (b"{}", b"", 2**24 + 1, "claims a header of 16,777,217 bytes"),
        (b"{}", b"", 1000, "invalid header length"),
        (b"[" * 100_000, b"", None, "invalid JSON"),
        (b"\xff\xfe", b"", None, "invalid UTF-8"),
    ],
)
def test_a_header_that_lies_is_refused(folder, header, data, length, said):
    write_header(folder / "model.safetensors", header, data=data, length=length)
    message = refusal(folder).message
    assert said in message
    assert "\n" not in message
    assert str(folder / "model.safetensors") in message


def test_an_empty_or_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "no whole safetensors file" in refusal(folder).message
    path.write_bytes(b"")
    assert "no whole safetensors file" in refusal(folder).message


# another model than [model] says


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_layers": 3}, "num_layers=3, there 2"),
        ({"num_heads": 4}, "num_heads=4, there 2"),  # the same tensors, other numbers
        ({"top_k": 1}, "top_k=1, there 2"),
        ({"rope_theta": 500.0}, "rope_theta=500.0, there 10000.0"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05, there 1e-06"),
        ({"horizons": (1, 8, 4)}, "horizons=(1, 8, 4), there (1, 4, 8)"),
        ({"d_expert": 5}, "d_expert=5, there 12"),
        ({"patch_len": 2}, "patch_len=2, there 1"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(folder, change, said):
    model = official.read_config(folder)
    fields = {name: getattr(model, name) for name in model.__struct_fields__}
    error = refusal(folder, ModelConfig(**fields | change))
    assert said in error.message
    assert ("missing" in error.message) is ("num_layers" in change)
    assert error.next_command == f"tsx model import {folder}"


def test_what_matters_to_training_alone_may_differ(folder):
    model = official.read_config(folder)
    fields = {name: getattr(model, name) for name in model.__struct_fields__}
    changes = {"aux_loss_weight": 0.5, "aux_reduction": AuxReduction.PER_LAYER, "huber_delta": 1.0}
    assert find(folder, ModelConfig(**fields | changes | {"init_std": 0.5}))


# shards


@pytest.fixture
def shards(folder):
    """Return the folder with its tensors in two shards and an index."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map):
    (folder / official.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_found(shards):
    where = find(shards)
    assert {path.name for path in where.values()} == set(official.hash_files(shards))
    assert len(official.hash_files(shards)) == 2


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/inside.safetensors",
        "..",
        "",
        "gone.safetensors",
        "config.json",
        "model\n.safetensors",
        "a\0.safetensors",
        17,
    ],
)
def test_an_index_that_names_anything_else_is_refused(shards, name):
    (shards.parent / "outside.safetensors").write_bytes(b"secret")
    (shards / "sub").mkdir()
    (shards / "sub" / "inside.safetensors").write_bytes(b"")
    (shards / "model\n.safetensors").write_bytes(b"")
    write_index(shards, {"model.norm.weight": name})
    message = refusal(shards).message
    assert f"names {str(name)!r}, which is no safetensors file beside it" in message


@pytest.mark.parametrize("weight_map", [{}, [], None, "x"])
def test_an_index_without_files_is_refused(shards, weight_map):
    write_index(shards, weight_map)
    assert "names no file" in refusal(shards).message


def test_a_tensor_in_two_shards_is_refused(shards):
    first, second = sorted(official.hash_files(shards))
    save_file(load_file(shards / second) | load_file(shards / first), shards / second)
    assert f"is also in {first}" in refusal(shards).message


def test_a_shard_that_is_gone_from_the_index_leaves_tensors_missing(shards):
    first = min(official.hash_files(shards))
    write_index(shards, {"model.norm.weight": first})
    assert " missing: " in refusal(shards).message
