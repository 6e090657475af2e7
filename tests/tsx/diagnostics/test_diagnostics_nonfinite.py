from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from registry.events import Severity
from tsx.diagnostics.nonfinite.bad_step import MAX_NAMES, describe, is_finite_step

pytestmark = pytest.mark.trainer


def make_model(layers=2):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
    model(torch.ones(2, 3)).sum().backward()
    return model


def look(model, *, loss=1.0, grad_norm=1.0, inputs=(), step=7, **options):
    return describe(
        model, loss=loss, grad_norm=grad_norm, inputs=inputs, step=step, time=1.5, **options
    )


@pytest.mark.parametrize(
    ("loss", "norm", "finite"),
    [(1.0, 2.0, True), (math.nan, 2.0, False), (1.0, math.inf, False), (-math.inf, 0.0, False)],
)
def test_finite_means_both(loss, norm, finite):
    assert is_finite_step(loss, norm) is finite


def test_the_batch_is_blamed_first():
    model = make_model()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    batch = np.array([[1.0, np.nan], [np.inf, 2.0]], dtype=np.float32)
    finding = look(model, loss=math.nan, inputs=[batch, np.zeros(3)])
    assert (finding.phase, finding.module) == ("data", "")
    assert finding.evidence["nonfinite_inputs"] == 2
    assert finding.evidence["nonfinite_parameters"] == {"0.weight": 1}


def test_bad_weights_are_blamed_before_the_forward_pass():
    model = make_model()
    with torch.no_grad():
        model[1].bias.fill_(math.inf)
    finding = look(model, loss=math.nan)
    assert (finding.phase, finding.module) == ("optimizer", "1.bias")
    assert finding.evidence["nonfinite_parameters"] == {"1.bias": 3}


def test_weights_that_are_bad_from_the_start_are_no_update_s_fault():
    model = make_model()
    with torch.no_grad():
        model[0].weight.fill_(math.inf)
    finding = look(model, loss=math.nan, step=1)
    assert (finding.phase, finding.module) == ("config", "0.weight")
    assert "update broke" not in finding.cause
    assert "model.init_std" in finding.fix


def test_a_bad_loss_from_good_weights_is_the_forward_pass():
    finding = look(make_model(), loss=-math.inf, grad_norm=math.nan)
    assert finding.phase == "forward"
    assert (finding.evidence["loss"], finding.evidence["grad_norm"]) == ("-Infinity", "NaN")


def test_a_bad_gradient_nearest_the_loss_is_named():
    model = make_model(3)
    model[0].weight.grad.fill_(math.nan)
    model[1].bias.grad[0] = math.inf
    finding = look(model, grad_norm=math.nan)
    assert (finding.phase, finding.module) == ("backward", "1.bias")
    assert list(finding.evidence["nonfinite_gradients"]) == ["1.bias", "0.weight"]
    assert finding.evidence["num_gradients"] == 6


def test_parameters_without_gradient_are_no_suspects():
    model = make_model()
    model[0].weight.grad = None
    finding = look(model, grad_norm=math.inf)
    assert finding.phase == "backward"
    assert finding.module == ""
    assert "total norm overflows" in finding.cause


def test_many_names_are_counted_and_some_listed():
    model = make_model(10)
    for parameter in model.parameters():
        parameter.grad.fill_(math.nan)
    evidence = look(model, grad_norm=math.nan).evidence
    assert len(evidence["nonfinite_gradients"]) == MAX_NAMES
    assert evidence["num_nonfinite_gradients"] == 20


def test_the_finding_is_strict_json():
    finding = look(make_model(), loss=math.nan, grad_norm=math.inf, severity=Severity.WARNING)
    assert b"null" not in msgspec.json.encode(finding)
    assert (finding.kind, finding.step, finding.time) == ("non-finite", 7, 1.5)
    assert finding.severity is Severity.WARNING


def test_equal_faults_are_equal_but_for_the_step():
    model = make_model()
    one, two = look(model, loss=math.nan), look(model, loss=math.inf)
    same = ("kind", "module", "op", "where", "cause")
    assert [getattr(one, name) for name in same] == [getattr(two, name) for name in same]
