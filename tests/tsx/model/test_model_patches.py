"""A patch model on series whose answers are known: what a token reads, what each head says next."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tsx.config import ModelConfig
from tsx.model.embedding import PointEmbedding
from tsx.model.forecaster import Forecaster, build_forecaster
from tsx.model.losses import forecast_loss

pytestmark = pytest.mark.trainer

Make = Callable[..., Forecaster]
Draw = Callable[..., torch.Tensor]
Embed = Callable[[torch.Tensor], torch.Tensor]


def read_points(embed: Embed, window: torch.Tensor) -> list[list[int]]:
    """Return, for each token of a window, the points it has a gradient from."""
    tokens = embed(window[None]).shape[1]
    found = []
    for token in range(tokens):
        points = window.clone().requires_grad_()
        embed(points[None])[0, token].sum().backward()
        assert points.grad is not None
        found.append(points.grad.nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize("patch_len", [1, 3, 4])
def test_a_token_is_a_function_of_exactly_its_points(series: Draw, patch_len: int) -> None:
    torch.manual_seed(0)
    embedding, window = PointEmbedding(patch_len, 8), series(1, 12)[0]
    own = torch.arange(12).view(-1, patch_len).tolist()
    assert read_points(embedding, window) == own
    tokens = embedding(window[None])[0]
    for token, points in enumerate(own):
        torch.testing.assert_close(embedding(window[points][None])[0, 0], tokens[token])


def test_a_token_of_every_nth_point_is_found_out(series: Draw) -> None:
    torch.manual_seed(0)
    embedding, window = PointEmbedding(3, 8), series(1, 12)[0]

    def comb(x_BC: torch.Tensor) -> torch.Tensor:  # the transposed view: one slip of a reshape
        return embedding(x_BC.view(len(x_BC), 3, -1).transpose(1, 2).flatten(1))

    assert read_points(comb, window)[0] == [0, 4, 8]


PERIOD = 12  # shares no phase with a patch of 4: a forecast one point or one patch off is wrong
HORIZONS = (1, 3, 8, 13)
TRAINED, SCORED = 40, 24  # points: each token that is scored had every label of every head
RIGHT, WRONG = 0.6, 1.8  # the values of the period lie 2.6 apart; after 200 steps: 0.3 and 2.2


def train_on_a_period(patch_len: int, *, label_shift: int = 0) -> Forecaster:
    """Train on one noiseless period, every phase a window of the batch."""
    config = ModelConfig(
        **{"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_experts": 2, "top_k": 1},
        **{"patch_len": patch_len, "horizons": HORIZONS, "init_std": 0.2, "aux_loss_weight": 0.0},
    )
    model = build_forecaster(config, seed=0)
    window_BC = draw_period(TRAINED + 1 + label_shift)
    input_BC, target_BC = window_BC[:, :TRAINED], window_BC[:, 1 + label_shift :]
    mask_BC = torch.ones_like(target_BC, dtype=torch.bool)
    steps = 200
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        forecast_loss(model(input_BC), target_BC, mask_BC, config).total.backward()
        optimizer.step()
        schedule.step()
    return model


def draw_period(points: int, phases: int = PERIOD) -> torch.Tensor:
    """Return [phases, points] of a period of random values, begun at each of its phases."""
    values = torch.randn(PERIOD, generator=torch.Generator().manual_seed(3))
    return torch.stack([values[(torch.arange(points) + b) % PERIOD] for b in range(phases)])


def measure_shift(model: Forecaster, shift: int) -> list[float]:
    """Return each head's worst error, over all phases and tokens, against the points it should say.

    Head h at token t should say points (t + 1) P .. (t + 1) P + h - 1, and `shift` further on.
    """
    patch_len = model.config.patch_len
    truth = draw_period(2 * TRAINED)
    with torch.no_grad():
        predictions = model(truth[:, :SCORED]).predictions
    worst = []
    for prediction, horizon in zip(predictions, HORIZONS, strict=True):
        starts = [(t + 1) * patch_len + shift for t in range(SCORED // patch_len)]
        expected = torch.stack([truth[:, s : s + horizon] for s in starts], dim=1)
        worst.append((prediction - expected).abs().max().item())
    return worst


@pytest.fixture
def _one_thread() -> object:
    """Matrices this small are slower on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("patch_len", [4, 8])
def test_each_head_says_the_next_points_after_the_patch(patch_len: int) -> None:
    model = train_on_a_period(patch_len)
    assert max(measure_shift(model, 0)) < RIGHT
    for shift in (-patch_len, -1, 1, patch_len - 1, patch_len):
        assert min(measure_shift(model, shift)) > WRONG, shift


@pytest.mark.usefixtures("_one_thread")
def test_labels_one_point_late_are_found_out() -> None:
    model = train_on_a_period(4, label_shift=1)
    assert min(measure_shift(model, 0)) > WRONG
    assert max(measure_shift(model, 1)) < RIGHT


def test_padding_in_whole_patches_changes_neither_loss_nor_gradient(
    make_tiny: Make, series: Draw
) -> None:
    """10 points of input, 6 or 14 of padding: token 2 is half padding, those after it all of it."""
    found = []
    for points in (16, 24):
        model = make_tiny(patch_len=4)
        usable = torch.arange(points + 1) < 11
        window = torch.where(usable, torch.nn.functional.pad(series(2, 11), (0, points - 10)), 0.0)
        valid, mask = (usable[s].expand(2, -1) for s in (slice(None, -1), slice(1, None)))
        losses = forecast_loss(model(window[:, :-1], valid), window[:, 1:], mask, model.config)
        losses.total.backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        found.append((losses, grads, model, window))
    (one, grads, model, window), (other, other_grads, _, _) = found
    assert one.aux.item() == pytest.approx(other.aux.item(), rel=1e-5)
    assert one.pred_O.tolist() == pytest.approx(other.pred_O.tolist(), rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], rtol=1e-4, atol=1e-6, msg=name)
    unaware = model(window[:, :-1]).routing[0].aux  # where padding is counted it is load
    assert abs(unaware.item() - one.aux_L[0].item()) > 1e-3


def test_a_half_padded_patch_is_never_scored(make_tiny: Make, series: Draw) -> None:
    model = make_tiny(patch_len=4)
    window, usable = series(1, 17), torch.arange(17) < 11
    window = torch.where(usable, window, 0.0)
    forecast = model(window[:, :-1], usable[None, :-1])
    for prediction in forecast.predictions:
        prediction.retain_grad()
    forecast_loss(forecast, window[:, 1:], usable[None, 1:], model.config).pred.backward()
    for prediction in forecast.predictions:
        assert prediction.grad is not None
        # Token 1 ends at point 7, so points 8 .. 10 are its labels; token 2 has none that is left.
        assert prediction.grad[0].ne(0).any(1).tolist() == [True, True, False, False]
