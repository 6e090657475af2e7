"""Losses that are given what they take, and labels that are rare or marks: nothing is said."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults.watched import WatchedLines

pytestmark = pytest.mark.trainer


def list_found(score, batch, *, model=None, steps=9, **declared):
    """Train a few steps and return the mechanisms that are told of the loss."""
    torch.manual_seed(0)
    model = model or nn.Linear(6, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = WatchedLines()
    run.watch(model, optimizer, **declared)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = run.compute(lambda *given: score(model, *given), *batch())
        loss.backward()
        optimizer.step()
        run.log({"loss": 1.0}, step=step)
    run.close()
    assert not [finding for finding in run.findings if finding.kind == "detector-failed"]
    found = [f.evidence["mechanism"] for f in run.findings if f.kind == "loss-contract"]
    return list(dict.fromkeys(found))  # one that comes again is counted


def classes(size=16):
    return torch.randn(size, 6), torch.randint(4, (size,))


def by_hand(x):
    return x.exp() / x.exp().sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("score", "found"),
    [
        (lambda m, x, y: F.cross_entropy(m(x), y), []),
        (lambda m, x, y: F.cross_entropy(m(x).log_softmax(-1), y), []),
        (lambda m, x, y: F.cross_entropy(m(x).sigmoid() * m(x), y), []),
        (lambda m, x, y: F.cross_entropy(by_hand(m(x)), y), ["softmax-before-cross-entropy"]),
        (lambda m, x, y: F.cross_entropy(m(x).sigmoid(), y), ["sigmoid-before-cross-entropy"]),
        (lambda m, x, y: F.nll_loss(m(x).log_softmax(-1), y), []),
        (lambda m, x, y: F.nll_loss(m(x), y), ["nll-of-logits"]),
        (lambda m, x, y: F.mse_loss(m(x).relu(), F.one_hot(y, 4).float()), []),
        (lambda m, x, y: F.mse_loss(m(x).sigmoid(), x[:, :4] * 9), ["output-range"]),
        (lambda m, x, y: F.binary_cross_entropy(m(x).sigmoid(), F.one_hot(y, 4).float()), []),
        (lambda m, x, y: (m(x)[:, :1] - m(x)[:, 0]).square().mean(), []),
        (lambda m, x, y: (m(x)[:, :1] - y[None].float()).square().mean(), []),
        (lambda m, x, y: (m(x)[:, :1] - y).square().mean(), ["broadcast"]),
    ],
)
def test_only_what_a_loss_cannot_take_is_told(score, found):
    assert list_found(score, classes) == found


def test_a_class_that_is_rare_or_a_mark_may_be_ignored():
    def marked():
        x, y = classes()
        return x, y.masked_fill(torch.rand(len(y)) < 0.8, 0)

    def ignoring(model, x, y):
        return F.cross_entropy(model(x), y, ignore_index=0)

    assert list_found(ignoring, marked) == []


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 12)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


END, PADDING, START, MARK = 10, 11, 9, 8


def texts(padding, *, is_masked):
    """Return rows of a few sentences, each with its end, and padding whose labels are left out."""
    rows = []
    for _ in range(16):
        row = [START]
        while len(row) < 14 and torch.rand(()) < 0.9:
            row += [*torch.randint(8, (3,)).tolist(), END]
        rows.append((row + [padding] * 20)[:20])
    ids = torch.tensor(rows)
    labels = ids[:, 1:].clone()
    labels[labels == PADDING] = -100
    if is_masked:
        labels[labels == END] = -100
    return ids[:, :-1], labels


def language_loss(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def test_an_end_that_is_masked_as_padding_is_told():
    found = list_found(
        language_loss, lambda: texts(END, is_masked=True), model=Language(), steps=17
    )
    assert found == ["label-never-trained"]


@pytest.mark.parametrize("padding", [PADDING, END])
def test_starts_padding_and_marks_are_never_labels_and_no_fault(padding):
    def batch():
        x, y = texts(padding, is_masked=False)
        hidden = torch.rand(x.shape) < 0.1
        hidden[:, 0] = False
        return x.masked_fill(hidden, MARK), y

    assert list_found(language_loss, batch, model=Language(), steps=17) == []
