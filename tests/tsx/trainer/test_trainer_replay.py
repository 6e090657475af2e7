"""The step that was not finite, run again from what was kept of it."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from registry.sinks import ListSink
from tests.faults import plant as plants
from tests.faults.embedded import train_planted
from tsx.data.stream import BatchStream
from tsx.data.windows import Batch
from tsx.diagnostics.nonfinite.dump import WEIGHTS
from tsx.errors import ConfigError
from tsx.trainer.replaying import get_dump, replay_step

pytestmark = pytest.mark.trainer
NAMES = ("tsx-half-router", "tsx-bad-target", "tsx-norm-without-eps")


@pytest.fixture
def spoil(monkeypatch):
    """Put values into the training batch of some positions, the first being 0."""

    def plant(value, *positions):
        next_batch = BatchStream.next_batch

        def spoilt(self):
            position, batch = self.state_dict()["position"], next_batch(self)
            if position not in positions:
                return batch
            input_BC = batch.input_BC.copy()
            input_BC[0, 3] = value
            return Batch(input_BC, batch.target_BC, batch.target_mask_BC, batch.input_mask_BC)

        monkeypatch.setattr(BatchStream, "next_batch", spoilt)

    return plant


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_fault_shows_again_at_its_place(name, tmp_path):
    plant = next(plant for plant in plants.list_plants() if plant.name == name)
    sink = ListSink()
    outcome = train_planted(plant, tmp_path, sink)
    dump = get_dump(tmp_path)
    with plant.patch():
        found = replay_step(dump, {})
    assert (found.step, found.is_finite, found.is_same) == (outcome.step + 1, False, True)
    assert found.finding.evidence["mechanism"] == plant.mechanism
    assert found.finding.module == plant.module
    assert "()" not in found.finding.cause
    if name != "tsx-bad-target":  # a fault of the code: without it the step is finite
        assert replay_step(dump, {}).is_finite


def test_the_step_is_run_on_the_weights_before_it(lab, spoil):
    spoil(np.nan, 3)
    ran = lab.run(train__grad_accum_steps=2, train__checkpoint_every=1)
    assert ran.outcome.step == 1
    (kept,) = [file for file in ran.sink.artifacts if file.kind == "batch"]
    assert (kept.step, kept.path) == (2, "dumps/step-00000002")
    dump = get_dump(ran.folder)
    assert len(dump.args) == 2
    saved = ran.folder / "checkpoints/step-00000001/model.safetensors"
    assert os.path.samefile(saved, dump.path / WEIGHTS)  # not written twice
    assert not replay_step(dump, {}).is_finite


def test_one_step_is_kept_and_a_healthy_run_keeps_none(lab, spoil):
    assert not (lab.run("healthy").folder / "dumps").exists()
    spoil(np.nan, 1, 3)
    ran = lab.run("skips", diagnostics__on_nonfinite="skip")
    assert [file.step for file in ran.sink.artifacts] == [2]
    assert get_dump(ran.folder).facts.precision == "fp32"


def test_settings_ask_whether_it_still_happens(lab, spoil):
    spoil(3e38, 2)
    ran = lab.run(model__norm_eps=1e-6)
    assert ran.outcome.step == 2
    dump = get_dump(ran.folder)
    found = replay_step(dump, {"train.precision": "bf16", "train.device": "cpu"})
    assert found.changed == {"train.precision": ["fp32", "bf16"]}
    assert found.precision == ("fp32", "bf16")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.hidden_size": 32}, "with model.hidden_size: the weights of step 2 do not fit"),
        ({"model.num_layers": 1}, "has no place"),
        ({"optim.lr": 0.1}, "has no say"),
        ({"train.batch_size": 2}, "has no say"),
        ({"model.init_std": 0.1}, "has no say"),
        ({"model.topk": 1}, "did you mean 'top_k'"),
        ({"train.precision": "fp8"}, "valid: auto, fp32, bf16"),
    ],
)
def test_a_setting_that_does_not_hold_is_refused(lab, spoil, changes, said):
    spoil(np.nan, 1)
    dump = get_dump(lab.run().folder)
    with pytest.raises(ConfigError, match=said):
        replay_step(dump, changes)


def test_a_disk_that_takes_nothing_costs_the_dump_alone(lab, spoil, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tsx.diagnostics.nonfinite.dump.save_file", refuse)
    spoil(np.nan, 1)
    ran = lab.run(diagnostics__on_nonfinite="skip")
    assert ran.outcome.step == 6
    assert "dump-unwritten" in [finding.kind for finding in ran.sink.findings]
    with pytest.raises(ConfigError, match="has kept no step"):
        get_dump(ran.folder)


def test_a_step_of_which_nothing_is_kept_is_named(lab, spoil):
    spoil(np.inf, 1)
    ran = lab.run()
    assert math.isinf(get_dump(ran.folder, 2).args[0]["input_BC"][0, 3])
    with pytest.raises(ConfigError, match="nothing of step 5; there is: 2"):
        get_dump(ran.folder, 5)
