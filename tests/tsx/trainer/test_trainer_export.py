"""Which of a run's checkpoints is exported, and what is refused."""

from __future__ import annotations

import msgspec
import pytest
from safetensors.torch import load_file

from tsx.errors import ConfigError, TsxError
from tsx.model import official
from tsx.model.size import count_params
from tsx.model.weights import read_weights
from tsx.trainer.checkpoint import CheckpointFolder
from tsx.trainer.export import export_weights

pytestmark = pytest.mark.trainer

SAVING = {"train__steps": 4, "train__checkpoint_every": 2, "eval__every": 2}


@pytest.fixture
def ran(lab):
    """Train a run that leaves the checkpoints of steps 2 and 4."""
    return lab.run(**SAVING)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out"


def is_of_step(target, ran, step):
    saved = load_file(CheckpointFolder(ran.folder).get_path(step) / "model.safetensors")
    state = read_weights(target, official.read_config(target))
    return state.keys() == saved.keys() and all(state[n].equal(saved[n]) for n in saved)


def set_best(ran, best):
    """Make another step the best in the last checkpoint's state."""
    folder = CheckpointFolder(ran.folder)
    path = folder.get_path(4) / "state.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"best": best}))


def damage(ran, step):
    path = CheckpointFolder(ran.folder).get_path(step) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_the_last_checkpoint_is_the_default(ran, target):
    done = export_weights(ran.folder, target)
    assert done.step == 4
    assert is_of_step(target, ran, 4)
    assert not is_of_step(target, ran, 2)
    assert done.tensors == official.count_tensors(ran.config.model)
    assert done.parameters == count_params(ran.config.model).total
    assert done.size_bytes == sum(path.stat().st_size for path in target.iterdir())
    assert done.damaged == ()


@pytest.mark.parametrize("which", ["2", "best"])
def test_another_one_can_be_asked_for(ran, target, which):
    set_best(ran, {"step": 2, "val_pred": 0.1})
    assert export_weights(ran.folder, target, which=which).step == 2
    assert is_of_step(target, ran, 2)


def test_a_damaged_last_one_is_passed_over_and_said(ran, target):
    damage(ran, 4)
    done = export_weights(ran.folder, target)
    assert done.step == 2
    assert "step-00000004" in done.damaged[0]
    assert is_of_step(target, ran, 2)


def test_the_one_asked_for_is_never_replaced_by_another(ran, target):
    damage(ran, 4)
    with pytest.raises(TsxError, match="step-00000004"):
        export_weights(ran.folder, target, which="4")
    assert not target.exists()


def test_no_whole_checkpoint(ran, target):
    damage(ran, 2)
    damage(ran, 4)
    with pytest.raises(TsxError, match="no whole checkpoint") as caught:
        export_weights(ran.folder, target)
    assert "step-00000002" in caught.value.message
    assert "step-00000004" in caught.value.message
    assert caught.value.next_command
    assert not target.exists()


def test_no_checkpoint_at_all(lab, target):
    ran = lab.run(train__steps=1)
    with pytest.raises(TsxError, match="no checkpoint in") as caught:
        export_weights(ran.folder, target)
    assert "train.checkpoint_every=N" in caught.value.next_command


@pytest.mark.parametrize(
    ("which", "said"),
    [("3", "there are: 2, 4"), ("first", "expected last, best or a step"), ("-1", "expected last")],
)
def test_a_checkpoint_that_is_not_there(ran, target, which, said):
    with pytest.raises(ConfigError, match=said):
        export_weights(ran.folder, target, which=which)
    assert not target.exists()


def test_a_run_that_was_never_evaluated_has_no_best(lab, target):
    ran = lab.run(**{**SAVING, "eval__every": 0})
    with pytest.raises(ConfigError, match="none is the best") as caught:
        export_weights(ran.folder, target, which="best")
    assert caught.value.next_command == "--checkpoint last"


@pytest.mark.parametrize(
    ("change", "said"), [({"patch_len": 2}, "patch_len=2"), ({"d_expert": 8}, "d_expert=8")]
)
def test_what_the_official_class_cannot_hold(lab, target, change, said):
    ran = lab.run(**SAVING, **{f"model__{key}": value for key, value in change.items()})
    with pytest.raises(ConfigError, match=said):
        export_weights(ran.folder, target)
    assert not target.exists()


def test_a_state_that_says_another_model_is_refused(ran, target):
    path = CheckpointFolder(ran.folder).get_path(4) / "state.json"
    state = msgspec.json.decode(path.read_bytes())
    state["config"]["model"]["num_layers"] = 3
    path.write_bytes(msgspec.json.encode(state))
    with pytest.raises(TsxError, match="tensors are missing"):
        export_weights(ran.folder, target)
    state["config"]["model"]["num_layers"] = 2**31 - 1
    path.write_bytes(msgspec.json.encode(state))
    with pytest.raises(ConfigError, match="at most 100,000"):
        export_weights(ran.folder, target)
