"""Profiles, launch counts, forced kernels and what speeds leave out."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from registry.events import RunPrepared, Severity
from tsx.errors import ConfigError
from tsx.perf import profile
from tsx.trainer import instruments

pytestmark = pytest.mark.trainer


def test_the_21st_step_is_profiled(lab) -> None:
    ran = lab.run(perf__profile=True, train__steps=23)
    path = ran.folder / "profiler" / "chrome_trace.json"
    trace = json.loads(path.read_text(encoding="utf-8"))
    assert [p.name for p in path.parent.iterdir()] == ["chrome_trace.json"]
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert "aten::mm" in names
    assert any("step.py" in name and "take_step" in name for name in names)  # Python stacks
    (artifact,) = ran.sink.artifacts
    assert (artifact.kind, artifact.step, artifact.path) == ("trace", 21, instruments.TRACE)
    assert artifact.size_bytes == path.stat().st_size
    rows = artifact.metadata["kernels"]
    assert len(rows) == profile.TOP
    assert set(rows[0]) == {"name", "calls", "total_ms", "share_pct"}
    assert [row["total_ms"] for row in rows] == sorted((r["total_ms"] for r in rows), reverse=True)
    assert "aten::mm" in {row["name"] for row in rows}
    assert not any(".py(" in row["name"] for row in rows)
    assert 0 < sum(row["share_pct"] for row in rows) <= 100.0001
    (finding,) = ran.sink.findings
    assert (finding.kind, finding.severity) == ("profile", Severity.INFO)
    # Steps 11 to 21 ran under the profiler or its warm-up, detectors traced 4 and 8: no speed of
    # theirs is told.
    assert sorted(ran.sink.curve("train/step_time_ms")) == [3, 5, 6, 7, 9, 10, 22, 23]


def test_a_short_run_says_that_nothing_was_profiled(lab) -> None:
    ran = lab.run(perf__profile=True, train__steps=20)
    (finding,) = ran.sink.findings
    assert finding.cause.startswith("nothing was profiled")
    assert "21" in finding.fix
    assert ran.sink.artifacts == []
    assert not (ran.folder / "profiler").exists()


def test_a_trace_that_cannot_be_written_stops_nothing(lab) -> None:
    (lab.root / "run").mkdir()
    (lab.root / "run" / "profiler").write_text("in the way")
    ran = lab.run(perf__profile=True, train__steps=22)
    assert ran.outcome.step == 22
    (finding,) = ran.sink.findings
    assert (finding.kind, finding.severity) == ("profile", Severity.WARNING)


def test_a_cpu_has_no_launches_to_count(lab) -> None:
    ran = lab.run(perf__count_kernels=True)
    (finding,) = ran.sink.findings
    assert finding.kind == "kernel-launches"
    assert ran.sink.curve("train/kernel_launches_per_step") == {}
    assert ran.sink.curve("train/step_time_ms")


def test_launches_are_told_from_what_else_is_recorded() -> None:
    names = ["cudaLaunchKernel"] * 3 + ["cudaLaunchKernelExC", "cuLaunchKernel", "aten::mm"]
    names += ["cudaMemcpyAsync", "cudaGraphLaunch", "cudaDeviceSynchronize"]
    assert profile.count_launches(SimpleNamespace(name=name) for name in names) == 6


def test_a_gpus_table_is_of_its_kernels() -> None:
    def event(name: str, device: float, host: float, **more: bool) -> SimpleNamespace:
        times = {"self_device_time_total": device, "self_cpu_time_total": host}
        return SimpleNamespace(name=name, **times, **more)

    events = [event("gemm" * 100, 3000.0, 0.0), event("gemm" * 100, 1000.0, 0.0)]
    events += [event("aten::mm", 0.0, 50.0), event("flash", 1000.0, 0.0)]
    events += [event("model.py(1): f", 0.0, 9e9, is_python_function=True)]
    kernels = profile.list_top_kernels(events, is_cuda=True)
    assert [(len(k.name), k.calls, k.total_ms, k.share_pct) for k in kernels] == [
        (profile.MAX_NAME, 2, 4.0, 80.0),
        (5, 1, 1.0, 20.0),
    ]
    host = profile.list_top_kernels(events, is_cuda=False)
    assert [k.name for k in host] == ["aten::mm"]


def test_counted_steps_have_their_launches_and_no_speed(lab, monkeypatch) -> None:
    """The counter itself needs CUDA; which steps it sees and what they report does not."""

    class Counter:
        launches = 77

        def __enter__(self):
            return self

        def __exit__(self, *details):
            pass

    monkeypatch.setattr(instruments, "LaunchCounter", Counter)
    monkeypatch.setattr(instruments, "can_count", lambda device: True)
    ran = lab.run(perf__count_kernels=True, train__steps=24)
    assert ran.sink.curve("train/kernel_launches_per_step") == {3: 77.0, 13: 77.0, 23: 77.0}
    speeds = set(ran.sink.curve("train/step_time_ms"))
    assert speeds == set(range(3, 25)) - {3, 13, 23} - {4, 8, 16}  # those are traced
    assert ran.sink.findings == []


@pytest.mark.parametrize("backend", ["auto", "flash", "math"])
def test_the_kernel_is_recorded(lab, backend) -> None:
    sink = lab.run(perf__attn_backend=backend, train__steps=2).sink
    (prepared,) = sink.of(RunPrepared)
    assert prepared.attention == ("flash" if backend == "auto" else backend)


def test_kernels_give_the_same_loss(lab) -> None:
    flash, math = (
        lab.run(name, perf__attn_backend=name).sink.curve("train/loss")
        for name in ("flash", "math")
    )
    assert flash == pytest.approx(math, rel=1e-5)
    assert torch.backends.cuda.flash_sdp_enabled()  # what was forced is forced no more


def test_a_kernel_that_cannot_run_here_leaves_no_trace(lab) -> None:
    sink = lab.sink()
    with pytest.raises(ConfigError, match="attn_backend='cudnn' cannot run on cpu"):
        lab.run(sink=sink, perf__attn_backend="cudnn")
    assert sink.events == []


def test_model_time_is_what_data_leaves(lab) -> None:
    sink = lab.run().sink
    data, model, step = (sink.curve(f"train/{n}_time_ms") for n in ("data", "model", "step"))
    assert data
    for at, total in step.items():
        assert data[at] + model[at] == pytest.approx(total)
