"""The lines of a run, and what a person sees while it trains."""

from __future__ import annotations

import math
import re

import msgspec
import pytest

from registry.events import (
    Artifact,
    Finding,
    Heartbeat,
    Metrics,
    RunPrepared,
    RunResumed,
    Severity,
    Status,
)
from tsx.cli import output
from tsx.cli.lines import closing_line, duration, finding_line, list_lines, number
from tsx.cli.live import LiveView, PlainView, make_view
from tsx.config import RunConfig, decode
from tsx.launch.exit_reason import Ending

STEP = {
    "train/loss": 3.61592,
    "train/pred": 0.58884,
    "train/aux": 1.05118,
    "train/lr": 1e-6,
    "train/toks_per_sec": 23243.4,
    "train/mfu": 5.5912,
}
PREPARED = RunPrepared(
    time=1.0,
    pid=1,
    device="cuda:0",
    device_name="NVIDIA H100 80GB HBM3",
    precision="bf16",
    data_source="demo",
    data={"train": {"windows": 1234}, "val": {"windows": 20}, "notice": "data: demo corpus"},
    params_total=113_352_192,
    params_active=49_651_200,
    flops_per_token=297_345,
    peak_tflops=989.0,
    peak_source="table",
    expected_s=125.0,
    warmup_steps=30,
)


UNKNOWN = RunPrepared(
    **{"time": 1.0, "pid": 1, "device": "cpu", "device_name": "", "precision": "fp32"},
    data={"train": "?", "val": {"windows": None}},
)


def test_a_step_is_the_diaries_line() -> None:
    assert list_lines(Metrics(time=1.0, step=10, values=STEP)) == [
        "step=10 loss=3.6159 pred=0.5888 aux=1.0512 lr=1.00e-06 toks/s=23,243 mfu=5.59%"
    ]


PERF = {
    "train/tflops": 93.456,
    "train/step_time_ms": 1445.954,
    "train/data_time_ms": 14.46,
    "train/kernel_launches_per_step": 4321.0,
    "train/sm_util_pct": 90.0,
    "train/mem_ctrl_util_pct": 58.0,
}


def test_with_perf_metrics_a_step_is_two_lines_of_the_performance_log() -> None:
    event = Metrics(time=1.0, step=10, values=STEP | PERF)
    step, timing = list_lines(event, perf=True)
    assert step.endswith(
        "toks/s=23,243 tflops=93.46 mfu=5.59% step_ms=1445.95 kernels/step=4,321 sm_util=90.0% "
        "mem_ctrl_util=58.0%"
    )
    assert timing == "timing data=14.46ms model=1431.49ms step=1445.95ms data%=1.0"
    assert len(list_lines(event)) == 1
    (alone,) = list_lines(Metrics(time=1.0, step=1, values={"train/loss": 1.0}), perf=True)
    assert alone == "step=1 loss=1.0000"


@pytest.mark.parametrize("step_ms", [0.0, math.nan])
def test_a_step_of_no_time_has_no_share(step_ms: float) -> None:
    values = STEP | PERF | {"train/step_time_ms": step_ms}
    timing = list_lines(Metrics(time=1.0, step=1, values=values), perf=True)[-1]
    assert timing.endswith("data%=nan")


@pytest.mark.parametrize("asked", [True, False])
def test_the_config_says_whether_perf_metrics_are_printed(
    capsys: pytest.CaptureFixture[str], asked: bool
) -> None:
    view = PlainView()
    view.begin("aaaaaaaa", "mine", decode({"perf": {"log_metrics": asked}}))
    view.see(Metrics(time=2.0, step=1, values=STEP | PERF))
    assert ("timing data=" in capsys.readouterr().out) is asked


def test_val_and_ood_are_lines_of_their_own() -> None:
    values = {
        f"{split}/{name}": value
        for split in ("val", "ood")
        for name, value in (("pred", 0.30111), ("aux", 1.0), ("mae", 0.441), ("mse", 0.5023))
    }
    assert list_lines(Metrics(time=1.0, step=50, values=values)) == [
        "val step=50 pred=0.3011 aux=1.0000 mae=0.4410 mse=0.5023",
        "ood step=50 pred=0.3011 aux=1.0000 mae=0.4410 mse=0.5023",
    ]


