from __future__ import annotations

import math
import threading

import pytest
import torch

from registry.events import Metrics, RunPrepared, Severity, Status
from tsx.errors import ConfigError, DataError, OutOfMemory, TsxError
from tsx.trainer import loop, memory_errors, session, step
from tsx.trainer.loop import rehearse

pytestmark = pytest.mark.trainer

STEP_KEYS = {
    "train/loss",
    "train/pred",
    "train/aux",
    "train/lr",
    "train/grad_norm",
    "router/layer0/load_max_over_mean",
    "router/layer1/entropy",
    "router/layer1/aux",
}
SPEED_KEYS = {
    "train/toks_per_sec",
    "train/points_per_sec",
    "train/step_time_ms",
    "train/tflops",
    "train/mfu",
}
SCORE_KEYS = {"loss", "pred", "aux", "mae", "mse", "mse_h1", "mse_h8", "mae_h1", "mae_h8"}


def test_run_completes_and_loss_falls(lab):
    ran = lab.run(train__steps=30, optim__lr=5e-3, eval__every=10)
    assert ran.outcome.status is Status.COMPLETED
    assert ran.outcome.reason == ""
    assert ran.outcome.step == 30
    val = ran.sink.curve("val/pred")
    assert list(val) == [0, 10, 20, 30]
    assert val[30] < val[0]


def test_same_seed_gives_the_same_bits(lab):
    changes = {"train__grad_accum_steps": 2, "eval__every": 2}
    first = lab.run("a", **changes).sink
    again = lab.run("b", **changes).sink
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        assert first.curve(key) == again.curve(key)
    assert first.curve("train/loss") != lab.run("c", train__seed=1).sink.curve("train/loss")


def test_same_bits_on_two_threads(lab):
    torch.set_num_threads(2)
    changes = {"train__steps": 2}
    assert lab.run("a", **changes).sink.curve("train/loss") == lab.run("b", **changes).sink.curve(
        "train/loss"
    )


def test_same_bits_whatever_was_drawn_before(lab):
    first = lab.run("a").sink.curve("train/loss")
    torch.rand(7)
    assert lab.run("b").sink.curve("train/loss") == first


def test_evaluation_and_checkpoints_leave_the_training_curve_alone(lab):
    plain = lab.run("a").sink.curve("train/loss")
    watched = lab.run("b", eval__every=1, train__checkpoint_every=2).sink.curve("train/loss")
    assert watched == plain


def test_metric_keys(lab):
    ran = lab.run(eval__every=3, data__ood_path=str(lab.path_of_others()))
    last = ran.sink.curve("train/loss")
    assert list(last) == [1, 2, 3, 4, 5, 6]
    line = next(m for m in ran.sink.of(Metrics) if m.step == 6 and "train/loss" in m.values)
    assert line.values.keys() >= STEP_KEYS | SPEED_KEYS
    assert all(math.isfinite(value) for value in line.values.values())
    assert line.values["train/loss"] == pytest.approx(
        line.values["train/pred"] + 0.02 * line.values["train/aux"]
    )
    for name in ("val", "ood"):
        scores = [m.values for m in ran.sink.of(Metrics) if f"{name}/loss" in m.values]
        assert [set(values) for values in scores] == [{f"{name}/{k}" for k in SCORE_KEYS}] * 3
    assert list(ran.sink.curve("sys/peak_mem_gib")) == [6]


def test_intervals_count_optimizer_steps_not_micro_batches(lab):
    ran = lab.run(
        train__steps=9,
        train__grad_accum_steps=2,
        train__log_every=3,
        train__checkpoint_every=4,
        eval__every=5,
    )
    assert list(ran.sink.curve("train/loss")) == [3, 6, 9]
    assert [a.step for a in ran.sink.artifacts] == [4, 8, 9]
    # before training, on its own interval, with each checkpoint, at the end
    assert list(ran.sink.curve("val/loss")) == [0, 4, 5, 8, 9]


