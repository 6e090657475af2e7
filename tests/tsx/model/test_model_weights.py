"""Official weights in and out: the same bits, the same forecasts, nothing half written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsx.errors import ConfigError, TsxError
from tsx.model import official, weights
from tsx.model.forecaster import build_forecaster
from tsx.model.weights import (
    from_official,
    list_state_shapes,
    read_weights,
    to_official,
    write_weights,
)

pytestmark = pytest.mark.trainer

REAL = Path(__file__).resolve().parents[2] / "assets" / "official"


@pytest.fixture
def tiny_state(make_tiny):
    """Return a state dict in which no tensor is trivially 0 or 1."""
    generator = torch.Generator().manual_seed(5)
    state = make_tiny().state_dict()
    return {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in state.items()}


@pytest.fixture
def folder(tmp_path, tiny, tiny_state):
    """Return a folder of official weights that a test may spoil."""
    place = tmp_path / "weights"
    write_weights(place, tiny_state, tiny, context_tokens=32)
    return place


def spoil(folder, name, change):
    path = folder / official.WEIGHTS
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


def assert_equal(one, two):
    assert one.keys() == two.keys()
    assert [name for name in one if not one[name].equal(two[name])] == []


# names to names


def test_every_number_moves_and_comes_back(tiny, tiny_state):
    tensors = to_official(tiny_state, tiny)
    assert {n: tuple(t.shape) for n, t in tensors.items()} == official.list_tensor_shapes(tiny)
    back = from_official(tensors, tiny)
    assert_equal(back, tiny_state)
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for t in back.values())


def test_the_parts_go_where_their_names_say(tiny, tiny_state):
    """A loop over single linears, written from the equations."""
    tensors = to_official(tiny_state, tiny)
    at, ours = "model.layers.1.", "blocks.1."
    width, wide, narrow = tiny.hidden_size, tiny.ff_width, tiny.expert_width
    for place, name in enumerate("qkv"):
        rows = slice(place * width, (place + 1) * width)
        for kind in ("weight", "bias"):
            joined = tiny_state[f"{ours}attention.qkv.{kind}"]
            assert tensors[f"{at}self_attn.{name}_proj.{kind}"].equal(joined[rows])
    shared = tiny_state[f"{ours}moe.shared.gate_up.weight"]
    assert tensors[f"{at}ffn_layer.shared_expert.gate_proj.weight"].equal(shared[:wide])
    assert tensors[f"{at}ffn_layer.shared_expert.up_proj.weight"].equal(shared[wide:])
    for expert in range(tiny.num_experts):
        gate_up = tiny_state[f"{ours}moe.experts.gate_up_EYD"][expert]
        name = f"{at}ffn_layer.experts.{expert}."
        assert tensors[f"{name}gate_proj.weight"].equal(gate_up[:narrow])
        assert tensors[f"{name}up_proj.weight"].equal(gate_up[narrow:])


def test_the_shapes_of_the_state_are_known_without_a_model(tiny, make_tiny):
    state = make_tiny().state_dict()
    assert list_state_shapes(tiny) == {name: tuple(t.shape) for name, t in state.items()}


def test_a_missing_tensor_is_no_silent_default(tiny, tiny_state):
    tensors = to_official(tiny_state, tiny)
    del tensors["model.norm.weight"]
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        from_official(tensors, tiny)


# folder to folder


def test_the_official_file_comes_back_bit_for_bit(tmp_path):
    model = official.read_config(REAL)
    write_weights(tmp_path / "again", read_weights(REAL, model), model, context_tokens=16)
    assert_equal(
        load_file(tmp_path / "again" / official.WEIGHTS), load_file(REAL / official.WEIGHTS)
    )
    assert official.read_config(tmp_path / "again") == model


def test_what_was_written_forecasts_the_same(folder, tiny, tiny_state, series):
    ours, again = build_forecaster(tiny, seed=1), build_forecaster(tiny, seed=2)
    ours.load_state_dict(tiny_state)
    again.load_state_dict(read_weights(folder, official.read_config(folder)))
    assert_equal(again.state_dict(), ours.state_dict())
    for one, two in zip(
        ours(series(3, 20)).predictions, again(series(3, 20)).predictions, strict=True
    ):
        assert one.equal(two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_become_fp32(folder, tiny, tiny_state, dtype):
    path = folder / official.WEIGHTS
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    state = read_weights(folder, tiny)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert_equal(state, {name: tensor.to(dtype).float() for name, tensor in tiny_state.items()})


def test_shards_are_read_as_one(folder, tiny, tiny_state):
    tensors = load_file(folder / official.WEIGHTS)
    (folder / official.WEIGHTS).unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / official.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(read_weights(folder, tiny), tiny_state)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("-inf"), torch.float32),
        (1e300, torch.float64),  # finite there, not in fp32
    ],
)
def test_numbers_that_are_not_finite_are_refused(folder, tiny, value, dtype):
    name = "model.layers.1.ffn_layer.experts.3.up_proj.weight"

    def change(tensor):
        tensor = tensor.to(dtype)
        tensor[0, :2] = value
        return tensor

    spoil(folder, name, change)
    with pytest.raises(ConfigError, match=f"tensor {name} holds 2 numbers that are not finite"):
        read_weights(folder, tiny)


def test_a_folder_of_another_model_is_refused(folder, make_tiny):
    with pytest.raises(ConfigError, match="num_layers=1, there 2"):
        read_weights(folder, make_tiny(num_layers=1).config)


# what is written


def test_the_folder_holds_two_files_that_others_may_read(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}
    assert {t.dtype for t in load_file(folder / official.WEIGHTS).values()} == {torch.float32}


def test_an_empty_folder_is_filled(tmp_path, tiny, tiny_state):
    inode = tmp_path.stat().st_ino
    write_weights(tmp_path, tiny_state, tiny, context_tokens=32)
    assert tmp_path.stat().st_ino == inode  # a shell may stand in it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_folders_above_are_made(tmp_path, tiny, tiny_state):
    write_weights(tmp_path / "a" / "b", tiny_state, tiny, context_tokens=32)
    assert_equal(read_weights(tmp_path / "a" / "b", tiny), tiny_state)


@pytest.mark.parametrize("kind", ["file", "full"])
def test_what_is_there_is_never_touched(tmp_path, tiny, tiny_state, kind):
    place = tmp_path / "mine"
    note = place
    if kind == "full":
        place.mkdir()
        note = place / "note"
    note.write_text("mine")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        write_weights(place, tiny_state, tiny, context_tokens=32)
    assert note.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [note]


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing_behind(tmp_path, tiny, tiny_state, monkeypatch, exists):
    place = tmp_path / "out"
    if exists:
        place.mkdir()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(TsxError, match="No space left") as caught:
        write_weights(place, tiny_state, tiny, context_tokens=32)
    assert str(place) in caught.value.message
    assert list(tmp_path.rglob("*")) == ([place] if exists else [])


def test_weights_that_are_not_finite_are_not_written(tmp_path, tiny, tiny_state):
    tiny_state["norm.weight"][3] = float("nan")
    with pytest.raises(ConfigError, match=r"model\.norm\.weight holds 1 number"):
        write_weights(tmp_path / "out", tiny_state, tiny, context_tokens=32)
    assert not (tmp_path / "out").exists()


def test_a_patch_model_is_not_written(tmp_path, make_tiny):
    model = make_tiny(patch_len=4)
    with pytest.raises(ConfigError, match="patch_len=4"):
        write_weights(tmp_path / "out", model.state_dict(), model.config, context_tokens=32)
    assert not (tmp_path / "out").exists()
