"""What a forecaster may and may not depend on, how it starts, and what it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tsx.config import ModelConfig
from tsx.model.forecaster import Forecaster, build_forecaster
from tsx.model.init import init_parameters
from tsx.model.losses import forecast_loss

pytestmark = pytest.mark.trainer

Make = Callable[..., Forecaster]
Draw = Callable[..., torch.Tensor]


@pytest.mark.parametrize("patch_len", [1, 4])
def test_nothing_sees_the_future(make_tiny: Make, series: Draw, patch_len: int) -> None:
    # Every expert gets every token, so each product has one shape and equal rows equal bits. (With
    # fewer, a token that changes its expert changes the height of a product, and with it the last
    # bit of its other rows.)
    model = make_tiny(patch_len=patch_len, top_k=4)
    window = series(2, 24)
    with torch.no_grad():
        before = model(window).predictions
        for point in (0, 9, 23):
            changed = window.clone()
            changed[0, point] += 10.0
            after = model(changed).predictions
            token = point // patch_len
            for a, b in zip(before, after, strict=True):
                assert torch.equal(a[:, :token], b[:, :token])
                assert torch.equal(a[1], b[1]), "another window of the batch moved"
                assert not torch.equal(a[0, token], b[0, token])


@pytest.mark.parametrize("patch_len", [1, 4])
def test_no_gradient_comes_from_the_future(make_tiny: Make, series: Draw, patch_len: int) -> None:
    model = make_tiny(patch_len=patch_len)
    for token in (0, 2, 5):
        window = series(2, 24).requires_grad_()
        sum(p[0, token].sum() for p in model(window).predictions).backward()
        assert window.grad is not None
        seen = (token + 1) * patch_len
        assert (window.grad[0, :seen] != 0).all()
        assert (window.grad[0, seen:] == 0).all()
        assert (window.grad[1] == 0).all()


def test_a_window_does_not_depend_on_its_batch(make_tiny: Make, series: Draw) -> None:
    model = make_tiny()
    window = series(5, 16)
    with torch.no_grad():
        together = model(window).predictions
        for b in range(5):
            alone = model(window[b : b + 1]).predictions
            for x, y in zip(together, alone, strict=True):
                torch.testing.assert_close(x[b : b + 1], y, rtol=1e-5, atol=1e-6)


def test_right_padding_changes_no_valid_prediction(make_tiny: Make, series: Draw) -> None:
    model = make_tiny()
    short = series(2, 10)
    padded = torch.cat([short, torch.zeros(2, 6)], dim=1)
    valid = torch.arange(16).expand(2, 16) < 10
    with torch.no_grad():
        plain, with_mask, without = (
            model(short).predictions,
            model(padded, valid).predictions,
            model(padded).predictions,
        )
    for a, b, c in zip(plain, with_mask, without, strict=True):
        torch.testing.assert_close(a, b[:, :10], rtol=1e-5, atol=1e-6)
        assert torch.equal(b, c), "the mask moved a prediction"


def test_a_seed_fixes_every_weight_and_moves_no_global_generator() -> None:
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=2)
    state = torch.get_rng_state()
    first = build_forecaster(config, seed=7)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    same, other = build_forecaster(config, seed=7), build_forecaster(config, seed=8)
    for (name, a), b in zip(first.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.embedding.gate.weight, other.embedding.gate.weight)


def test_a_seed_gives_the_same_loss_bit_for_bit(make_tiny: Make, series: Draw) -> None:
    totals, gradients = [], []
    for _ in range(2):
        model = make_tiny(seed=11)
        window = series(2, 20)
        mask = torch.ones(2, 19, dtype=torch.bool)
        losses = forecast_loss(model(window[:, :-1]), window[:, 1:], mask, model.config)
        losses.total.backward()
        totals.append(losses.total.detach())
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(*totals)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_reach_every_parameter(make_tiny: Make, series: Draw, autocast: bool) -> None:
    model = make_tiny()
    window = series(8, 17)
    mask = torch.ones(8, 16, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        forecast = model(window[:, :-1])
    forecast_loss(forecast, window[:, 1:], mask, model.config).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype is torch.float32
        assert parameter.grad.abs().sum() > 0, name


def test_an_expert_learns_when_it_gets_tokens(make_tiny: Make, series: Draw) -> None:
    model = make_tiny(num_experts=6)
    forecast = model(series(8, 32))
    forecast.predictions[1].square().sum().backward()
    got = torch.stack([stats.load_E > 0 for stats in forecast.routing])
    assert got.any()
    for name in ("gate_up_EYD", "down_EDX"):
        grads = [block.get_parameter(f"moe.experts.{name}").grad for block in model.blocks]
        learns = torch.stack([g.flatten(1).abs().sum(1) > 0 for g in grads if g is not None])
        assert torch.equal(learns, got)


def test_stacked_experts_start_like_single_linears() -> None:
    config = ModelConfig(hidden_size=128, num_layers=1, num_heads=2, d_ff=256, init_std=0.02)
    model = build_forecaster(config, seed=0)
    single = nn.Linear(128, 256)
    single.weight.data.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3:
            for e in range(config.num_experts):
                torch.testing.assert_close(
                    parameter[e].std(), single.weight.std(), rtol=0.05, atol=0.0
                )
            assert not torch.equal(parameter[0], parameter[1])
        elif parameter.ndim == 2 and parameter.numel() > 4096:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        elif parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name)))


def test_a_parameter_without_a_rule_is_refused() -> None:
    class Stray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.empty(2))

    with pytest.raises(TypeError, match=r"module 'stray'.*Stray"):
        init_parameters(nn.ModuleDict({"stray": Stray()}), 0.02, None)


def test_bf16_autocast_raises_no_warning(make_tiny: Make, series: Draw) -> None:
    model = make_tiny()
    window = series(2, 12)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
            warnings.simplefilter("error")
            low = model(window)
            low.predictions[0].float().sum().backward()
    finally:
        torch.set_warn_always(False)
    assert low.predictions[0].dtype is torch.bfloat16
    assert low.routing[0].aux.dtype is torch.float32
    full = model(window)
    scale = full.predictions[1].std().item()
    torch.testing.assert_close(
        low.predictions[1].float(), full.predictions[1], rtol=0.0, atol=0.1 * scale
    )


def test_a_longer_context_enlarges_the_table_once(make_tiny: Make, series: Draw) -> None:
    config = make_tiny().config
    small, large = (build_forecaster(config, seed=0, num_tokens=n) for n in (4, 64))
    window = series(1, 20)
    with torch.inference_mode():
        inside = small(window).predictions[0]
    assert torch.equal(inside, large(window).predictions[0])
    table = small.rotary.cos_Sh
    small(window)
    assert small.rotary.cos_Sh is table
    small(window).predictions[0].sum().backward()  # a table born in inference can be trained with
    assert small.embedding.gate.weight.grad is not None


def test_the_state_dict_holds_parameters_alone(make_tiny: Make) -> None:
    model = make_tiny()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("shape", [(4,), (2, 7), (1, 2, 3)])
def test_inputs_that_make_no_tokens_are_refused(make_tiny: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="patch_len=2"):
        make_tiny(patch_len=2)(torch.zeros(shape))


def test_a_mask_of_another_shape_is_refused(make_tiny: Make) -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(1, 5\)"):
        make_tiny()(torch.zeros(1, 5), torch.ones(1, 4, dtype=torch.bool))


def test_expert_without_tokens_is_no_trouble(make_tiny: Make, series: Draw) -> None:
    model = make_tiny(top_k=1)
    with torch.no_grad():
        for block in model.blocks:
            block.get_parameter("moe.router.proj.weight").zero_()  # ties: all to one expert
    forecast = model(series(2, 8))
    forecast.predictions[0].sum().backward()
    assert forecast.routing[0].idle_frac.item() == 0.75
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
