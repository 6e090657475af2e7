"""tsx diagnose --checkpoint: the diary's frozen norms, other files, what is refused."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.sinks import ListSink
from tests.faults.embedded import make_config, write_series
from tests.faults.plants.embedded_training import bf16_model
from tsx.trainer.loop import train

pytestmark = pytest.mark.trainer

OFFICIAL = Path(__file__).resolve().parents[2] / "assets" / "official"
CHANGES = {
    "train__steps": 8,
    "train__checkpoint_every": 4,
    "optim__lr": 1e-3,
    "diagnostics__watch": False,
}


@pytest.fixture(scope="module")
def bf16_run(tmp_path_factory):
    """Train a few steps with parameters in bf16, as the diary did; return the run's folder."""
    folder = tmp_path_factory.mktemp("bf16")
    with bf16_model():
        train_into(folder)
    return folder


@pytest.fixture(scope="module")
def fp32_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp32")
    train_into(folder)
    return folder


def train_into(folder):
    config = make_config(write_series(folder), CHANGES)
    train(config, ListSink(), folder=folder, home=folder, stop=threading.Event())


def diagnose(tsx, *words):
    done = tsx("diagnose", "--checkpoint", *map(str, words), "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)


def list_kind(found, kind, mechanism=""):
    return [
        finding
        for finding in found["findings"]
        if finding["kind"] == kind and mechanism in ("", finding["evidence"].get("mechanism"))
    ]


def test_the_diary_s_norms_are_named_with_the_proof(tsx, bf16_run):
    found = diagnose(tsx, bf16_run)
    (norms,) = list_kind(found, "frozen-param", "update-underflow")
    assert norms["cause"].startswith("5 RMSNorm weights unchanged after 8 steps: bit for bit 1.0")
    assert "half an ulp" in norms["cause"]
    evidence = norms["evidence"]
    assert evidence["is_proved"]
    assert evidence["adam_step"] < evidence["half_ulp"]
    assert evidence["half_ulp"] in (0.001953, 0.003906)  # of bf16 at 1.0, below it and above
    assert evidence["names"][0] == "blocks.0.attention_norm.weight"
    (row,) = [row for row in found["classes"] if row["name"] == "RMSNorm weights"]
    assert (row["tensors"], row["unchanged"], row["dtype"]) == (5, 5, "bfloat16")
    (moved,) = [row for row in found["classes"] if row["name"] == "attention o weights"]
    assert moved["unchanged"] == 0
    assert found["compared_with"].startswith("its initialisation")


def test_a_healthy_run_of_the_same_steps_is_silent(tsx, fp32_run):
    found = diagnose(tsx, fp32_run)
    assert found["findings"] == []
    assert found["step"] == 8
    assert all(row["changed_share"] > 0.9 for row in found["classes"])
    assert not found["remarks"]


def test_two_checkpoints_of_a_run(tsx, fp32_run):
    steps = fp32_run / "checkpoints"
    found = diagnose(tsx, steps / "step-00000008", steps / "step-00000004")
    assert (found["step"], found["findings"]) == (8, [])
    (same,) = diagnose(tsx, fp32_run, fp32_run)["findings"]
    assert (same["severity"], same["evidence"]["mechanism"]) == ("info", "all-frozen")


def test_a_run_of_the_registry_by_name_and_step(tsx, record, fp32_run):
    folder = record("a1b2c3d4", "mine", {"train/loss": [1.0]})
    shutil.copytree(fp32_run / "checkpoints", folder / "checkpoints")
    assert diagnose(tsx, "mine")["step"] == 8
    assert diagnose(tsx, "mine@4")["step"] == 4
    assert diagnose(tsx, "@last@4")["step"] == 4
    missing = tsx("diagnose", "--checkpoint", "mine@5")
    assert missing.status == 2
    assert "there are: 4, 8" in missing.err


def test_a_run_without_checkpoints_says_how_to_get_some(tsx, record):
    record("a1b2c3d4", "bare", {"train/loss": [1.0]})
    done = tsx("diagnose", "--checkpoint", "bare")
    assert (done.status, done.out) == (1, "")
    assert "no checkpoint in" in done.err
    assert "train.checkpoint_every" in done.err


def test_a_person_reads_a_table_and_what_to_do(tsx, bf16_run):
    done = tsx("diagnose", "--checkpoint", str(bf16_run))
    assert done.status == 0
    assert "RMSNorm weights" in done.out
    assert "5 RMSNorm weights unchanged after 8 steps" in done.out
    assert "→ keep parameters in fp32" in " ".join(done.out.split())


def test_official_weights_have_no_initialisation_to_compare_with(tsx):
    found = diagnose(tsx, OFFICIAL)
    assert found["compared_with"] is None
    assert "no initialisation" in found["remarks"][0]
    names = {row["name"] for row in found["classes"]}
    assert {"RMSNorm weights", "router weights", "routed expert weights", "head weights"} <= names
    assert all(row["unchanged"] is None for row in found["classes"])


def test_plain_files_of_another_model(tsx, tmp_path):
    torch.manual_seed(0)
    before = {f"layers.{n}.mlp.weight": torch.randn(8, 8) / 3 for n in range(2)}
    before |= {f"layers.{n}.seq_norm.weight": torch.ones(8) for n in range(2)}
    after = {name: t + 0.01 for name, t in before.items() if "mlp" in name}
    after |= {name: t.clone() for name, t in before.items() if "norm" in name}
    after["layers.1.mlp.weight"] = before["layers.1.mlp.weight"] * 5
    after["extra.weight"] = torch.zeros(3, 3)
    for name, tensors in (("a", before), ("b", after)):
        save_file({n: t.bfloat16() for n, t in tensors.items()}, tmp_path / f"{name}.safetensors")
    found = diagnose(tsx, tmp_path / "b.safetensors", tmp_path / "a.safetensors")
    (norms,) = list_kind(found, "frozen-param", "update-underflow")
    assert norms["cause"].startswith("2 RMSNorm weights unchanged: bit for bit 1.0")
    assert norms["evidence"]["is_proved"] is False
    (wild,) = list_kind(found, "update-ratio")
    assert wild["module"] == "layers.1.mlp.weight"
    assert wild["evidence"]["growth"] == pytest.approx(5.0, rel=0.01)
    assert "400 %" in wild["cause"]
    assert list_kind(found, "init-scale", "all-zero")[0]["module"] == "extra.weight"
    assert found["remarks"] == [f"1 tensors are only in {tmp_path / 'b.safetensors'}: extra.weight"]


def test_numbers_that_are_not_finite(tsx, tmp_path, fp32_run):
    tensors = load_file(fp32_run / "checkpoints" / "step-00000008" / "model.safetensors")
    tensors["norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "bad.safetensors")
    found = diagnose(tsx, tmp_path / "bad.safetensors")
    (bad,) = list_kind(found, "non-finite")
    assert (bad["severity"], bad["module"]) == ("error", "norm.weight")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.pt", b"\x80\x04", "pickled weights are not read"),
        ("x.safetensors", b"\xff" * 40, "cannot be read"),
        ("\x1b[2J.safetensors", b"", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused(tsx, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    done = tsx("diagnose", "--checkpoint", str(path))
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert "\x1b" not in done.err


def test_a_checkpoint_that_was_tampered_with_is_refused(tsx, tmp_path, fp32_run):
    folder = tmp_path / "run"
    shutil.copytree(fp32_run / "checkpoints", folder / "checkpoints")
    path = folder / "checkpoints" / "step-00000008" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = tsx("diagnose", "--checkpoint", str(path.parent))
    assert done.status == 1
    assert "changed after it was written" in done.err


def test_two_models_that_share_nothing_and_two_runs_without_the_flag(tsx, tmp_path, fp32_run):
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    done = tsx("diagnose", "--checkpoint", str(fp32_run), str(tmp_path / "x.safetensors"))
    assert done.status == 2
    assert "no tensor of one name" in done.err
    plain = tsx("diagnose", "one", "two")
    assert plain.status == 2
    assert "--checkpoint A B" in plain.err
    assert tsx("diagnose", "--checkpoint", "nobody").status == 1
