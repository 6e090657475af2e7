"""Which attention kernel runs: forced, refused, found out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from tsx.config import AttnBackend, Precision, RunConfig, decode
from tsx.errors import ConfigError
from tsx.perf import attention_kernel
from tsx.perf.attention_kernel import find_kernel, forced_kernel

pytestmark = pytest.mark.trainer

CPU = torch.device("cpu")


def make_config(backend: str) -> RunConfig:
    return decode({"perf": {"attn_backend": backend}, "data": {"context_length": 64}})


def list_ops(backend: AttnBackend) -> list[str]:
    x = torch.randn(1, 2, 8, 4, requires_grad=True)
    with torch.profiler.profile(acc_events=True) as recorded, forced_kernel(backend):
        F.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()
    return [event.name for event in recorded.events()]


def test_what_is_forced_runs() -> None:
    assert any("flash_attention_for_cpu_backward" in op for op in list_ops(AttnBackend.FLASH))
    math = list_ops(AttnBackend.MATH)
    assert not any("flash" in op for op in math)
    assert any("_scaled_dot_product_attention_math" in op for op in math)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_what_runs_is_found_out(precision: Precision) -> None:
    assert find_kernel(make_config("auto"), CPU, precision) == "flash"
    assert find_kernel(make_config("flash"), CPU, precision) == "flash"
    assert find_kernel(make_config("math"), CPU, precision) == "math"


@pytest.mark.parametrize("backend", ["efficient", "cudnn"])
def test_what_cannot_run_here_is_refused(backend: str) -> None:
    message = rf"\[perf\] attn_backend='{backend}' cannot run on cpu.*: auto, flash, math$"
    with pytest.raises(ConfigError, match=message) as error:
        find_kernel(make_config(backend), CPU, Precision.FP32)
    assert error.value.next_command == "--set perf.attn_backend=auto"


def test_an_unanswered_question_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *a, **k: SDPBackend.ERROR.value)
    assert find_kernel(make_config("auto"), CPU, Precision.FP32) == ""
    monkeypatch.delattr(torch, "_fused_sdp_choice")
    assert find_kernel(make_config("auto"), CPU, Precision.FP32) == ""


def test_every_choice_of_the_config_has_a_kernel() -> None:
    assert {*attention_kernel.BACKENDS, AttnBackend.AUTO} == set(AttnBackend)
