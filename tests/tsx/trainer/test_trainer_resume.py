from __future__ import annotations

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from registry.events import RunPrepared, Status
from tsx.errors import ConfigError
from tsx.trainer.checkpoint import CheckpointFolder

pytestmark = pytest.mark.trainer

SAVING = {"train__steps": 8, "train__checkpoint_every": 2, "eval__every": 2}


def assert_continues(whole, part, after: int):
    """Every curve of the resumed run is the uninterrupted one's from a step on, bit for bit."""
    for key in ("train/loss", "train/grad_norm", "train/lr", "val/loss"):
        expected = {s: v for s, v in whole.sink.curve(key).items() if s > after}
        assert part.sink.curve(key) == expected, key
    weights = [
        load_file(ran.folder / "checkpoints" / f"step-{ran.outcome.step:08d}" / "model.safetensors")
        for ran in (whole, part)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("accum", [1, 2])
def test_resume_equals_the_uninterrupted_run(lab, accum):
    changes = {**SAVING, "train__grad_accum_steps": accum}
    whole = lab.run("whole", **changes)
    cut = lab.run("cut", stop=lab.stop_after(10**9), **changes)
    assert cut.outcome.status is Status.COMPLETED
    interrupted = lab.run("stopped", stop=lab.stop_after_step(5), **changes)
    assert (interrupted.outcome.status, interrupted.outcome.step) == (Status.INTERRUPTED, 5)
    resumed = lab.run("stopped", resume=True, **changes)
    assert resumed.outcome == whole.outcome
    assert_continues(whole, resumed, after=5)


def test_resume_crosses_epochs(lab):
    changes = {**SAVING, "train__steps": 30, "train__checkpoint_every": 13}
    whole = lab.run("whole", **changes)
    lab.run("stopped", stop=lab.stop_after_step(17), **changes)
    assert_continues(whole, lab.run("stopped", resume=True, **changes), after=17)


def test_resume_with_more_steps_equals_a_run_of_that_length(lab):
    constant = {**SAVING, "optim__schedule": "constant", "optim__warmup_steps": 2}
    lab.run("short", **constant)
    longer = {**constant, "train__steps": 14}
    resumed = lab.run("short", resume=True, **longer)
    assert resumed.outcome.step == 14
    assert_continues(lab.run("whole", **longer), resumed, after=8)
    assert resumed.sink.resumed[0].steps == 14


def test_killed_run_resumes_from_its_last_interval(lab):
    whole = lab.run("whole", **SAVING)

    class Killed(BaseException):
        pass

    class Sink(type(lab.sink())):
        def emit(self, event):
            super().emit(event)
            if "train/loss" in getattr(event, "values", {}) and event.step == 7:
                raise Killed

    with pytest.raises(Killed):
        lab.run("killed", sink=Sink(), **SAVING)
    resumed = lab.run("killed", resume=True, **SAVING)
    assert resumed.sink.resumed[0].from_step == 6
    assert_continues(whole, resumed, after=6)


def test_resume_says_so_before_anything_else(lab):
    lab.run(stop=lab.stop_after_step(3), **SAVING)
    sink = lab.run(resume=True, **SAVING).sink
    assert [type(event).__name__ for event in sink.events[:2]] == ["RunResumed", "RunPrepared"]
    assert sink.resumed[0].from_step == 3
    assert sink.resumed[0].config["train"]["steps"] == 8
    assert not [f for f in sink.findings if f.kind == "resume-changes"]


def test_resume_of_a_finished_run_adds_nothing(lab):
    lab.run(**SAVING)
    again = lab.run(resume=True, **SAVING)
    assert (again.outcome.status, again.outcome.step) == (Status.COMPLETED, 8)
    assert again.sink.curve("train/loss") == {}
    assert again.sink.curve("val/loss") == {}
    assert again.sink.artifacts == []


def test_resume_keeps_the_best(lab):
    whole = lab.run("whole", **SAVING)
    lab.run("stopped", stop=lab.stop_after_step(5), **SAVING)
    resumed = lab.run("stopped", resume=True, **SAVING)
    best = [CheckpointFolder(ran.folder).read_state(8).best for ran in (whole, resumed)]
    assert best[0] == best[1]
    val = whole.sink.curve("val/pred")
    saved = {step: val[step] for step in (2, 4, 6, 8)}
    assert best[0].step == min(saved, key=saved.__getitem__)
    assert best[0].val_pred == min(saved.values())


def test_allowed_changes_are_said(lab):
    lab.run(stop=lab.stop_after_step(3), **SAVING)
    changes = {**SAVING, "train__steps": 9, "optim__lr": 1e-4, "train__log_every": 3}
    resumed = lab.run(resume=True, **changes)
    finding = next(f for f in resumed.sink.findings if f.kind == "resume-changes")
    assert finding.evidence == {
        "optim.lr": [1e-3, 1e-4],
        "train.log_every": [1, 3],
        "train.steps": [8, 9],
    }
    assert resumed.sink.curve("train/loss").keys() == {6, 9}


def test_moved_data_is_the_same_data(lab):
    first, second = lab.root / "first", lab.root / "second"
    (first / "waves").mkdir(parents=True)
    lab.path.rename(first / "waves" / lab.path.name)
    lab.run(stop=lab.stop_after_step(3), data__path=str(first), **SAVING)
    first.rename(second)
    resumed = lab.run(resume=True, data__path=str(second), **SAVING)
    assert resumed.outcome.status is Status.COMPLETED
    finding = next(f for f in resumed.sink.findings if f.kind == "resume-changes")
    assert finding.evidence == {"data.path": [str(first), str(second)]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model__num_experts": 4}, "model.num_experts: 2 -> 4"),
        ({"model__horizons": [1, 4]}, "model.horizons: [1, 8] -> [1, 4]"),
        ({"train__seed": 5}, "train.seed: 0 -> 5"),
        ({"train__batch_size": 2}, "train.batch_size: 4 -> 2"),
        ({"train__grad_accum_steps": 2}, "train.grad_accum_steps: 1 -> 2"),
        ({"train__fixed_batches": 1}, "train.fixed_batches: 0 -> 1"),
        ({"data__stride": 8}, "data.stride: 16 -> 8"),
        ({"train__steps": 1}, "already at step 3"),
    ],
)
def test_resume_refuses_another_run(lab, change, said):
    lab.run(stop=lab.stop_after_step(3), **SAVING)
    sink = lab.sink()
    with pytest.raises(ConfigError) as caught:
        lab.run(resume=True, sink=sink, **{**SAVING, **change})
    assert said in caught.value.message
    assert sink.events == []


