"""The model against what the official Time-MoE made of the same weights and batch.

`tests/assets/official` was written by `benchmarks/parity.py --write-golden` from the official
code: a tiny model as that code saves it, a batch (two rows full, one padded on the right), and what
came of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tsx.model.forecaster import Forecaster
from tsx.model.losses import Losses, forecast_loss
from tsx.model.official import read_config
from tsx.model.weights import read_weights, to_official

pytestmark = pytest.mark.trainer

OFFICIAL = Path(__file__).parents[2] / "assets" / "official"
RTOL = 1e-5  # across machines kernels differ; in one process see benchmarks/README.md
STEPS = 10


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(OFFICIAL / "golden.safetensors")


@pytest.fixture
def model() -> Forecaster:
    config = read_config(OFFICIAL)
    model = Forecaster(config)
    model.load_state_dict(read_weights(OFFICIAL, config))
    return model


def lose(model: Forecaster, golden: dict[str, torch.Tensor]) -> Losses:
    forecast = model(golden["input_BC"], golden["mask_BC"])
    return forecast_loss(forecast, golden["target_BC"], golden["mask_BC"], model.config)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare to RTOL of the tensor's own scale: a value near 0 has the rounding of its terms."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=RTOL, atol=RTOL * scale)


def test_the_golden_batch_is_padded_and_no_weight_is_trivial(golden, model):
    assert 0 < int((~golden["mask_BC"]).sum()) < golden["mask_BC"].numel()
    assert all(p.std() > 0.01 for p in model.parameters())


def test_every_horizon_predicts_what_the_official_model_does(golden, model):
    with torch.no_grad():
        found = model(golden["input_BC"], golden["mask_BC"]).predictions
    for horizon, prediction in zip(model.config.horizons, found, strict=True):
        assert_close(prediction, golden[f"prediction.{horizon}"])


def test_loss_and_aux_are_the_official_ones(golden, model):
    losses = lose(model, golden)
    assert losses.total.item() == pytest.approx(golden["loss"].item(), rel=RTOL)
    assert losses.aux.item() == pytest.approx(golden["aux"].item(), rel=RTOL)


def test_every_gradient_is_the_official_one(golden, model):
    lose(model, golden).total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = to_official(gradients, model.config)
    expected = {k.removeprefix("gradient."): v for k, v in golden.items() if k.startswith("grad")}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient)
    idle = {name for name, gradient in expected.items() if not gradient.any()}
    assert len(idle) == 2 * 3  # two of eight experts got no token, and nothing else is idle


def test_ten_adamw_steps_give_the_official_losses(golden, model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    found = []
    for _ in range(STEPS):
        losses = lose(model, golden)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        found.append(losses.total.item())
    with torch.no_grad():
        found.append(lose(model, golden).total.item())
    assert found == pytest.approx(golden["training_losses"].tolist(), rel=RTOL)
    assert found[-1] < 0.99 * found[0]


def test_a_wrong_rotary_base_is_seen(golden, model):
    model.rotary.theta = 9000.0
    model.rotary.build(64)
    with torch.no_grad():
        found = model(golden["input_BC"], golden["mask_BC"]).predictions[-1]
    with pytest.raises(AssertionError):
        assert_close(found, golden[f"prediction.{model.config.horizons[-1]}"])
