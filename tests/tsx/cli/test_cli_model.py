"""tsx model import and export: what is refused before anything starts, and the way round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from registry.liveness import RunLock

REAL = Path(__file__).resolve().parents[2] / "assets" / "official"


@pytest.fixture
def folder(tmp_path):
    """Return official weights that a test may spoil."""
    place = tmp_path / "weights"
    place.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(REAL / name, place / name)
    return place


@pytest.fixture
def no_process(monkeypatch):
    """Make sure that nothing is started."""
    from tsx.launch import process

    def refuse(*arguments):
        pytest.fail("a training process was started")

    monkeypatch.setattr(process, "_spawn", refuse)


@pytest.fixture
def planned(monkeypatch):
    """Return the plans that would be trained."""
    from tsx.cli import run

    plans = []
    monkeypatch.setattr(run, "train", lambda asked, home, url: plans.extend(asked) or 0)
    return plans


def read_tensors(path):
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def assert_refused(done, home, *said, status=2):
    """The error is explained, nothing is printed as data, and no run is recorded."""
    assert (done.status, done.out) == (status, "")
    for text in said:
        assert text in done.err
    assert "\x1b" not in done.err
    assert done.err.splitlines()[-1].startswith("next: ")
    assert not (home / "tsx-home" / "runs").exists()


# import


def test_the_run_is_planned_as_the_folder_says(tsx, folder, planned, monkeypatch):
    monkeypatch.chdir(folder.parent)
    line = ("model", "import", "weights", "--tag", "a", "--tag", "b", "--note", "x")
    done = tsx(*line, "--device", "cpu", "--data", "series", "--set", "eval.max_batches=7")
    assert done.status == 0
    (plan,) = planned
    raw = json.loads((folder / "config.json").read_text())
    assert (plan.name, plan.recipe, plan.tags, plan.note) == ("weights", "import", ("a", "b"), "x")
    train, model = plan.config.train, plan.config.model
    assert (train.steps, train.init_from, train.device) == (0, str(folder), "cpu")
    assert train.checkpoint_every > 0
    assert plan.config.data.path == str(folder.parent / "series")
    assert plan.config.eval.max_batches == 7
    assert (model.hidden_size, model.ff_width) == (raw["hidden_size"], raw["intermediate_size"])
    assert model.aux_reduction == "concatenated"


def test_a_name_and_training_settings_of_ones_own(tsx, folder, planned):
    line = ("model", "import", str(folder), "--name", "mine", "--set", "model.aux_loss_weight=0.1")
    assert tsx(*line, "--set", "train.steps=5", "--set", "model.num_layers=2").status == 0
    (plan,) = planned
    assert (plan.name, plan.config.train.steps) == ("mine", 5)
    assert plan.config.model.aux_loss_weight == 0.1


def test_of_a_repeated_setting_the_last_wins_and_it_is_said(tsx, folder, planned):
    line = ("model", "import", str(folder), "--set", "train.seed=1", "--set", "train.seed=2")
    assert "train.seed is given more than once" in tsx(*line).err
    assert planned[0].config.train.seed == 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.num_layers=3", "num_layers=3, there 2"),
        ("model.num_heads=4", "num_heads=4, there 2"),
        ("model.top_k=9", "top_k=9 exceeds num_experts=4"),
        ("model.topk=1", "did you mean 'top_k'"),
        ("train.init_from=/elsewhere", "train.init_from"),
        ("train.device=gpu", "valid: auto, cpu, cuda, mps"),
        ("train", "has no '='"),
    ],
)
def test_a_setting_that_contradicts_the_folder_is_refused(
    tsx, folder, no_process, tmp_path, setting, said
):
    done = tsx("model", "import", str(folder), "--set", setting)
    assert_refused(done, tmp_path, said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "model_type='llama'; expected 'time_moe'"),
        ({"use_dense": True}, "use_dense=True"),
        ({"num_key_value_heads": 1}, "grouped-query"),
        ({"hidden_act": "\x1b[2J\x1b]0;evil\x07"}, r"hidden_act='\x1b[2J\x1b]0;evil\x07'"),
        ({"num_experts": 8}, "missing: model.layers.0.ffn_layer.experts.4.gate_proj.weight"),
        ({"num_hidden_layers": 2**31 - 1}, "at most 100,000 are read"),
    ],
)
def test_another_architecture_is_no_run(tsx, folder, no_process, tmp_path, change, said):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | change))
    done = tsx("model", "import", str(folder))
    assert_refused(done, tmp_path, said, str(folder))


def test_what_is_no_folder_of_weights_is_no_run(tsx, folder, no_process, tmp_path):
    assert_refused(tsx("model", "import", str(tmp_path / "no")), tmp_path, "is not a folder")
    assert_refused(tsx("model", "import", ""), tmp_path, "DIR is empty")
    assert_refused(tsx("model", "import", str(folder), "--data", ""), tmp_path, "--data is empty")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert_refused(tsx("model", "import", str(folder)), tmp_path, "is pickled")
    (folder / "pytorch_model.bin").unlink()
    assert_refused(tsx("model", "import", str(folder)), tmp_path, "no model.safetensors in it")
    (folder / "config.json").write_text("{")
    assert_refused(tsx("model", "import", str(folder)), tmp_path, "is no JSON")
    (folder / "config.json").unlink()
    assert_refused(tsx("model", "import", str(folder)), tmp_path, "is not there")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}"])
def test_a_file_that_lies_is_no_run(tsx, folder, no_process, tmp_path, content):
    (folder / "model.safetensors").write_bytes(content)
    assert_refused(tsx("model", "import", str(folder)), tmp_path, str(folder))


@pytest.mark.slow
def test_there_and_back_again(tsx, folder, tmp_path):
    """Import, read, export, import the export, train it further: all through real processes."""
    small = ("--set", "data.demo_series=8", "--set", "data.context_length=32", "--device", "cpu")
    small += ("--set", "perf.mfu_peak_tflops=1", "--set", "data.source=demo")
    done = tsx("model", "import", str(folder), *small)
    assert done.status == 0, done.err
    assert "val step=0 " in done.out
    assert "--set train.steps=1000" in done.err.splitlines()[-1]
    assert "warm-up" not in done.err
    shown = tsx("show", "weights").out
    assert "model.safetensors with SHA-256" in " ".join(shown.split())
    assert str(folder) in shown
    assert "completed" in tsx("runs").out
    out = tmp_path / "out"
    done = tsx("model", "export", "weights", str(out), "--json")
    assert done.status == 0, done.err
    written = json.loads(done.out)
    assert (written["path"], written["step"]) == (str(out), 0)
    assert read_tensors(out / "model.safetensors") == read_tensors(folder / "model.safetensors")
    shutil.rmtree(folder)
    done = tsx("resume", "weights", "--set", "train.steps=2", "--set", "train.log_every=1")
    assert done.status == 0, done.err
    assert "step=2 " in done.out
    done = tsx("model", "export", "weights", str(tmp_path / "later"))
    assert (done.status, done.out) == (0, f"{tmp_path / 'later'}\n")
    assert "wrote step 2 of run" in done.err
    later = read_tensors(tmp_path / "later" / "model.safetensors")
    assert later != read_tensors(out / "model.safetensors")


# export


@pytest.fixture
def one(record):
    """Record a run that is over and left no checkpoint."""
    return record("aaaaaaaa", "first", {"train/loss": [3.0, 2.0]})


def test_a_run_without_a_checkpoint(tsx, one, tmp_path):
    done = tsx("model", "export", "first", str(tmp_path / "out"))
    assert (done.status, done.out) == (1, "")
    assert "no checkpoint in" in done.err
    assert done.err.splitlines()[-1] == "next: tsx run RECIPE --set train.checkpoint_every=N"
    assert not (tmp_path / "out").exists()


def test_an_unknown_run_cannot_be_exported(tsx, one, tmp_path):
    done = tsx("model", "export", "frist", str(tmp_path / "out"))
    assert (done.status, done.out) == (1, "")
    assert done.err == "error: no run 'frist'; nearest: first\nnext: tsx runs\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model",), "Missing command"),
        (("model", "import"), "Missing argument 'DIR'"),
        (("model", "export", "first"), "Missing argument 'DIR'"),
        (("model", "export", "first", ""), "DIR is empty"),
        (("model", "export", "first", "out", "--checkpoint", "\x1b[31m"), "last, best or a step"),
        (("model", "exprot"), "exprot"),
    ],
)
def test_a_bad_line_names_the_value_and_what_to_type(tsx, one, words, said):
    done = tsx(*words)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert "\x1b" not in done.err
    assert done.err.splitlines()[-1].startswith("next: ")


def test_a_run_that_is_going_can_be_exported_as_far_as_it_is(tsx, one, tmp_path):
    lock = RunLock.acquire(one)
    done = tsx("model", "export", "first", str(tmp_path / "out"))
    lock.release()
    assert "no checkpoint in" in done.err  # not "still going"