def test_resume_refuses_other_data_and_names_every_difference(lab):
    lab.run(stop=lab.stop_after_step(3), **SAVING)
    others = str(lab.path_of_others())
    with pytest.raises(ConfigError) as caught:
        lab.run(resume=True, data__path=others, train__seed=5, **SAVING)
    message = caught.value.message
    assert f"data.path: '{lab.path}' -> '{others}'" in message
    assert "train.seed: 0 -> 5" in message
    fingerprint = CheckpointFolder(lab.root / "run").read_state(3).data_fingerprint
    assert f"({fingerprint}) -> " in message


def test_resume_without_a_checkpoint(lab):
    lab.run(stop=lab.stop_after_step(3))
    with pytest.raises(ConfigError, match="no checkpoint to resume from") as caught:
        lab.run(resume=True)
    assert "checkpoint_every" in caught.value.next_command


def test_damaged_last_checkpoint_falls_back_and_says_so(lab):
    whole = lab.run("whole", **SAVING)
    ran = lab.run(stop=lab.stop_after_step(7), **SAVING)
    steps = CheckpointFolder(ran.folder).list_steps()
    assert steps[-1] == 7
    damage(ran.folder / "checkpoints/step-00000007/optimizer.safetensors")
    resumed = lab.run(resume=True, **SAVING)
    assert resumed.sink.resumed[0].from_step == steps[-2]
    finding = next(f for f in resumed.sink.findings if f.kind == "checkpoint-damaged")
    assert "step-00000007/optimizer.safetensors" in finding.evidence["damage"]
    assert_continues(whole, resumed, after=steps[-2])
    assert 7 not in CheckpointFolder(ran.folder).list_steps()


def test_no_whole_checkpoint_names_every_damage(lab):
    ran = lab.run(stop=lab.stop_after_step(5), **SAVING)
    for step in CheckpointFolder(ran.folder).list_steps():
        damage(ran.folder / f"checkpoints/step-{step:08d}/model.safetensors")
    with pytest.raises(ConfigError, match="no whole checkpoint") as caught:
        lab.run(resume=True, **SAVING)
    assert "step-00000005" in caught.value.message


@pytest.mark.parametrize(
    "edit",
    [
        {"rng": {"cpu": "%%% not base64"}},
        {"rng": {"cpu": "AAAA"}},
        {"stream": {"position": -1}},
        {"stream": {}},
    ],
)
def test_hostile_state_is_a_clear_error(lab, edit):
    ran = lab.run(stop=lab.stop_after_step(1), **SAVING)
    path = ran.folder / "checkpoints/step-00000001/state.json"
    state = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(state | edit))
    sink = lab.sink()
    with pytest.raises(ConfigError, match="step-00000001"):
        lab.run(resume=True, sink=sink, **SAVING)
    assert sink.events == []


def test_tensors_of_another_model_are_refused(lab):
    ran = lab.run(stop=lab.stop_after_step(1), **SAVING)
    folder = CheckpointFolder(ran.folder)
    state = folder.read_state(1)
    tensors = load_file(folder.get_path(1) / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name].repeat(2, *([1] * (tensors[name].ndim - 1)))
    folder.write(state, tensors, {})
    with pytest.raises(ConfigError, match="expected F32"):
        lab.run(resume=True, **SAVING)


def test_non_finite_weights_resume_as_they_are(lab):
    ran = lab.run(stop=lab.stop_after_step(1), **SAVING)
    folder = CheckpointFolder(ran.folder)
    path = folder.get_path(1) / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, lab.root / "nan.safetensors")
    folder.write(folder.read_state(1), tensors, {})
    resumed = lab.run(resume=True, **SAVING)
    assert resumed.outcome.status is Status.DIVERGED
    assert isinstance(resumed.sink.events[1], RunPrepared)


def damage(path):
    """Flip one byte in the middle; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
