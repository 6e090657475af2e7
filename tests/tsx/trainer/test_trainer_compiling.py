"""perf.compile: whole blocks, no recompiles, the same numbers, and clear words where it cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tsx.config import CompileMode, Precision, RunConfig, decode
from tsx.data.stream import BatchStream
from tsx.data.windows import Batch
from tsx.errors import ConfigError, TsxError
from tsx.model.forecaster import build_forecaster
from tsx.trainer import compiling
from tsx.trainer.compiling import check_can_compile, eager, explain_compile_errors
from tsx.trainer.objective import accumulate_gradients, move_batch, run_forward

# torch's compiler meets warnings of its own and hides them by hooks that an error never reaches.
pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def batches(lab) -> list[Batch]:
    from tsx.data.corpus import open_corpus

    windows = open_corpus(lab.config().data, home=lab.root / "home").train
    stream = BatchStream(windows, batch_size=4, seed=0)
    return [stream.next_batch() for _ in range(5)]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_one_graph_for_all_blocks_and_none_after_the_first_step(lab, batches, precision) -> None:
    """Routing differs from step to step; a graph break would raise, a recompile would count."""
    config = lab.config(model__num_experts=4, model__top_k=2, model__num_layers=3).model
    plain, model = (build_forecaster(config, seed=0) for _ in range(2))
    counter = CompileCounterWithBackend("aot_eager")
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True, dynamic=False)
    frames = []
    for batch in batches:
        losses = [accumulate_gradients(m, [batch], precision, CPU) for m in (plain, model)]
        torch.testing.assert_close(losses[1].pred, losses[0].pred, rtol=1e-5, atol=1e-6)
        frames.append(counter.frame_count)
        with eager(), torch.no_grad():  # scoring, in eval mode and at another batch size
            data = move_batch(batches[0], CPU)
            run_forward(model.eval(), data, precision)
        model.train()
    assert frames == [1] * 5
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        tolerance = 1e-5 if precision is Precision.FP32 else 2e-2
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)
    assert list(model.state_dict()) == list(plain.state_dict())


def make_config(**perf: object) -> RunConfig:
    return decode({"perf": {"compile": True, **perf}})


def test_no_compiler_is_said_before_step_1(lab, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"true.*'no-such-compiler'.*apt install") as error:
        lab.run(perf__compile=True)
    assert error.value.next_command == "--set perf.compile=false"


def test_no_triton_is_said_for_cuda(monkeypatch) -> None:
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="triton"):
        check_can_compile(make_config(), torch.device("cuda", 0))


def test_without_compile_nothing_is_looked_for(monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_can_compile(decode({}), CPU)


def test_what_the_compiler_says_comes_with_a_way_out() -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("Python.h: no such file")

    with (
        pytest.raises(TsxError, match=r"compiling the model failed.*") as error,
        explain_compile_errors(),
    ):
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(2))
    assert "Python.h" in str(error.value)
    assert error.value.next_command == "--set perf.compile=false"


def test_the_mode_is_passed_on(monkeypatch) -> None:
    model = build_forecaster(decode({"model": {"hidden_size": 16, "num_heads": 2}}).model, seed=0)
    asked = []
    for block in model.blocks:
        monkeypatch.setattr(block, "compile", lambda **options: asked.append(options))
    compiling.compile_blocks(model, CompileMode.MAX_AUTOTUNE)
    assert asked == [{"mode": "max-autotune", "fullgraph": True, "dynamic": False}] * 12


@pytest.mark.slow
@pytest.mark.skipif(compiling.find_cpp_compiler() is None, reason="no C++ compiler here")
def test_a_compiled_run_is_the_eager_one(lab, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(lab.root / "cache"))
    changes = {"eval__every": 2, "train__checkpoint_every": 3, "train__grad_accum_steps": 2}
    plain = lab.run("plain", **changes).sink
    ran = lab.run("compiled", perf__compile=True, **changes)
    for key in ("train/loss", "val/pred", "train/grad_norm"):
        ours, theirs = ran.sink.curve(key), plain.curve(key)
        assert ours == pytest.approx(theirs, rel=1e-4), key
    kinds = [(f.kind, f.severity) for f in ran.sink.findings]
    assert kinds == [("compile", "info")] * 2
    took = ran.sink.findings[1].evidence["seconds"]
    assert took > 0
    # The first two steps are not in the speeds: the compiler worked in step 1.
    speeds = ran.sink.curve("train/step_time_ms")
    assert min(speeds) == 3
    assert max(speeds.values()) < 1000 * took
    names = [os.path.basename(a.path) for a in ran.sink.artifacts]
    assert names == ["step-00000003", "step-00000006"]
    resumed = lab.run("compiled", resume=True, train__steps=7, **changes)  # by an eager run
    assert resumed.outcome.step == 7
