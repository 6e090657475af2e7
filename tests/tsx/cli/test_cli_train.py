"""tsx train: what is refused, what is said, and what several flags come to together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tsx.cli import resume, run
from tsx.cli.train_flags import FLAGS, RETIRED, Group, render_flags, render_retired
from tsx.config import list_keys

MOVING = Path(__file__).resolve().parents[3] / "docs" / "moving.md"
FULL = ("--steps-per-epoch", "200", "--hidden-size", "64", "--n-head", "2")

BAD_LINES = {
    ("--patch-len", "16"): "--patch-len 16 without --patch",
    ("--patch-stride", "16"): "--patch-stride 16 without --patch",
    ("--patch", "--patch-stride", "16"): "--patch-stride 16 is not --patch-len 32",
    ("--patch", "--patch-len", "16", "--patch-stride", "8"): "is not --patch-len 16",
    ("--patch", "--seq-max-len", "100"): "context_length=100 is not a multiple of",
    ("--patch", "--patch-len", "0"): "patch_len=0",
    ("--compile-mode", "default"): "--compile-mode default without --compile",
    ("--compile", "--compile-mode", "fast"): "valid: default, reduce-overhead",
    ("--num-expert-layers", "2"): "Time-MoE has one in each layer",
    ("--num-expert-layers", "0"): "Time-MoE has one in each layer",
    ("--no-amp", "--set", "train.precision=bf16"): "--no-amp is fp32",
    ("--no-bf16", "--attn-backend", "cudnn"): "--no-bf16 is fp32, and cudnn",
    ("--attn-backend", "fast"): "valid: auto, flash",
    ("--normalization-func", "min"): "valid: zero, max, none",
    ("--steps-per-epoch", "0"): "--steps-per-epoch 0: expected 1 or more",
    ("--epochs", "-1"): "--epochs -1: expected 1 or more",
    ("--steps-per-epoch", "9" * 12, "--epochs", "9" * 12): "steps=",
    ("--batch-size", "9" * 30): "batch_size=",
    ("--batch-size", "0"): "change --batch-size",
    ("--k", "9"): "change --k or --num-experts",
    ("--hidden-size", "30"): "change --hidden-size or --n-head",
    ("--k", "x"): "'x'",
    ("--learning-rate", "nan"): "expected a finite number",
    ("--val-split", "1"): "val_split=1.0",
    ("--kk", "1"): "--kk",
    ("sanity",): "sanity",
    ("--set", "model.topk=1"): "did you mean 'top_k'",
    ("--set", "model"): "has no '='",
    ("--device", "gpu"): "valid: auto, cpu, cuda, mps",
    ("--dataset-path", ""): "--dataset-path is empty",
    ("--dataset-path", "nowhere"): "--dataset-path nowhere: no such file",
    ("--dataset-path", "\x1b[31m\0"): "no such file",
    ("--dataset-path", "time300b_selected"): "nor is Time-300B at",
    ("--ood-val-dataset-path", "nowhere"): "--ood-val-dataset-path nowhere: no such file",
    ("--resume-checkpoint", "x.pt"): "pickled ones (.pt) are never read",
    ("--resume-checkpoint", "/"): "no checkpoint of a run in",
    ("--resume-checkpoint", "some-run", "--name", "x"): "--name does not go with",
    ("--resume-checkpoint", "some-run", "--dry-run"): "--dry-run does not go with",
    ("--resume-checkpoint", "some-run", "--epochs", "3"): "--epochs 3 without --steps-per-epoch",
}


@pytest.fixture(autouse=True)
def _cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where nothing lies."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return this test's TSX_HOME."""
    return tmp_path / "tsx-home"


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sure that nothing is started."""
    from tsx.launch import process

    def refuse(*arguments: object) -> None:
        pytest.fail("a training process was started")

    monkeypatch.setattr(process, "_spawn", refuse)


@pytest.fixture
def plan_of(tsx, monkeypatch: pytest.MonkeyPatch):
    """Return a function from the words of a line to its one plan and what was said."""
    plans: list = []
    monkeypatch.setattr(run, "_rehearse", lambda asked, home: plans.extend(asked) or 0)

    def plan(*words: str):
        plans.clear()
        done = tsx("train", *words, "--dry-run")
        assert done.status == 0, done.err
        (only,) = plans
        return only, done.err

    return plan


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list:
    """Return what runs would go on with: (run, values)."""
    asked: list = []
    monkeypatch.setattr(resume, "go_on", lambda run, values: asked.append((run, values)) or 0)
    return asked


@pytest.mark.parametrize("words", BAD_LINES, ids=" ".join)
def test_a_bad_line_names_the_value_and_what_to_type(tsx, home, no_process, words) -> None:
    done = tsx("train", *words)
    assert (done.status, done.out) == (2, "")
    assert BAD_LINES[words] in done.err
    assert "\x1b" not in done.err
    assert done.err.splitlines()[-1].startswith("next: ")
    assert not home.exists()


@pytest.mark.parametrize("flag", RETIRED, ids=lambda flag: flag.name)
def test_a_flag_that_is_gone_is_named_with_what_there_is(tsx, flag) -> None:
    done = tsx("train", flag.name, *(["1"] if flag.has_value else []))
    assert done.status == 2
    assert f"{flag.name} is a flag of the notes that tsx has not: {flag.instead}" in done.err


def test_the_defaults_are_the_notes_where_they_make_sense(plan_of) -> None:
    plan, said = plan_of()
    config = plan.config
    assert (config.train.steps, config.train.batch_size) == (100_000, 1024)
    assert (config.data.context_length, config.data.stride) == (4096, 4096)
    model = config.model
    assert (model.hidden_size, model.num_layers, model.num_heads) == (256, 4, 8)
    assert (model.num_experts, model.top_k, model.ff_width, model.expert_width) == (4, 2, 1024, 512)
    assert (config.train.log_every, config.train.checkpoint_every) == (50, 2000)
    assert (config.eval.every, config.eval.max_batches) == (1000, 10)
    assert config.warmup_steps == 10_000
    assert "4 x --hidden-size" in said
    assert "/ 2" in said


def test_steps_are_of_all_epochs_and_default_intervals_fire_within_them(plan_of) -> None:
    train = plan_of("--steps-per-epoch", "10", "--epochs", "3")[0].config.train
    assert (train.steps, train.log_every, train.checkpoint_every) == (30, 30, 30)
    config = plan_of("--steps-per-epoch", "10", "--log-every", "50")[0].config
    assert config.train.log_every == 50  # typed: told by the config lint, not changed
    assert config.warmup_steps == 1


def test_nothing_is_validated_where_nothing_is_held_out(plan_of, tmp_path: Path) -> None:
    assert plan_of(*FULL, "--val-split", "0")[0].config.eval.every == 0
    assert plan_of(*FULL, "--val-split", "0", "--val-every", "5")[0].config.eval.every == 5
    ood = plan_of(*FULL, "--val-split", "0", "--ood-val-dataset-path", str(tmp_path))[0].config
    assert (ood.eval.every, ood.eval.ood_max_batches) == (200, 10)
    assert ood.data.ood_path == str(tmp_path)


def test_patches(plan_of) -> None:
    plan, said = plan_of("--patch")
    assert plan.config.model.patch_len == 32
    assert "patches of 32 points" in said
    plan, said = plan_of("--patch", "--patch-len", "16", "--patch-stride", "16")
    assert plan.config.model.patch_len == 16
    assert "patches of" not in said


def test_widths_that_are_typed_are_compared_with_the_notes(plan_of) -> None:
    plan, said = plan_of("--d-ff", "3072", "--d-expert", "3072")
    assert (plan.config.model.d_ff, plan.config.model.d_expert) == (3072, 3072)
    assert "of 2048 and 2048 give as many weights" in said


def test_no_bf16_alone_says_that_there_is_no_fp16(plan_of) -> None:
    plan, said = plan_of("--no-bf16")
    assert plan.config.train.precision == "fp32"
    assert "no fp16" in said
    assert "no fp16" not in plan_of("--no-bf16", "--no-amp")[1]


def test_accumulation_says_what_intervals_count(plan_of) -> None:
    plan, said = plan_of("--grad-accum-steps", "4")
    assert plan.config.train.grad_accum_steps == 4
    assert "every interval counts optimizer steps" in said


def test_perf_metrics_are_one_flag_and_two_keys(plan_of) -> None:
    perf = plan_of("--log-perf-metrics")[0].config.perf
    assert (perf.log_metrics, perf.count_kernels) == (True, True)
    assert not plan_of()[0].config.perf.log_metrics


def test_of_a_repeated_flag_the_last_wins_and_set_goes_over_all(plan_of) -> None:
    plan, said = plan_of("--k", "1", "--k", "3", "--set", "model.top_k=4")
    assert plan.config.model.top_k == 4
    assert "--k is given 2 times" in said
    assert plan_of("--k", "1", "--k", "3")[0].config.model.top_k == 3


def test_a_run_is_named_tagged_seeded_and_shrunk_as_a_recipes(plan_of) -> None:
    line = ("--name", "mine", "--tag", "a", "--tag", "b", "--note", "why", "--seed", "7", "--smoke")
    plan, _ = plan_of(*FULL, *line, "--device", "cpu")
    assert (plan.name, plan.recipe, plan.tags, plan.note) == ("mine", "train", ("a", "b"), "why")
    assert (plan.config.train.seed, plan.config.train.device, plan.smoke) == (7, "cpu", True)
    assert (plan.config.train.steps, plan.config.model.hidden_size) == (8, 32)
    assert plan_of()[0].name == "train"


def test_a_path_is_read_where_it_is(plan_of, tmp_path: Path) -> None:
    Path("time300b_selected/finance").mkdir(parents=True)
    line = ("--dataset-path", "time300b_selected", "--ood-val-dataset-path")
    plan, said = plan_of(*FULL, *line, "time300b_selected/finance")
    here = tmp_path / "cwd" / "time300b_selected"
    assert (plan.config.data.path, plan.config.data.ood_path) == (str(here), f"{here}/finance")
    assert "is not here" not in said


def test_an_ood_part_that_is_not_beside_the_data_can_be_downloaded_there(tsx) -> None:
    Path("time300b_selected").mkdir()
    line = ("--dataset-path", "time300b_selected", "--ood-val-dataset-path")
    done = tsx("train", *line, "time300b_selected/finance")
    assert done.err.endswith(
        "next: tsx data download --partition-set finance --time300b-dir time300b_selected\n"
    )
    done = tsx("train", *line, "time300b_selected/web/wiki")
    assert "tsx data download --partitions web/wiki " in done.err


def test_the_notes_folder_is_the_home_where_there_is_none(plan_of, put_partition, home) -> None:
    put_partition(home / "data" / "time300b" / "energy" / "etth1")
    put_partition(home / "data" / "time300b" / "finance" / "rates")
    line = ("--dataset-path", "./time300b_selected/", "--ood-val-dataset-path")
    plan, said = plan_of(*FULL, *line, "./time300b_selected/finance/rates")
    data = plan.config.data
    assert (data.source, data.path, data.include) == ("time300b", None, ())
    assert data.ood_include == ("finance/rates",)
    assert "is not here: read from" in said
    data = plan_of(*FULL, "--dataset-path", "time300b_selected/energy")[0].config.data
    assert (data.source, data.include) == ("time300b", ("energy/*",))


def test_set_says_where_the_data_is(plan_of) -> None:
    line = ("--dataset-path", "time300b_selected", "--ood-val-dataset-path")
    plan, said = plan_of(*FULL, *line, "time300b_selected/finance", "--set", "data.source=demo")
    data = plan.config.data
    assert (data.source, data.path, data.ood_include) == ("demo", None, ("finance/*",))
    assert "--dataset-path time300b_selected is not read" in said


def test_a_resume_lays_only_what_is_typed_over_the_runs_config(tsx, resumed) -> None:
    line = ("--resume-checkpoint", "mine", "--steps-per-epoch", "400", "--hidden-size", "128")
    assert tsx("train", *line, "--set", "optim.lr=1").status == 0
    assert resumed == [
        ("mine", {"train.steps": 400, "model.hidden_size": 128, "optim.lr": 1}),
    ]
    assert tsx("train", "--resume-checkpoint", "mine").status == 0
    assert resumed[1] == ("mine", {})


def test_a_checkpoint_folder_names_its_run(tsx, resumed, home) -> None:
    checkpoints = home / "runs" / "aaaaaaaa" / "checkpoints"
    for step in (50, 100):
        (checkpoints / f"step-{step:08}").mkdir(parents=True)
    for path in (checkpoints / "step-00000100", checkpoints, checkpoints.parent):
        assert tsx("train", "--resume-checkpoint", str(path)).status == 0
    assert resumed == [("aaaaaaaa", {})] * 3
    done = tsx("train", "--resume-checkpoint", str(checkpoints / "step-00000050"))
    assert done.status == 2
    assert "not the last checkpoint of run aaaaaaaa, step-00000100" in done.err
    done = tsx("train", "--resume-checkpoint", str(checkpoints / "step-00000150"))
    assert done.status == 2
    assert "is no checkpoint" in done.err


@pytest.mark.slow
def test_a_run_goes_on_with_more_steps_and_not_as_another_model(tsx) -> None:
    line = ("--steps-per-epoch", "2", "--batch-size", "2", "--hidden-size", "16", "--n-head", "2")
    line += ("--n-decoder-layers", "1", "--seq-max-len", "32", "--seq-stride", "32")
    line += ("--set", "data.source=demo", "--set", "data.demo_series=4", "--val-split", "0")
    assert tsx("train", *line, "--name", "small").status == 0
    done = tsx("train", *line, "--resume-checkpoint", "small", "--k", "1", "--d-ff", "8")
    assert (done.status, done.out) == (2, "")
    assert "model.d_ff: None -> 8; model.top_k: 2 -> 1" in done.err
    done = tsx("train", *line, "--resume-checkpoint", "small", "--steps-per-epoch", "3")
    assert done.status == 0
    assert done.out.startswith("resumed step=2 of 3\n")


def test_help_is_grouped_and_has_every_flag(tsx) -> None:
    text = tsx("train", "--help").out
    heads = [f"{group}:" for group in Group]
    assert [line for line in text.splitlines() if line in heads] == heads
    assert all(re.search(rf"^  {flag.name}\b", text, re.MULTILINE) for flag in FLAGS)
    assert not any(re.search(rf"^  {flag.name}\b", text, re.MULTILINE) for flag in RETIRED)


def test_every_flag_sets_keys_that_there_are() -> None:
    keys = list_keys()
    assert [flag.name for flag in FLAGS if not set(flag.keys) <= keys.keys()] == []
    names = [flag.name for flag in (*FLAGS, *RETIRED)]
    assert len(set(names)) == len(names)


def test_the_page_for_those_who_move_is_generated_from_the_tables() -> None:
    text = MOVING.read_text(encoding="utf-8")
    assert f"train_flags.py -->\n{render_flags()}\n<!-- end of flags -->" in text
    assert f"train_flags.py -->\n{render_retired()}\n<!-- end of retired -->" in text