@pytest.mark.parametrize(
    "event",
    [
        Metrics(time=1.0, step=1, values={"sys/ram_gib": 1.0}),
        Metrics(time=1.0, step=1, values={}),
        Heartbeat(time=1.0, step=1),
        Artifact(time=1.0, kind="checkpoint", path="x", step=1),
    ],
    ids=["sys", "nothing", "heartbeat", "artifact"],
)
def test_other_events_are_no_lines(event: object) -> None:
    assert list_lines(event) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (0.5, "0.5000")]
)
def test_numbers_that_are_not_finite_keep_the_line_whole(value: float, text: str) -> None:
    assert number(value, ".4f") == text
    (line,) = list_lines(Metrics(time=1.0, step=2, values=STEP | {"train/loss": value}))
    assert line.startswith(f"step=2 loss={text} ")
    for form in (".2e", ",.0f"):
        assert number(math.nan, form) == "nan"


def test_what_stands_before_training() -> None:
    assert list_lines(PREPARED) == [
        "data source=demo windows train=1,234 val=20",
        "params total=113.35M (113,352,192) active=49.65M (49,651,200)",
        "device model=NVIDIA H100 80GB HBM3 precision=bf16",
        "flops/token=297.35K peak=989 TFLOP/s (table) expected=2m05s",
    ]


def test_what_stands_before_training_when_little_is_known() -> None:
    lines = list_lines(UNKNOWN)
    assert lines[0] == "data source="
    assert lines[-1].startswith("flops/token=0 peak=?")


def test_a_resume_says_where_it_goes_on() -> None:
    event = RunResumed(time=1.0, from_step=40, steps=90)
    assert list_lines(event) == ["resumed step=40 of 90"]


@pytest.mark.parametrize("peak", [59.751, None])
def test_the_closing_line_has_the_words_others_read(peak: float | None) -> None:
    line = closing_line(PREPARED, peak)
    found = re.fullmatch(r"run model=(.+) precision=(\S+) peak_vram_gb=(\S+)", line)
    assert found
    assert found.groups() == ("NVIDIA H100 80GB HBM3", "bf16", "59.75" if peak else "n/a")


def test_a_finding_is_one_line() -> None:
    finding = Finding(
        time=1.0,
        kind="non-finite",
        severity=Severity.ERROR,
        step=3,
        where="moe.py:12",
        cause="a loss that is not finite",
        fix="lower optim.lr",
    )
    said = "error: non-finite at moe.py:12: a loss that is not finite (lower optim.lr)"
    assert finding_line(finding) == said
    within = msgspec.structs.replace(finding, module="blocks.0.moe")
    assert finding_line(within).startswith("error: non-finite at blocks.0.moe, moe.py:12: a loss")


