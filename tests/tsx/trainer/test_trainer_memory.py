"""Predicted and measured memory, and a budget that ends a run as out of memory and nothing else."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tsx.config import Precision, RunConfig, decode
from tsx.errors import ConfigError, OutOfMemory
from tsx.perf.budget import MemoryBudget
from tsx.perf.footprint import predict_peak_gib
from tsx.perf.memory import GIB
from tsx.trainer.memory_errors import check_capacity, explain_out_of_memory

pytestmark = pytest.mark.trainer

CPU = torch.device("cpu")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux limits a host")

# A run in a process of its own, as the worker starts it; prints how it ended.
RUN = """
import json, sys, threading
from pathlib import Path
from tsx.perf.allocator import keep_freed_memory
keep_freed_memory()
from registry.events import Metrics
from tsx.config import decode
from tsx.errors import OutOfMemory
from tsx.trainer.loop import train

class Sink:
    values = {}
    def emit(self, event):
        if isinstance(event, Metrics):
            self.values |= event.values

folder, sink = Path(sys.argv[2]), Sink()
try:
    train(decode(json.loads(sys.argv[1])), sink, folder=folder, home=folder / "home",
          stop=threading.Event())
    added = sink.values["sys/peak_mem_gib"] - sink.values["sys/base_mem_gib"]
    print(json.dumps({"added": added}))
except OutOfMemory as error:
    print(json.dumps({"oom": str(error), "exit": error.exit_code, "next": error.next_command}))
"""


def make(lab: Any, *, batch: int, points: int, **model: int) -> dict[str, Any]:
    """Return a plain config over the lab's series."""
    return {
        "data": {"path": str(lab.path), "context_length": points, "stride": 4},
        "model": {"num_heads": 4, **model},
        "train": {"steps": 2, "batch_size": batch, "device": "cpu"},
        "eval": {"every": 0},
        "perf": {"mfu_peak_tflops": 1.0, "sample_every_s": 0.0},
    }


def run_child(lab: Any, raw: dict[str, Any]) -> dict[str, Any]:
    """Train in a process of its own; whatever its end, it must be told in order."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(raw), str(lab.root)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


SIZES = [
    {"batch": 128, "points": 64, "hidden_size": 64, "num_layers": 2, "d_ff": 256},
    {"batch": 16, "points": 64, "hidden_size": 192, "num_layers": 3},
    {"batch": 48, "points": 64, "hidden_size": 64, "num_layers": 6, "top_k": 4, "d_expert": 128},
]


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("size", SIZES)
def test_prediction_is_within_a_quarter_of_what_was_measured(lab, size) -> None:
    raw = make(lab, **size)
    measured = run_child(lab, raw)["added"]
    assert measured > 0.2  # a size at which the model is what counts
    assert predict_peak_gib(decode(raw)) == pytest.approx(measured, rel=0.25)


@pytest.mark.slow
@on_linux
def test_a_budget_ends_as_out_of_memory_or_not_at_all(lab) -> None:
    """Around the limit too, where anything may be what does not fit."""
    raw = make(lab, **SIZES[0])
    needed = predict_peak_gib(decode(raw))
    ends = []
    for share in (0.1, 0.4, 0.8, 0.9, 1.0, 1.5):
        raw["perf"]["memory_budget_gib"] = share * needed
        found = run_child(lab, raw)
        ends.append("oom" in found)
        if "oom" in found:
            assert f"memory_budget_gib={share * needed:g}" in found["oom"]
            assert "batch_size=128" in found["oom"]
            assert (found["exit"], found["next"].split()[1]) == (5, "train.batch_size=64")
    assert ends[:2] == [True, True]
    assert ends[-1] is False


def test_prediction_grows_with_what_it_should() -> None:
    def predict(**changes: dict[str, Any]) -> float:
        return predict_peak_gib(decode({"data": {"context_length": 512}, **changes}))

    base = predict()
    assert predict(train={"batch_size": 64}) > 1.8 * base - 1.0
    assert predict(data={"context_length": 1024}) > base
    assert predict(train={"grad_accum_steps": 8}) == base
    assert predict(model={"num_layers": 24}) > 1.5 * base
    assert predict(model={"patch_len": 32}) < base
    assert predict_peak_gib(RunConfig(), Precision.BF16) < predict_peak_gib(RunConfig())


def test_prediction_of_a_step_without_activations_is_the_state() -> None:
    raw = {"data": {"context_length": 1}, "train": {"batch_size": 1}}
    state = 16 * 113_352_192 / GIB
    assert predict_peak_gib(decode(raw)) == pytest.approx(1.15 * state + 0.03, rel=0.01)


@on_linux
def test_a_budget_is_lifted_at_the_end() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with MemoryBudget(0.125) as budget:
        budget.apply(CPU)
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] < 2**40
        with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
            torch.empty(1 << 28)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.empty(1 << 28)


def test_no_budget_limits_nothing() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with MemoryBudget(None) as budget:
        budget.apply(CPU)
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_gpus_budget_is_a_share_of_its_memory(monkeypatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GIB)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * GIB)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    with MemoryBudget(16) as budget:
        budget.apply(torch.device("cuda", 0))
    assert shares == [0.25, 1.0]


def test_a_device_that_cannot_be_limited_is_said() -> None:
    message = r"memory_budget_gib=2 cannot be held to on mps"
    with pytest.raises(ConfigError, match=message), MemoryBudget(2) as budget:
        budget.apply(torch.device("mps"))


def test_a_model_beyond_the_budget_is_never_built() -> None:
    config = decode({"perf": {"memory_budget_gib": 0.5}})
    with pytest.raises(OutOfMemory, match=r"113,352,192 .*memory_budget_gib=0\.5 on cpu has 0\.5"):
        check_capacity(config, CPU)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_every_name_of_it_is_one_error(error) -> None:
    config = decode({"perf": {"memory_budget_gib": 3}})
    with (
        pytest.raises(OutOfMemory, match=r"batch_size=32.*memory_budget_gib=3"),
        explain_out_of_memory(config),
    ):
        raise error
