"""Batches that look odd and are handled, and what the arguments of a call are called."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults.watched import WatchedLines
from tsx.diagnostics.arguments import name_arguments
from tsx.diagnostics.data.batch_stats import is_sentinel, measure_wrapping

pytestmark = pytest.mark.trainer


def list_found(score, batch, model):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = WatchedLines()
    run.watch(model, optimizer)
    for step in range(1, 6):
        optimizer.zero_grad()
        run.compute(lambda *given: score(model, *given), *batch(step)).backward()
        optimizer.step()
        run.log({"loss": 1.0}, step=step)
    run.close()
    assert not [finding for finding in run.findings if finding.kind == "detector-failed"]
    found = [f.evidence["mechanism"] for f in run.findings if f.kind == "data-quality"]
    return list(dict.fromkeys(found))  # one that comes again is counted


def series(step, size=8, length=13):
    x = torch.randn(size, length, 1)
    return x[:, :-1], x[:, 1:]


def recurrent():
    return nn.GRU(1, 1, batch_first=True)


def forecast(model, x, y):
    return F.mse_loss(model(x)[0], y)


def test_gaps_that_are_masked_out_of_the_loss_are_no_fault():
    def gaps(step):
        x, y = series(step)
        return x.masked_fill(x > 1, torch.nan), y.masked_fill(y > 1, torch.nan)

    def masked(model, x, y):
        is_there = ~y.isnan()
        error = F.mse_loss(model(x.nan_to_num())[0], y.nan_to_num(), reduction="none")
        return (error * is_there).sum() / is_there.sum()

    def chosen(model, x, y):
        is_there = ~y.isnan()
        return F.mse_loss(model(x.nan_to_num())[0][is_there], y[is_there])

    assert list_found(masked, gaps, recurrent()) == []
    assert list_found(chosen, gaps, recurrent()) == []


def test_a_sentinel_that_is_masked_is_no_fault():
    def marked(step):
        x, y = series(step)
        return x.masked_fill(x > 1, -9999.0), y

    def masked(model, x, y):
        return forecast(model, x.masked_fill(x == -9999.0, 0.0), y)

    assert list_found(masked, marked, recurrent()) == []
    assert list_found(forecast, marked, recurrent()) == ["sentinel-value"]


def test_huge_values_that_are_scaled_inside_are_no_fault():
    def scaled(model, x, y):
        return forecast(model, (x - x.mean()) / x.std(), y)

    def huge(step):
        x, y = series(step)
        return 1e6 * x, y

    assert list_found(scaled, huge, recurrent()) == []
    assert list_found(forecast, huge, recurrent()) == ["huge-values"]


def test_days_without_sales_are_no_padding():
    def sales(step):
        x, y = series(step)
        x, y = x.clone(), y.clone()
        x[1:6], y[1:6] = 0.0, 0.0
        return x, y

    assert list_found(forecast, sales, recurrent()) == []


def test_bytes_that_are_subtracted_in_the_call_are_told_with_their_line():
    def centred(model, x, y):
        return F.cross_entropy(model((x - 128).float()), y)

    def cast_first(model, x, y):
        return F.cross_entropy(model(x.float() - 128), y)

    def pictures(step):
        return torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8), torch.randint(3, (4,))

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert list_found(centred, pictures, model) == ["uint8-wraps"]
    assert list_found(cast_first, pictures, model) == []


def test_pictures_of_ink_on_paper_are_not_wrapped():
    ink, paper = torch.randint(20, (4, 1, 28, 28)), torch.randint(235, 256, (4, 1, 28, 28))
    text = torch.where(torch.rand(4, 1, 28, 28) < 0.1, ink, paper).float()
    assert not measure_wrapping(text / 255)
    phase = 6.28 * torch.rand(4, 1, 28, 1)
    smooth = ((torch.linspace(0, 6.28, 28) + phase).sin() * 60 + 128).round()
    assert not measure_wrapping(smooth / 255)
    assert measure_wrapping((smooth + 128) % 256 / 255)


@pytest.mark.parametrize("value", [-9999.0, -999.0, 9999.0, -99.9 * 10, 1e20, 32767.0, -99.0])
def test_numbers_that_stand_for_missing(value):
    assert is_sentinel(value)


@pytest.mark.parametrize("value", [0.0, 9.0, 100.0, 1234.0, -90.0, 255.0])
def test_numbers_that_stand_for_themselves(value):
    assert not is_sentinel(value)


def test_masks_and_divisors_are_no_targets():
    x, mask = torch.zeros(4, 6), torch.ones(4, 6, dtype=torch.bool)
    named = name_arguments((x, mask, x + 1, mask, torch.ones(2)), {})
    assert [name for name in named if name.startswith("target ")] == ["target argument 3"]
    named = name_arguments((), {"input": x, "target": x, "target_mask": mask})
    assert [name for name in named if name.startswith("target ")] == ["target target"]


def test_tensors_in_batches_have_names():
    batch = {
        "ids": torch.zeros(2, 3),
        "labels": torch.zeros(2, 3),
        "more": (torch.zeros(2), "text"),
    }
    assert list(name_arguments((batch, 5), {})) == [
        "batch argument 1.ids",
        "target argument 1.labels",
        "batch argument 1.more.1",
    ]
