"""Runs that start from official weights, and runs of no steps at all."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.events import RunPrepared, Severity, Status
from tsx.errors import ConfigError
from tsx.model import official
from tsx.model.forecaster import build_forecaster
from tsx.model.weights import read_weights, write_weights
from tsx.trainer.checkpoint import CheckpointFolder
from tsx.trainer.loop import rehearse

pytestmark = pytest.mark.trainer

SAVING = {"train__checkpoint_every": 3, "eval__every": 3}
SCORED = {**SAVING, "train__steps": 0}


@pytest.fixture
def folder(lab):
    """Return official weights that no seed draws, for the lab's model."""
    model = lab.config().model
    drawn = build_forecaster(model, seed=77).state_dict()
    place = lab.root / "official"
    write_weights(place, {n: 3 * t for n, t in drawn.items()}, model, context_tokens=32)
    return place


def read_checkpoint(ran, step):
    return load_file(CheckpointFolder(ran.folder).get_path(step) / "model.safetensors")


def is_equal(one, two):
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


# no steps


def test_a_run_without_steps_is_scored_saved_and_completed(lab):
    ran = lab.run(data__ood_path=str(lab.path_of_others()), **SCORED)
    assert (ran.outcome.status, ran.outcome.reason, ran.outcome.step) == (Status.COMPLETED, "", 0)
    assert ran.sink.curve("val/loss").keys() == ran.sink.curve("ood/loss").keys() == {0}
    assert ran.sink.curve("train/loss") == {}
    assert [artifact.step for artifact in ran.sink.artifacts] == [0]
    assert ran.sink.prepared.expected_s == 0
    assert [f for f in ran.sink.findings if "interval" in f.cause or "step" in f.cause] == []


def test_a_run_without_steps_may_save_nothing(lab):
    ran = lab.run(train__steps=0, eval__every=3)
    assert ran.outcome.status is Status.COMPLETED
    assert ran.sink.artifacts == []
    assert ran.sink.curve("val/loss").keys() == {0}


def test_a_run_without_steps_that_is_asked_to_stop_is_not_completed(lab):
    ran = lab.run(stop=lab.stop_after(0), **SCORED)
    assert (ran.outcome.status, ran.outcome.reason) == (Status.INTERRUPTED, "SIGTERM at step 0")
    assert ran.sink.curve("val/loss") == {}
    again = lab.run(resume=True, **SCORED)
    assert again.outcome.status is Status.COMPLETED
    assert again.sink.curve("val/loss").keys() == {0}


def test_a_run_without_steps_can_be_rehearsed(lab):
    sink = lab.sink()
    rehearse(lab.config(**SCORED), sink, home=lab.root / "home")
    assert sink.prepared.warmup_steps == 0
    assert sink.findings == []


@pytest.mark.parametrize("start", ["drawn", "official"])
def test_trained_further_it_equals_a_run_of_that_length(lab, folder, start):
    origin = {} if start == "drawn" else {"train__init_from": str(folder)}
    longer = {**SAVING, **origin, "train__steps": 6}
    whole = lab.run("whole", **longer)
    scored = lab.run("cut", **SCORED, **origin)
    assert scored.sink.curve("val/loss")[0] == whole.sink.curve("val/loss")[0]
    rest = lab.run("cut", resume=True, **longer)
    for key in ("train/loss", "train/grad_norm", "train/lr", "val/loss"):
        expected = {s: v for s, v in whole.sink.curve(key).items() if s > 0}
        assert rest.sink.curve(key) == expected, key
    assert is_equal(read_checkpoint(rest, 6), read_checkpoint(whole, 6))


# official weights


def test_the_run_starts_from_the_weights_in_the_folder(lab, folder):
    ran = lab.run(train__init_from=str(folder), **SCORED)
    drawn = lab.run("drawn", **SCORED)
    saved = read_checkpoint(ran, 0)
    assert is_equal(saved, read_weights(folder, ran.config.model))
    assert not is_equal(saved, read_checkpoint(drawn, 0))
    assert ran.sink.curve("val/loss") != drawn.sink.curve("val/loss")


