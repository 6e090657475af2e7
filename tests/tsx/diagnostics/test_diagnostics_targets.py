"""Lags that are right, meant, or cannot be told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults.watched import WatchedLines

pytestmark = pytest.mark.trainer


class Language(nn.Module):
    """A causal model that shifts its labels by itself, as libraries do."""

    def __init__(self, both=False):
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True, bidirectional=both)
        self.head = nn.Linear(16 if both else 8, 30)

    def forward(self, ids, labels=None):
        logits = self.head(self.rnn(self.embed(ids))[0])
        if labels is None:
            return logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def list_lags(model, score, batch, **declared):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = WatchedLines()
    run.watch(model, optimizer, **declared)
    for step in range(1, 5):
        optimizer.zero_grad()
        run.compute(score, *batch()).backward()
        optimizer.step()
        run.log({"loss": 1.0}, step=step)
    run.close()
    return [f.evidence["lag"] for f in run.findings if f.kind == "target-shift"]


def ids(length=12):
    return torch.randint(1, 30, (6, length))


def plain(model):
    return lambda x, y: F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def test_a_model_that_shifts_by_itself_is_given_unshifted_labels():
    model = Language()
    assert list_lags(model, model, lambda: (x := ids(), x.clone()), causal=True) == []


def test_who_shifts_for_it_shifts_twice():
    model = Language()
    assert list_lags(model, model, lambda: ((x := ids())[:, :-1], x[:, 1:]), causal=True) == [2]


def test_logits_that_are_sliced_wrongly_ask_for_the_past():
    model = Language()

    def score(x):
        return F.cross_entropy(model(x)[:, 1:].flatten(0, 1), x[:, :-1].flatten())

    assert list_lags(model, score, lambda: (ids(),), causal=True) == [-1]


def test_copying_is_a_fault_of_a_model_that_looks_back_only():
    model = Language()
    assert list_lags(model, plain(model), lambda: (x := ids(), x.clone())) == [0]


@pytest.mark.parametrize("declared", [{}, {"causal": False}])
def test_an_autoencoder_may_ask_for_its_input(declared):
    model = Language(both=True)
    assert list_lags(model, plain(model), lambda: (x := ids(), x.clone()), **declared) == []


def test_several_heads_may_ask_for_later_tokens_beside_the_next():
    model = Language()

    def score(x, y):
        near, far = y[:, :-1], y[:, 1:]
        logits = model(x)[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, near.flatten()) + F.cross_entropy(logits, far.flatten())

    assert list_lags(model, score, lambda: ((x := ids())[:, :-1], x[:, 1:]), causal=True) == []


def test_what_does_not_move_or_repeats_itself_has_no_lag():
    model = Language()

    def still():
        x = torch.randint(1, 30, (6, 1)).expand(6, 12).contiguous()
        return x, x.clone()

    def periodic():
        x = torch.tensor([1, 2]).repeat(6, 6)
        return x, x.roll(1, 1)

    assert list_lags(model, plain(model), still, causal=True) == []
    assert list_lags(model, plain(model), periodic, causal=True) == []


def test_floats_two_points_on_are_a_horizon():
    model = nn.GRU(1, 1, batch_first=True)

    def score(x, y):
        return F.mse_loss(model(x)[0], y)

    assert list_lags(model, score, lambda: ((s := torch.randn(6, 14, 1))[:, :-2], s[:, 2:])) == []
