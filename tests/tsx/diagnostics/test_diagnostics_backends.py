"""Which kernel attention ran in, and why not the one that was expected."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from registry.events import Severity
from tests.faults.watched import WatchedLines
from tsx.diagnostics.resources import backends

pytestmark = pytest.mark.trainer


class Attention(nn.Module):
    def __init__(self, **asked) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 24)
        self.asked = asked

    def forward(self, x):
        q, k, v = self.proj(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, **self.asked)


def watch_once(model):
    """Take one step and return what was said of attention."""
    run, optimizer = WatchedLines(), torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer)
    loss = run.compute(lambda x: model(x).square().mean(), torch.randn(2, 6, 8))
    loss.backward()
    optimizer.step()
    run.close()
    return [finding for finding in run.findings if finding.kind == backends.KIND.name]


def test_a_plain_call_and_a_mask_that_the_kernel_takes_are_fine():
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    for asked in ({"is_causal": True}, {"attn_mask": mask}, {}):
        assert watch_once(Attention(**asked)) == []


def test_an_odd_head_that_no_kernel_takes_is_no_finding(monkeypatch):
    monkeypatch.setattr(backends, "predict", lambda *args, **kwargs: "math")
    assert watch_once(Attention(dropout_p=0.1)) == []


def test_weights_that_are_asked_for_are_a_remark():
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.inner(x, x, x)[0]

    (finding,) = watch_once(Asking())
    assert finding.evidence["mechanism"] == "weights-asked"
    assert (finding.severity, finding.module) == (Severity.INFO, "inner")


@pytest.mark.parametrize(
    ("mask", "mechanism"),
    [
        (torch.ones(6, 6, dtype=torch.bool).tril(), "mask-is-causal"),
        (torch.full((1, 1, 6, 6), -torch.inf).triu(1), "mask-is-causal"),
        (torch.ones(6, 6, dtype=torch.bool).tril(1), "mask-not-null"),
        (torch.ones(2, 1, 1, 6, dtype=torch.bool), "mask-not-null"),
    ],
)
def test_a_mask_that_is_causal_is_told_from_one_that_is_needed(monkeypatch, mask, mechanism):
    def predict(given, *, mask, dropout):
        return "cudnn" if mask is None else "flash"  # as on a device whose best kernel has no mask

    monkeypatch.setattr(backends, "predict", predict)
    (finding,) = watch_once(Attention(attn_mask=mask))
    assert finding.evidence["mechanism"] == mechanism
    assert (finding.evidence["ran"], finding.evidence["expected"]) == ("flash", "cudnn")


def test_what_torch_would_take_is_its_own_word():
    x = torch.randn(1, 2, 6, 4)
    given = {"query": x, "key": x, "value": x}
    assert backends.predict(given, mask=None, dropout=0.0) == "flash"
    assert backends.predict(given, mask=None, dropout=0.1) == "math"
    assert backends.predict(dict.fromkeys(given), mask=None, dropout=0.0) == ""


def test_a_loss_of_a_lost_kernel_is_a_warning_on_an_accelerator_only():
    said = []
    detector = backends.AttentionBackend.__new__(backends.AttentionBackend)
    detector.scene = type("Scene", (), {"report": staticmethod(partial(_note, said))})()
    seen = type("Seen", (), {"module": "a", "where": "b.py:1"})()
    for device in ("cpu", "cuda"):
        for mechanism in ("mask-wants-gradient", "mask-is-causal", "weights-asked"):
            detector._tell(seen, mechanism, {"device": device, "ran": "math"}, 1)
    assert said == [Severity.INFO] * 3 + [Severity.WARNING] * 2 + [Severity.INFO]


def _note(said, *args, severity, **rest):
    said.append(severity)