def test_where_they_came_from_is_recorded(lab, folder):
    sink = lab.run(train__init_from=str(folder), **SCORED).sink
    (finding,) = [found for found in sink.findings if found.kind == "weights"]
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    count = official.count_tensors(lab.config().model)
    assert finding.severity is Severity.INFO
    assert finding.where == str(folder)
    assert finding.evidence == {
        "folder": str(folder),
        "tensors": count,
        "sha256": {"model.safetensors": digest},
    }
    assert digest in finding.cause
    assert f"{count} tensors" in finding.cause
    kinds = [type(event) for event in sink.events]
    assert kinds.index(RunPrepared) < sink.events.index(finding)


def test_a_relative_folder_is_recorded_whole(lab, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    sink = lab.run(train__init_from="official", **SCORED).sink
    assert [f.where for f in sink.findings if f.kind == "weights"] == [str(folder)]


def test_a_resumed_run_does_not_need_the_folder(lab, folder):
    changes = {**SAVING, "train__init_from": str(folder)}
    whole = lab.run("whole", **changes)
    lab.run("cut", stop=lab.stop_after_step(3), **changes)
    shutil.rmtree(folder)
    rest = lab.run("cut", resume=True, **changes)
    assert is_equal(read_checkpoint(rest, 6), read_checkpoint(whole, 6))
    assert [found for found in rest.sink.findings if found.kind == "weights"] == []


@pytest.mark.parametrize("other", ["/nowhere", None])
def test_a_resume_cannot_start_from_other_weights(lab, folder, other):
    lab.run(train__init_from=str(folder), **SCORED)
    with pytest.raises(ConfigError, match=r"train\.init_from"):
        lab.run(resume=True, **{**SCORED, "train__init_from": other})


def test_without_validation_series_there_is_still_a_checkpoint(lab, folder):
    ran = lab.run(train__init_from=str(folder), data__val_split=0.0, **SCORED)
    assert ran.outcome.status is Status.COMPLETED
    assert ran.sink.curve("val/loss") == {}
    state = CheckpointFolder(ran.folder).read_state(0)
    assert (state.best, state.val_pred) == (None, None)
    assert "eval.every" in [found.module for found in ran.sink.findings]


def test_bf16_weights_are_trained_in_fp32(lab, folder):
    path = folder / "model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(path).items()}, path)
    ran = lab.run(train__init_from=str(folder), **SAVING)
    assert ran.outcome.status is Status.COMPLETED
    assert {t.dtype for t in read_checkpoint(ran, 6).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model__num_layers": 3}, r"num_layers=3, there 2; 20 missing: model\.layers\.2\."),
        ({"model__hidden_size": 32}, r"hidden_size=32, there 16; .* of another shape: model\.emb"),
        ({"model__horizons": [1]}, r"1 not of this architecture: 'lm_heads\.1\.out_layer\.weight'"),
        ({"model__num_heads": 4}, "num_heads=4, there 2"),
        ({"model__patch_len": 2}, "patch_len=2, there 1"),
    ],
)
def test_weights_of_another_model_are_refused(lab, folder, change, said):
    sink = lab.sink()
    with pytest.raises(ConfigError, match=said):
        lab.run(sink=sink, train__init_from=str(folder), **SCORED, **change)
    assert sink.events == []


def test_training_settings_may_be_others(lab, folder):
    changes = {"model__aux_loss_weight": 0.5, "model__aux_reduction": "concatenated"}
    assert lab.run(train__init_from=str(folder), **SCORED, **changes).sink.prepared


def test_a_dry_run_refuses_what_a_run_would(lab, folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="model_type='llama'"):
        rehearse(lab.config(train__init_from=str(folder)), lab.sink(), home=lab.root / "home")


def test_weights_that_are_not_finite_are_refused(lab, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][2] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"tensor model\.norm\.weight holds 1 number"):
        lab.run(train__init_from=str(folder), **SCORED)