@pytest.mark.parametrize("view", [PlainView, LiveView])
def test_a_finding_that_is_counted_again_is_shown_once(
    capsys: pytest.CaptureFixture[str], view: type[PlainView]
) -> None:
    shown = view()
    for run in ("aaaaaaaa", "bbbbbbbb"):
        shown.begin(run, "first", make_config())
        for count in (1, 1, 2):
            shown.see(
                Finding(time=1.0, kind="router", severity=Severity.WARNING, cause="x", count=count)
            )
        assert capsys.readouterr().err.count("warning: router: x") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3599.4, "59m59s"),
        (3600, "1h00m"),
        (7620, "2h07m"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def make_config() -> RunConfig:
    return decode({"train": {"steps": 100, "seed": 3}})


def test_a_run_from_begin_to_finish(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    view.begin("aaaaaaaa", "mine", make_config())
    view.see(PREPARED)
    view.see(Metrics(time=2.0, step=1, values=STEP | {"sys/peak_mem_gib": 1.5}))
    view.see(Artifact(time=3.0, kind="checkpoint", path="checkpoints/step-1", step=1))
    view.tick()
    view.finish("aaaaaaaa", Ending(Status.COMPLETED, "", 0))
    captured = capsys.readouterr()
    out = captured.out.splitlines()
    assert out[-2].startswith("step=1 loss=3.6159")
    assert out[-1].endswith("peak_vram_gb=1.50")
    assert "100 steps, seed 3" in captured.err
    assert "data: demo corpus" in captured.err
    assert "warm-up: 30 steps (default" in captured.err
    assert "checkpoint step=1 checkpoints/step-1" in captured.err
    assert captured.err.endswith("next: tsx show aaaaaaaa\n")


def test_a_bad_end_says_why_and_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    view.begin("aaaaaaaa", "mine", make_config())
    view.see(Artifact(time=1.0, kind="checkpoint", path="checkpoints/step-00000005", step=5))
    view.finish("aaaaaaaa", Ending(Status.KILLED, "SIGKILL", 137))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"run aaaaaaaa killed in \d+s: SIGKILL", captured.err)
    assert captured.err.endswith("next: tsx show aaaaaaaa, tsx resume aaaaaaaa\n")


def test_resume_is_not_offered_where_there_is_no_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = PlainView()
    view.begin("aaaaaaaa", "mine", make_config())
    view.finish("aaaaaaaa", Ending(Status.KILLED, "SIGKILL", 137))
    assert capsys.readouterr().err.endswith("next: tsx show aaaaaaaa\n")


def test_a_step_that_was_kept_can_be_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    view.begin("aaaaaaaa", "mine", make_config())
    view.see(Artifact(time=1.0, kind="batch", path="dumps/step-00000005", step=5))
    view.finish("aaaaaaaa", Ending(Status.DIVERGED, "step 5: the loss is NaN", 4))
    assert capsys.readouterr().err.endswith("next: tsx show aaaaaaaa, tsx replay aaaaaaaa\n")
    view.begin("bbbbbbbb", "second", make_config())
    view.finish("bbbbbbbb", Ending(Status.COMPLETED, "", 0))
    assert capsys.readouterr().err.endswith("next: tsx show bbbbbbbb\n")


def test_the_second_run_of_a_sweep_inherits_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    view.begin("aaaaaaaa", "first", make_config())
    view.see(PREPARED)
    view.finish("aaaaaaaa", Ending(Status.COMPLETED, "", 0))
    capsys.readouterr()
    view.begin("bbbbbbbb", "second", make_config())
    view.finish("bbbbbbbb", Ending(Status.FAILED, "x", 1))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("view", [PlainView, LiveView])
def test_hostile_text_is_inert(capsys: pytest.CaptureFixture[str], view: type[PlainView]) -> None:
    evil = "\x1b[31m[bold]evil[/bold]\u202e\n"
    shown = view()
    shown.begin("aaaaaaaa", evil, make_config())
    shown.see(Finding(time=1.0, kind=evil, severity=Severity.ERROR, step=1, cause=evil, fix=evil))
    shown.see(Artifact(time=1.0, kind="checkpoint", path=evil, step=1))
    shown.see(Metrics(time=1.0, step=1, values=STEP | {"train/loss": math.nan}))
    shown.finish("aaaaaaaa", Ending(Status.FAILED, evil, 1))
    captured = capsys.readouterr()
    assert "\x1b[31m" not in captured.out + captured.err
    assert "\u202e" not in captured.out + captured.err
    assert "[bold]evil[/bold]" in captured.err


@pytest.mark.parametrize("writer", ["data", "talk", "flush"])
def test_a_reader_that_leaves_does_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    abandoned: list[bool] = []
    monkeypatch.setattr(output, writer, refuse)
    monkeypatch.setattr(output, "abandon_broken", lambda: abandoned.append(True))
    view = PlainView()
    view.begin("aaaaaaaa", "mine", make_config())
    view.see(PREPARED)
    view.tick()
    view.finish("aaaaaaaa", Ending(Status.COMPLETED, "", 0))
    assert abandoned


def test_no_terminal_gets_plain_lines() -> None:
    assert type(make_view()) is PlainView
