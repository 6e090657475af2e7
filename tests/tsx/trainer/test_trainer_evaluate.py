from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tsx.config import Precision
from tsx.data.corpus import open_corpus
from tsx.model.forecaster import build_forecaster
from tsx.trainer.evaluate import evaluate

pytestmark = pytest.mark.trainer

CPU = torch.device("cpu")


@pytest.fixture
def scene(lab):
    config = lab.config(data__val_split=0.0)  # every series, so the windows below are the same ones
    windows = open_corpus(config.data, home=lab.root / "home").train
    return build_forecaster(config.model, seed=0), windows


def score(scene, batches, **options):
    model, windows = scene
    return evaluate(model, windows, batches, device=CPU, precision=Precision.FP32, **options)


def brute_force(model, windows, indices, stride=1):
    """Score one window, one origin and one label at a time."""
    errors = {h: [] for h in model.config.horizons}
    hubers = {h: [] for h in model.config.horizons}
    for index in indices:
        batch = windows.get_batch(np.array([index]))
        with torch.no_grad():
            predictions = model(torch.from_numpy(batch.input_BC)).predictions
        for horizon, prediction in zip(model.config.horizons, predictions, strict=True):
            for token in range(stride - 1, prediction.shape[1], stride):
                for ahead in range(horizon):
                    place = token + ahead
                    if place < batch.target_BC.shape[1] and batch.target_mask_BC[0, place]:
                        guess = prediction[0, token, ahead].double()
                        label = torch.tensor(float(batch.target_BC[0, place])).double()
                        errors[horizon].append((guess - label).item())
                        hubers[horizon].append(F.huber_loss(guess, label, delta=2.0).item())
    values = {"pred": np.mean([np.mean(hubers[h]) for h in hubers])}
    for horizon, values_h in errors.items():
        values[f"mse_h{horizon}"] = np.mean(np.square(values_h))
        values[f"mae_h{horizon}"] = np.mean(np.abs(values_h))
    return values


@pytest.mark.parametrize("stride", [None, 1, 5, 8])
def test_scores_equal_brute_force(scene, stride):
    indices = np.arange(5, 11)
    labels_B = scene[1].get_batch(indices).target_mask_BC.sum(1)
    assert len(set(labels_B.tolist())) > 1  # some of these windows are padded
    found = score(scene, [indices[:4], indices[4:]], origin_stride=stride)
    for key, expected in brute_force(*scene, indices, stride or 1).items():
        assert found[key] == pytest.approx(expected, rel=1e-5), key
    assert found["mse"] == pytest.approx((found["mse_h1"] + found["mse_h8"]) / 2)
    assert found["mae"] == pytest.approx((found["mae_h1"] + found["mae_h8"]) / 2)
    assert found["loss"] == pytest.approx(found["pred"] + 0.02 * found["aux"])


def test_a_run_scores_the_origins_of_its_config(lab):
    scored = {
        stride: lab.run(
            f"stride-{stride}", train__steps=1, eval__every=1, eval__origin_stride=stride
        ).sink
        for stride in (None, 1, 8)
    }
    keys = ("val/pred", "val/mse", "val/mae", "val/mse_h8", "val/mae_h1")
    for key in keys:
        curves = {stride: sink.curve(key) for stride, sink in scored.items()}
        assert curves[None] == curves[1] != curves[8], key
    losses = [sink.curve("train/loss") for sink in scored.values()]
    assert losses[0] == losses[1] == losses[2]
    assert len({sink.curve("val/aux")[0] for sink in scored.values()}) == 1


def test_batch_size_changes_no_error(scene):
    one = score(scene, [np.arange(5, 12)])
    for cut in ([np.arange(5, 8), np.arange(8, 12)], [np.array([i]) for i in range(5, 12)]):
        other = score(scene, cut)
        for key in one.keys() - {"aux", "loss"}:  # aux is no sum over windows
            assert other[key] == pytest.approx(one[key], rel=1e-5), key


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_no_gradient_kept(scene, training):
    model, _ = scene
    model.train(training)
    score(scene, [np.arange(2)])
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mode_is_restored_after_an_error(scene):
    with pytest.raises(IndexError):
        score(scene, [np.array([10**6])])
    assert scene[0].training


def test_a_stopped_evaluation_has_no_score(scene):
    stop = threading.Event()
    stop.set()
    assert score(scene, [np.arange(2)], stop=stop) == {}


def test_no_batches_have_no_score(scene):
    assert score(scene, []) == {}


def test_non_finite_weights_score_as_what_they_are(scene):
    with torch.no_grad():
        scene[0].norm.weight.fill_(float("nan"))
    assert np.isnan(score(scene, [np.arange(2)])["mse"])