def test_prepared_says_what_the_run_is(lab):
    prepared = lab.run(train__steps=50, train__max_wall_time_s=1e-9).sink.prepared
    assert prepared.device == "cpu"
    assert prepared.device_name
    assert prepared.precision == "fp32"
    assert prepared.params_total > prepared.params_active > 0
    terms = prepared.flops_matmul_per_token, prepared.flops_attention_per_token
    assert min(terms) > 0
    assert prepared.flops_per_token == sum(terms)
    assert prepared.flops_attention_causal_per_token == terms[1] / 2
    assert (prepared.peak_tflops, prepared.peak_source) == (1.0, "config")
    assert prepared.warmup_steps == 5
    assert prepared.expected_s > 0
    assert prepared.data_fingerprint
    assert prepared.data["train"]["windows"] > 0
    assert type(prepared.versions["torch"]) is str


def test_bf16_trains_on_fp32_parameters(lab):
    ran = lab.run(train__precision="bf16")
    assert ran.sink.prepared.precision == "bf16"
    losses = ran.sink.curve("train/loss")
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses != lab.run("fp32").sink.curve("train/loss")


def test_one_fixed_batch_can_be_memorised(lab):
    ran = lab.run(
        train__steps=150,
        train__batch_size=2,
        train__fixed_batches=1,
        train__log_every=50,
        model__aux_loss_weight=0.0,
        data__context_length=16,
        data__val_split=0.0,
        optim__lr=2e-2,
        optim__weight_decay=0.0,
    )
    losses = ran.sink.curve("train/loss")
    assert losses[150] < 0.02


def test_stop_request_interrupts_after_a_step_with_its_reason(lab):
    from_steps = lab.run(stop=lab.stop_after(3), train__steps=50)
    assert from_steps.outcome.status is Status.INTERRUPTED
    assert from_steps.outcome.step == 3
    assert from_steps.outcome.reason == "SIGTERM at step 3"
    assert not (from_steps.folder / "checkpoints").exists()


def test_stop_request_checkpoints_between_intervals(lab):
    ran = lab.run(stop=lab.stop_after(3), train__steps=50, train__checkpoint_every=20)
    assert [a.path for a in ran.sink.artifacts] == ["checkpoints/step-00000003"]
    assert ran.sink.artifacts[0].metadata == {"best": False}


def test_stop_request_before_the_first_step(lab):
    stop = threading.Event()
    stop.set()
    ran = lab.run(stop=stop, train__checkpoint_every=2, eval__every=1)
    assert (ran.outcome.status, ran.outcome.step) == (Status.INTERRUPTED, 0)
    assert ran.outcome.reason == "asked to stop at step 0"
    assert ran.sink.curve("val/loss") == {}
    resumed = lab.run(resume=True, train__checkpoint_every=2, eval__every=1)
    assert resumed.outcome.status is Status.COMPLETED
    assert resumed.sink.curve("train/loss") == lab.run("whole").sink.curve("train/loss")


def test_wall_clock_budget_completes_with_a_score_and_a_checkpoint(lab, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(loop, "monotonic", lambda: float(next(clock)))
    ran = lab.run(
        train__steps=50, train__max_wall_time_s=4, train__checkpoint_every=20, eval__every=20
    )
    assert ran.outcome.status is Status.COMPLETED
    assert ran.outcome.step == 3
    assert ran.outcome.reason == "wall-clock budget of 4 s reached at step 3"
    assert [a.step for a in ran.sink.artifacts] == [3]
    assert list(ran.sink.curve("val/loss")) == [0, 3]


def test_missing_device_is_a_config_error(lab):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match="cuda"):
        lab.run(train__device="cuda")


