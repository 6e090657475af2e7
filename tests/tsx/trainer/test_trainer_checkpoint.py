from __future__ import annotations

import errno
import os
import shutil

import msgspec
import pytest
import torch

from registry.events import Status
from tsx.trainer import checkpoint
from tsx.trainer.checkpoint import (
    MODEL,
    OPTIMIZER,
    CheckpointDamagedError,
    CheckpointFolder,
    CheckpointState,
    CheckpointUnwrittenError,
)

pytestmark = pytest.mark.trainer

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
MOMENTS = {"step.b": torch.tensor(3.0), "exp_avg.b": torch.zeros(4)}


def make_state(step, **changes):
    fields = {
        "step": step,
        "config": {"train": {"steps": 9}},
        "fingerprint": "f",
        "data_source": "demo",
        "data_fingerprint": "d",
        "stream": {"position": step},
        "rng": {},
        "lr": 0.5,
    }
    return CheckpointState(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path)


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_round_trip(folder):
    size = folder.write(make_state(50), WEIGHTS, MOMENTS)
    assert folder.get_relative_path(50) == "checkpoints/step-00000050"
    files = {path.name: path.stat().st_size for path in folder.get_path(50).iterdir()}
    assert files.keys() == {MODEL, OPTIMIZER, "state.json"}
    assert size == sum(files.values())
    state = folder.read_state(50)
    assert (state.step, state.stream, state.lr) == (50, {"position": 50}, 0.5)
    for name, tensors in ((MODEL, WEIGHTS), (OPTIMIZER, MOMENTS)):
        found = folder.read_tensors(50, name, shapes(tensors))
        assert all(found[key].equal(tensors[key]) for key in tensors)


def test_state_is_strict_json_and_nothing_is_pickled(folder):
    folder.write(make_state(1), WEIGHTS, MOMENTS)
    content = (folder.get_path(1) / "state.json").read_bytes()
    assert msgspec.json.decode(content, type=CheckpointState) == folder.read_state(1)
    for path in folder.get_path(1).iterdir():
        assert b"\x80\x04" not in path.read_bytes()[:2]  # a pickle's first bytes
        assert not path.read_bytes().startswith(b"PK")  # a torch.save archive's


def test_non_contiguous_tensors_are_written(folder):
    folder.write(make_state(1), {"a": WEIGHTS["a.weight"].T}, {})
    assert folder.read_tensors(1, MODEL, {"a": (3, 2)})["a"].equal(WEIGHTS["a.weight"].T)


def test_steps_are_listed_in_order_and_strangers_left_out(folder):
    assert folder.list_steps() == []
    for step in (100, 9, 123456789):
        folder.write(make_state(step), WEIGHTS, MOMENTS)
    (folder.path / "step-abc").mkdir()
    (folder.path / ".draft-00000007").mkdir()
    (folder.path / "step-00000008").write_text("a file")
    assert folder.list_steps() == [9, 100, 123456789]


def test_prune_keeps_what_it_is_told(folder):
    for step in (1, 2, 3):
        folder.write(make_state(step), WEIGHTS, MOMENTS)
    folder.prune({1, 3, 99})
    assert folder.list_steps() == [1, 3]


def test_a_kill_before_the_rename_leaves_the_older_one(folder, monkeypatch):
    folder.write(make_state(1), WEIGHTS, MOMENTS)

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    monkeypatch.setattr(checkpoint, "_publish", kill)
    with pytest.raises(Killed):
        folder.write(make_state(2), WEIGHTS, MOMENTS)
    assert folder.list_steps() == [1]
    assert (folder.path / ".draft-00000002" / MODEL).exists()  # what a killed process leaves
    monkeypatch.undo()
    folder.write(make_state(3), WEIGHTS, MOMENTS)
    assert folder.list_steps() == [1, 3]
    assert not list(folder.path.glob(".draft-*"))


def test_files_reach_the_disk_before_the_name(folder, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename

    def watch_fsync(descriptor):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "rename", lambda *a: (calls.append("rename"), rename(*a))[1])
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("no /proc")
    folder.write(make_state(2), WEIGHTS, MOMENTS)
    named = calls.index("rename")
    assert {MODEL, OPTIMIZER, "state.json", ".draft-00000002"} <= set(calls[:named])
    assert calls[named + 1 :] == ["checkpoints"]


def test_a_step_can_be_written_again(folder):
    folder.write(make_state(2), WEIGHTS, MOMENTS)
    folder.write(make_state(2, lr=0.25), WEIGHTS, MOMENTS)
    assert folder.read_state(2).lr == 0.25
    assert [path.name for path in folder.path.iterdir()] == ["step-00000002"]


def test_full_disk_leaves_no_trace(folder, monkeypatch):
    folder.write(make_state(1), WEIGHTS, MOMENTS)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointUnwrittenError, match="No space left"):
        folder.write(make_state(2), WEIGHTS, MOMENTS)
    assert [path.name for path in folder.path.iterdir()] == ["step-00000001"]
    monkeypatch.undo()
    assert folder.read_state(1).step == 1


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, "state.json"])
@pytest.mark.parametrize("harm", [truncate, os.remove, lambda path: path.write_bytes(b"")])
def test_damage_is_named_with_its_path(folder, name, harm):
    folder.write(make_state(4), WEIGHTS, MOMENTS)
    harm(folder.get_path(4) / name)
    with pytest.raises(CheckpointDamagedError, match=name):
        folder.read_state(4)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a_flipped_bit_is_found(folder, name):
    folder.write(make_state(4), WEIGHTS, MOMENTS)
    flip(folder.get_path(4) / name)
    with pytest.raises(CheckpointDamagedError, match="content changed"):
        folder.read_state(4)


