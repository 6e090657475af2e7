"""The path of static shapes against the loop that is written to be read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tsx.model.experts import Experts
from tsx.model.grouped import gather_rows, grouped_linear
from tsx.model.router import Router, Routing

pytestmark = pytest.mark.trainer

# experts, top_k, tokens: many rows, one expert, all experts, fewer rows than experts
SIZES = [(4, 2, 33), (1, 1, 5), (4, 4, 10), (8, 1, 3)]


def make_experts(num_experts: int, hidden_size: int = 12, width: int = 7) -> Experts:
    torch.manual_seed(0)
    experts = Experts(num_experts, hidden_size, width)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return experts


def run_both(
    experts: Experts, router: Router, x_ND: Tensor, *, bf16: bool = False
) -> list[list[Tensor]]:
    """Return output and gradients of input, router, both stacks: of the path, then of the loop."""
    found = []
    for path in (experts, experts.run_loop):
        x = x_ND.clone().requires_grad_()
        inputs = (x, *router.parameters(), *experts.parameters())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y = path(x, router(x))
        weights = torch.arange(y.numel(), dtype=torch.float32).view_as(y).cos()
        found.append([y, *torch.autograd.grad((y.float() * weights).sum(), inputs)])
    return found


@pytest.mark.parametrize(("num_experts", "top_k", "tokens"), SIZES)
def test_values_and_gradients_equal_the_loops(num_experts: int, top_k: int, tokens: int) -> None:
    experts, router = make_experts(num_experts), Router(12, num_experts, top_k)
    ours, theirs = run_both(experts, router, torch.randn(tokens, 12))
    for got, want in zip(ours, theirs, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert ours[0].abs().max() > 0.01


@pytest.mark.parametrize(("num_experts", "top_k", "tokens"), SIZES)
def test_bf16_equals_the_loops(num_experts: int, top_k: int, tokens: int) -> None:
    experts, router = make_experts(num_experts), Router(12, num_experts, top_k)
    ours, theirs = run_both(experts, router, torch.randn(tokens, 12), bf16=True)
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    for got, want in zip(ours, theirs, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    experts, router = make_experts(3), Router(12, 3, 1)
    router.proj.weight.data.zero_()
    router.proj.weight.data[1] = 1.0
    x_ND = torch.rand(6, 12) + 0.1  # positive: expert 1 has the largest logit on each token
    assert router(x_ND).counts_E.tolist() == [0, 6, 0]
    experts(x_ND, router(x_ND)).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert parameter.grad[[0, 2]].eq(0).all()
        assert parameter.grad[1].abs().max() > 0


def test_grouped_product_by_hand() -> None:
    weight_EOI = torch.tensor([[[1.0, 2.0]], [[9.0, 9.0]], [[3.0, -1.0]]], requires_grad=True)
    x_RI = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 5.0]], requires_grad=True)
    y_RO = grouped_linear(x_RI, weight_EOI, torch.tensor([2, 0, 1]))
    assert y_RO.tolist() == [[3.0], [2.0], [-5.0]]
    (y_RO * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    assert x_RI.grad is not None
    assert weight_EOI.grad is not None
    assert x_RI.grad.tolist() == [[1.0, 2.0], [10.0, 20.0], [300.0, -100.0]]
    assert weight_EOI.grad.tolist() == [[[21.0, 1.0]], [[0.0, 0.0]], [[0.0, 500.0]]]


def test_a_row_gathers_the_gradients_of_all_its_copies() -> None:
    x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    index_R = torch.tensor([1, 0, 0, 1])  # copies of row 0 are at 1, 2 and those of row 1 at 0, 3
    y = gather_rows(x, index_R, torch.tensor([1, 2, 0, 3]), 2)
    assert y.tolist() == [[2.0], [1.0], [1.0], [2.0]]
    (y * torch.tensor([[1.0], [10.0], [100.0], [1000.0]])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[110.0], [1001.0]]


def test_shapes_are_known_without_values() -> None:
    """On the meta device nothing is read: not the counts, not the routing."""
    experts = make_experts(4).to("meta")
    shape = {"device": "meta", "dtype": torch.int64}
    routing = Routing(
        probs_NE=torch.empty(9, 4, device="meta"),
        weights_NK=torch.empty(9, 2, device="meta"),
        experts_NK=torch.empty(9, 2, **shape),
        counts_E=torch.empty(4, **shape),
    )
    y_ND = experts(torch.empty(9, 12, device="meta", requires_grad=True), routing)
    assert y_ND.shape == (9, 12)
    y_ND.sum().backward()
    assert experts.down_EDX.grad is not None
    assert experts.down_EDX.grad.shape == experts.down_EDX.shape


@pytest.mark.parametrize("op", [torch.ops.tsx.grouped_linear])
def test_torch_accepts_the_operation(op: object) -> None:
    """torch's own checks: schema, fake shapes, autograd registration."""
    inputs = (
        torch.randn(5, 4, requires_grad=True),
        torch.randn(3, 6, 4, requires_grad=True),
        torch.tensor([2, 0, 3]),
    )
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, inputs, test_utils=checks)