def test_missing_data_is_said_before_anything_is_emitted(lab):
    sink = lab.sink()
    with pytest.raises(DataError):
        lab.run(sink=sink, data__path=str(lab.root / "nowhere"))
    assert sink.events == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_has_one_name(lab, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(step, "accumulate_gradients", fail)
    with pytest.raises(OutOfMemory, match="batch_size=4") as caught:
        lab.run()
    assert "train.batch_size=2" in caught.value.next_command


def test_other_runtime_errors_are_not_out_of_memory(lab):
    with (
        pytest.raises(RuntimeError, match="shape"),
        memory_errors.explain_out_of_memory(lab.config()),
    ):
        raise RuntimeError("shape mismatch")


def test_real_host_out_of_memory_is_recognised(lab):
    with pytest.raises(OutOfMemory), memory_errors.explain_out_of_memory(lab.config()):
        torch.empty(2**60)


@pytest.mark.parametrize(
    "absurd",
    [
        {"model__hidden_size": 1_000_000},
        {"model__num_layers": 2**31 - 1},
        {"model__num_experts": 2**31 - 1},
        {"model__horizons": [2**31 - 1]},
        {"model__d_ff": 2**31 - 1},
    ],
)
def test_model_larger_than_the_machine_is_refused_before_it_is_built(lab, monkeypatch, absurd):
    monkeypatch.setattr(session, "build_forecaster", lambda *_, **__: pytest.fail("was built"))
    sink = lab.sink()
    with pytest.raises(OutOfMemory, match=r"parameters need .* GiB") as caught:
        lab.run(sink=sink, **absurd)
    assert "hidden_size" in caught.value.next_command
    assert sink.events == []


def test_unwritable_checkpoint_folder_is_an_error_before_the_first_step(lab):
    folder = lab.root / "run"
    folder.mkdir()
    (folder / "checkpoints").write_text("a file in the way")
    sink = lab.sink()
    with pytest.raises(TsxError, match="checkpoints"):
        lab.run(sink=sink, train__checkpoint_every=2)
    assert sink.events == []


def test_sink_that_fails_before_the_first_step_ends_the_run(lab):
    class Broken(type(lab.sink())):
        def emit(self, event):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        lab.run(sink=Broken())


def test_sink_that_fails_later_does_not_stop_training(lab):
    class Flaky(type(lab.sink())):
        def emit(self, event):
            if isinstance(event, Metrics) and event.step in {2, 3}:
                raise OSError(28, "No space left on device")
            super().emit(event)

    ran = lab.run(sink=Flaky())
    assert ran.outcome.status is Status.COMPLETED
    assert list(ran.sink.curve("train/loss")) == [1, 4, 5, 6]
    lost = [f for f in ran.sink.findings if f.kind == "telemetry-lost"]
    assert [f.evidence["lost"] for f in lost] == [2]
    assert lost[0].severity is Severity.WARNING


def test_rehearsal_prepares_and_trains_nothing(lab):
    sink = lab.sink()
    rehearse(lab.config(train__checkpoint_every=2), sink, home=lab.root / "home")
    assert isinstance(sink.events[0], RunPrepared)
    assert sink.of(Metrics) == []
    assert not list(lab.root.rglob("step-*"))


def test_config_lint_is_emitted(lab):
    ran = lab.run(optim__warmup_steps=10_000)
    lint = {f.module: f for f in ran.sink.findings if f.phase == "config"}
    assert lint["optim.warmup_steps"].evidence["steps"] == 6


def test_suspect_peak_is_said(lab):
    ran = lab.run(perf__mfu_peak_tflops=1979.0)
    assert [f.kind for f in ran.sink.findings] == ["peak-suspect"]


def test_a_run_faster_than_its_peak_says_once_that_the_peak_is_wrong(lab):
    sink = lab.run(train__steps=12, train__log_every=2, perf__mfu_peak_tflops=1e-9).sink
    (finding,) = [f for f in sink.findings if f.kind == "peak-suspect"]
    assert finding.severity is Severity.INFO
    assert finding.evidence["mfu"] > 1
    assert "the peak it is counted against is too low" in finding.cause
    assert len(sink.curve("train/mfu")) > 1


def test_a_device_that_cannot_be_measured_trains_without_mfu(lab, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such product here")

    monkeypatch.setattr("tsx.perf.peaks.measure_gemm_tflops", refuse)
    sink = lab.run(perf__mfu_peak_tflops=None).sink
    assert (sink.prepared.peak_tflops, sink.prepared.peak_source) == (0.0, "")
    assert sink.prepared.expected_s == 0.0
    assert ["no such product here" in f.cause for f in sink.findings] == [True]
    assert sink.curve("train/mfu") == {}
    assert sink.curve("train/tflops")
