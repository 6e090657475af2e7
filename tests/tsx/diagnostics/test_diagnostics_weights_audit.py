"""Classes by name, what stands still and why, what ran away: from tensors alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from registry.events import Severity
from tsx.diagnostics.weights.audit import AdamFacts, measure, summarise
from tsx.diagnostics.weights.findings import list_findings
from tsx.diagnostics.weights.roles import find_role, iter_parts

pytestmark = pytest.mark.trainer

ADAM = AdamFacts(lr=1e-3, peak_lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0)


class Held:
    """Weights in memory, with moments where they are given."""

    def __init__(self, tensors, *, step=None, moments=None, adam=None):
        self.label = "held"
        self.step = step
        self.adam = adam
        self.tensors = tensors
        self.moments = moments or {}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def get(self, name):
        return self.tensors[name]

    def find_moment(self, slot, name):
        return self.moments.get(f"{slot}.{name}")


def judge(now, before=None, **options):
    weights = Held(now, **options)
    other = None if before is None else Held(before, step=0)
    return list_findings(measure(weights, other), weights, other, time=0.0)


def make_moments(name, first, second, steps=100.0):
    return {
        f"exp_avg.{name}": first,
        f"exp_avg_sq.{name}": second,
        f"step.{name}": torch.tensor(steps),
    }


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) / 4


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("blocks.0.attention_norm.weight", (8,), "RMSNorm weights"),
        ("model.layers.0.input_layernorm.weight", (8,), "RMSNorm weights"),
        ("bert.LayerNorm.bias", (8,), "LayerNorm biases"),
        ("model.layers.0.ffn_layer.gate.weight", (4, 8), "router weights"),
        ("blocks.0.moe.router.proj.weight", (4, 8), "router weights"),
        ("model.layers.0.ffn_layer.experts.3.up_proj.weight", (4, 8), "routed expert weights"),
        ("model.layers.0.ffn_layer.shared_expert.up_proj.weight", (4, 8), "shared expert weights"),
        ("model.layers.0.self_attn.k_proj.bias", (8,), "attention k biases"),
        ("h.0.attn.o_proj.weight", (8, 8), "attention o weights"),
        ("h.0.attn.q_norm.weight", (8,), "RMSNorm weights"),
        ("transformer.wte.weight", (9, 8), "embedding weights"),
        ("lm_head.weight", (9, 8), "head weights"),
        ("layers.5.seq_layer.mamba.conv1d.weight", (8, 1, 4), "conv1d weights"),
        ("bn1.running_mean", (8,), "running statistics"),
        ("weight", (8, 8), "weights"),
    ],
)
def test_a_name_tells_the_class(name, shape, role):
    shapes = {name: shape, "bert.LayerNorm.weight": (8,)}
    assert " ".join(find_role(name, shapes)).strip() == role


def test_real_modules_have_their_neighbours():
    model = nn.ModuleDict({"bn": nn.BatchNorm2d(3), "attn": nn.MultiheadAttention(6, 2)})
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    roles = [part.role for part in iter_parts(shapes)]
    assert "BatchNorm weights" in roles
    assert [f"attention {letter} weights" for letter in "qkv"] == [
        role for role in roles if role.startswith("attention") and role.endswith("weights")
    ][:3]


def test_one_expert_of_a_stack_and_one_third_of_a_matrix_stand_alone():
    before = {"moe.experts.up_EXD": draw(3, 4, 5), "attention.qkv.weight": draw(12, 4)}
    now = {name: tensor + 0.01 for name, tensor in before.items()}
    now["moe.experts.up_EXD"][1] = before["moe.experts.up_EXD"][1]
    now["attention.qkv.weight"][4:8] = before["attention.qkv.weight"][4:8]
    found = judge(now, before)
    assert {finding.module for finding in found} == {
        "moe.experts.up_EXD[1]",
        "attention.qkv.weight[k]",
    }
    assert all(finding.evidence["mechanism"] == "unknown" for finding in found)


def test_an_expert_without_tokens_is_told_by_its_moments():
    name = "moe.experts.up_EXD"
    before = {name: draw(3, 4, 5), "x.weight": draw(4, 4)}
    now = {name: before[name] + 0.01, "x.weight": before["x.weight"] + 0.01}
    now[name][2] = before[name][2]
    first = torch.ones(3, 4, 5)
    first[2] = 0.0
    (found,) = judge(now, before, step=9, moments=make_moments(name, first, first), adam=ADAM)
    assert found.evidence["mechanism"] == "no-tokens"
    assert found.severity is Severity.INFO
    assert found.step == 9


@pytest.mark.parametrize(
    ("moments", "adam", "mechanism"),
    [
        ({}, ADAM, "not-in-optimizer"),
        (make_moments("norm.weight", torch.zeros(4), torch.zeros(4)), ADAM, "zero-gradient"),
        (make_moments("norm.weight", torch.ones(4), torch.ones(4)), ADAM, "update-underflow"),
        (
            make_moments("norm.weight", torch.ones(4), torch.ones(4)),
            AdamFacts(0.0, 0.1, 0.9, 0.95, 1e-8, 0.0),
            "lr-zero",
        ),
        (
            make_moments("norm.weight", torch.ones(4), torch.ones(4)),
            AdamFacts(0.1, 0.1, 0.9, 0.95, 1e-8, 0.0),
            "overwritten",
        ),
        ({}, None, "update-underflow"),
    ],
)
def test_why_a_bf16_norm_stands(moments, adam, mechanism):
    before = {"norm.weight": torch.ones(4).bfloat16(), "x.weight": draw(4, 4)}
    now = before | {"x.weight": before["x.weight"] + 0.01}
    (found,) = judge(now, before, step=100, moments=moments, adam=adam)
    assert found.evidence["mechanism"] == mechanism
    assert found.evidence["value"] == 1.0
    assert "1 RMSNorm weights unchanged after 100 steps: bit for bit 1.0" in found.cause


def test_in_fp32_the_same_step_moves_and_is_no_underflow():
    before = {"norm.weight": torch.ones(4), "x.weight": draw(4, 4)}
    now = before | {"x.weight": before["x.weight"] + 0.01}
    moments = make_moments("norm.weight", torch.ones(4), torch.ones(4))
    (found,) = judge(now, before, moments=moments, adam=ADAM)
    assert found.evidence["mechanism"] == "overwritten"


def test_what_ran_away_and_what_is_nearly_gone():
    before = {"a.weight": draw(8, 8), "b.weight": 0.01 * draw(8, 8), "norm.weight": torch.ones(8)}
    now = {
        "a.weight": before["a.weight"] * -3,
        "b.weight": before["b.weight"] * 9,
        "norm.weight": torch.full((8,), 0.05),
    }
    found = {finding.module: finding for finding in judge(now, before)}
    assert found["a.weight"].evidence["mechanism"] == "rate-too-high"
    assert found["a.weight"].evidence["largest_change"] == pytest.approx(4.0)
    assert found["b.weight"].severity is Severity.INFO  # it began small
    assert found["norm.weight"].evidence["mechanism"] == "shrunk"


def test_what_began_at_zero_has_no_relative_change():
    before = {"a.bias": torch.zeros(4), "a.weight": draw(4, 4)}
    now = {"a.bias": torch.ones(4), "a.weight": before["a.weight"] + 0.01}
    (biases, weights) = summarise(measure(Held(now), Held(before)))
    assert (biases.median_change, biases.changed_share) == (None, 1.0)
    assert weights.largest_change is not None
    assert judge(now, before) == []


def test_a_part_of_a_tensor_that_moved():
    before = {"emb.weight": draw(10, 4), "x.weight": draw(4, 4)}
    now = {"emb.weight": before["emb.weight"].clone(), "x.weight": before["x.weight"] + 0.01}
    now["emb.weight"][:4] += 0.01
    (found,) = judge(now, before)
    assert (found.evidence["mechanism"], found.severity) == ("partly", Severity.INFO)
    assert found.evidence["changed_share"] == 0.4
    low = [{name: tensor.bfloat16() for name, tensor in state.items()} for state in (now, before)]
    assert judge(*low)[0].severity is Severity.WARNING


def test_one_file_tells_sizes_zeros_and_numbers_that_are_not_finite():
    now = {
        "moe.experts.up_EXD": torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0)),
        "dead.weight": 1e-6 * draw(8, 8),
        "zero.weight": torch.zeros(8, 8),
        "zero.bias": torch.zeros(8),
        "bad.weight": torch.full((2, 2), math.inf),
        "emb.weight": 100 * draw(8, 8),
    }
    found = {(finding.module, finding.evidence["mechanism"]) for finding in judge(now)}
    assert found == {
        ("moe.experts.up_EXD[0]", "no-fan-in"),
        ("dead.weight", "dead"),
        ("zero.weight", "all-zero"),
        ("bad.weight", "nonfinite-parameter"),
    }


def test_the_coarser_dtype_decides_what_changed():
    before = {"x.weight": draw(8, 8), "norm.weight": torch.ones(8)}
    now = {
        "x.weight": (before["x.weight"] + 0.1).bfloat16(),
        "norm.weight": torch.ones(8).bfloat16(),
    }
    kinds = {finding.kind: finding for finding in judge(now, before)}
    assert kinds["frozen-param"].evidence["class"] == "RMSNorm weights"
    assert kinds["dtype-mismatch"].evidence["dtype"] == "bfloat16"


def test_empty_and_scalar_tensors_are_no_trouble():
    state = {"a.weight": torch.zeros(0, 3), "b": torch.tensor(2.0), "c.weight": draw(3, 3)}
    moved = state | {"c.weight": state["c.weight"] + 0.1}
    (found,) = judge(moved, state)
    assert found.module == "b"
    assert [row.elements for row in summarise(measure(Held(state), None))] == [0, 1, 9]


def test_the_same_model_twice():
    state = {"a.weight": draw(3, 3)}
    assert judge(state, state)[0].severity is Severity.INFO
    trained = judge(state, state, step=700)[0]  # beside step 0
    assert trained.severity is Severity.WARNING
    assert "nothing changed" in trained.cause