@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"[1]",
        b"\xff\xfe",
        b'{"step": "four"}',
        b"[" * 100_000,
        b'{"step": 4, "config": {}, "fingerprint": "", "data_source": "", '
        b'"data_fingerprint": "", "stream": {}, "rng": {}, "lr": 0.1}',
    ],
)
def test_hostile_state_is_damage(folder, content):
    folder.write(make_state(4), WEIGHTS, MOMENTS)
    (folder.get_path(4) / "state.json").write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=r"state\.json"):
        folder.read_state(4)


def test_oversized_state_is_not_read(folder):
    folder.write(make_state(4), WEIGHTS, MOMENTS)
    os.truncate(folder.get_path(4) / "state.json", checkpoint.MAX_STATE_BYTES + 1)
    with pytest.raises(CheckpointDamagedError, match="larger than"):
        folder.read_state(4)


def test_newer_format_is_refused(folder):
    folder.write(make_state(4, format=2), WEIGHTS, MOMENTS)
    with pytest.raises(CheckpointDamagedError, match="format 2; this tsx reads 1"):
        folder.read_state(4)


def test_a_renamed_checkpoint_is_refused(folder):
    folder.write(make_state(4), WEIGHTS, MOMENTS)
    folder.get_path(4).rename(folder.get_path(8))
    with pytest.raises(CheckpointDamagedError, match="holds step 4, not 8"):
        folder.read_state(8)


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"a.weight": (2, 3)}, "1 are not this model's"),
        ({**shapes(WEIGHTS), "c": (1,)}, "1 tensors are missing"),
        ({**shapes(WEIGHTS), "b": (5,)}, "expected F32"),
    ],
)
def test_other_tensors_than_expected_are_damage(folder, expected, said):
    folder.write(make_state(4), WEIGHTS, MOMENTS)
    with pytest.raises(CheckpointDamagedError, match=said):
        folder.read_tensors(4, MODEL, expected)


def test_other_dtypes_are_damage(folder):
    folder.write(make_state(4), {"b": torch.ones(4, dtype=torch.float64)}, {})
    with pytest.raises(CheckpointDamagedError, match="F64"):
        folder.read_tensors(4, MODEL, {"b": (4,)})


def test_no_safetensors_is_damage(folder):
    folder.write(make_state(4), WEIGHTS, MOMENTS)
    (folder.get_path(4) / MODEL).write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointDamagedError, match=MODEL):
        folder.read_tensors(4, MODEL, shapes(WEIGHTS))


# --- in a run ---


def test_no_checkpoint_at_all_when_the_interval_is_zero(lab):
    ran = lab.run(eval__every=2)
    assert ran.sink.artifacts == []
    assert list(ran.folder.iterdir()) == []


def test_last_and_best_are_kept_and_announced(lab):
    ran = lab.run(train__steps=12, train__checkpoint_every=2, eval__every=4, optim__lr=0.3)
    val = ran.sink.curve("val/pred")
    artifacts = ran.sink.artifacts
    assert [a.step for a in artifacts] == [2, 4, 6, 8, 10, 12]
    best = 0
    for artifact in artifacts:
        is_best = not best or val[artifact.step] < val[best]
        best = artifact.step if is_best else best
        assert artifact.kind == "checkpoint"
        assert artifact.size_bytes > 10_000
        assert artifact.metadata["best"] is is_best
        assert artifact.metadata["val_pred"] == val[artifact.step]
    kept = CheckpointFolder(ran.folder).list_steps()
    assert {best, 12} <= set(kept)
    assert len(kept) == 2


def test_a_checkpoint_that_is_best_and_last_leaves_the_one_before(lab):
    ran = lab.run(train__steps=6, train__checkpoint_every=2)  # nothing evaluated: no best
    assert CheckpointFolder(ran.folder).list_steps() == [4, 6]
    assert all(a.metadata == {"best": False} for a in ran.sink.artifacts)


def test_full_disk_does_not_stop_training(lab, monkeypatch):
    write = CheckpointFolder.write

    def fail_once(self, state, *tensors):
        if state.step == 4:
            raise CheckpointUnwrittenError(f"{self.get_path(4)}: No space left on device")
        return write(self, state, *tensors)

    monkeypatch.setattr(CheckpointFolder, "write", fail_once)
    ran = lab.run(train__checkpoint_every=2, eval__every=2)
    assert ran.outcome.status is Status.COMPLETED
    assert [a.step for a in ran.sink.artifacts] == [2, 6]
    finding = next(f for f in ran.sink.findings if f.kind == "checkpoint-unwritten")
    assert finding.step == 4
    assert "No space left" in finding.evidence["error"]
    assert set(CheckpointFolder(ran.folder).list_steps()) == {2, 6}


def test_folder_that_vanishes_does_not_stop_training(lab):
    class Sink(type(lab.sink())):
        def emit(self, event):
            super().emit(event)
            if "train/loss" in getattr(event, "values", {}) and event.step == 3:
                shutil.rmtree(lab.root / "run")
                (lab.root / "run").write_text("a file now")

    ran = lab.run(sink=Sink(), train__checkpoint_every=2)
    assert ran.outcome.status is Status.COMPLETED
    assert [f.kind for f in ran.sink.findings if f.step] == ["checkpoint-unwritten"] * 2
