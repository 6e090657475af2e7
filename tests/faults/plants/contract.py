"""Losses that are given what they do not expect, and labels that are never trained."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import forward_quietly

contract = partial(Plant, kind="loss-contract", steps=5)


class Softmaxed(parts.ConvNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(-1)  # fault: softmax before cross-entropy


def answers_probabilities(loop: Loop) -> None:
    """What goes into the loss adds up to 1, and its best value is far from 0."""
    p = forward_quietly(loop.model, loop.batch(1)[0])
    assert torch.allclose(p.sum(-1), torch.ones(()))
    best = F.cross_entropy(torch.eye(parts.CLASSES), torch.arange(parts.CLASSES))
    assert min(step.losses[0] for step in loop.seen) > best > 0.7


def squashed_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    p = model(x).sigmoid()
    label = (y > 0).float()
    return F.binary_cross_entropy_with_logits(p, label)  # fault: sigmoid before with-logits


def answers_squashed(loop: Loop) -> None:
    """Answers that are sure and right still cost about a half; they should cost nothing."""
    x, y = loop.batch(1)
    last = loop.model.last
    with torch.no_grad():
        last.weight.zero_()
        for sure, kept in ((100.0, y > 0), (-100.0, y <= 0)):
            last.bias.fill_(sure)
            assert 0.3 < loop.loss(x[kept[:, 0]], y[kept[:, 0]]) < 0.7
            assert (
                F.binary_cross_entropy_with_logits(loop.model(x)[kept], (y[kept] > 0).float())
                < 1e-6
            )


def distil_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    student = model(x).softmax(-1)
    teacher = F.one_hot(y, parts.VOCABULARY) * 0.8 + 0.2 / parts.VOCABULARY
    return F.kl_div(student, teacher, reduction="batchmean")  # fault: kl_div without the logarithm


def is_no_divergence(loop: Loop) -> None:
    """The loss of a student equal to its teacher is negative, not 0."""
    teacher = torch.full((3, 4), 0.25)
    assert F.kl_div(teacher, teacher, reduction="batchmean") < -1.0
    assert F.kl_div(teacher.log(), teacher, reduction="batchmean").abs() < 1e-6
    assert all(step.losses[0] < -1.0 for step in loop.seen)


def broadcast_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x)[:, -1] - y).square().mean()  # fault: [N, 1] against [N]


def build_broadcast() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        return x, y[:, -1, 0]

    return parts.make_loop(parts.Recurrent(), batch, broadcast_loss)


def compares_all_with_all(loop: Loop) -> None:
    x, y = loop.batch(1)
    with torch.no_grad():
        error = loop.model(x)[:, -1] - y
        right = (loop.model(x)[:, -1, 0] - y).square().mean()
    assert error.shape == (6, 6)
    assert not torch.isclose(error.square().mean(), right)


END = 10


def build_end_as_padding() -> Loop:
    """Padding and end share an id, and labels of that id are taken out."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.tokens(step)
        y = y.masked_fill(y == END, 9)
        y[:, -1] = END  # each text ends here
        return x, y.masked_fill(y == END, -100)  # fault: the end is taken for padding

    return parts.make_loop(parts.Transformer(), batch, parts.classify)


def never_trains(label: int):
    """Return a proof that a label that the data has is in no loss."""

    def proof(loop: Loop) -> None:
        labels = torch.cat([step.batches[0][1].flatten() for step in loop.seen])
        assert label not in labels.tolist()
        assert (labels == -100).any()
        moved = loop.model.head.bias.detach() - loop.initial["head.bias"]
        assert moved[label] < moved.mean()  # only ever pushed down

    return proof


def ignoring_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, ignore_index=0)  # fault: class 0 is real


def class_zero_ignored(loop: Loop) -> None:
    labels = torch.cat([step.batches[0][1] for step in loop.seen])
    assert (labels == 0).float().mean() > 0.1
    x, y = loop.batch(1)
    with torch.no_grad():  # pictures of class 0 count nothing
        assert torch.equal(loop.loss(x, y), loop.loss(x[y != 0], y[y != 0]))


def negative_log_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(model(x).softmax(-1), y)  # fault: probabilities where logs belong


def loss_is_negative(loop: Loop) -> None:
    assert all(-1.0 < step.losses[0] < 0.0 for step in loop.seen)


class Rectified(parts.Recurrent):
    """A rectifier at the very end, before a target that is half negative."""

    def forward(self, x_BTF: Tensor) -> Tensor:
        return super().forward(x_BTF).relu()  # fault: the range of the targets is cut


def cannot_reach(loop: Loop) -> None:
    x, y = loop.batch(1)
    assert (y < 0).float().mean() > 0.3
    assert (forward_quietly(loop.model, x) >= 0).all()


ENTRIES = (
    contract(
        name="softmax-twice",
        architecture="conv",
        mechanism="softmax-before-cross-entropy",
        marker="# fault: softmax before cross-entropy",
        blind=True,
        story="Accuracy rises but the loss never goes below 0.74 (a kind of question in forums): "
        "cross_entropy takes logits and is given probabilities.",
        build=lambda: parts.make_loop(Softmaxed(), parts.images, parts.classify),
        proof=answers_probabilities,
    ),
    contract(
        name="sigmoid-twice",
        architecture="mlp",
        mechanism="sigmoid-before-logits",
        marker="# fault: sigmoid before with-logits",
        story="A loss with logits is given a sigmoid: a sure no still costs log 2.",
        build=lambda: parts.make_loop(parts.Mlp(), parts.rows, squashed_loss),
        proof=answers_squashed,
    ),
    contract(
        name="divergence-without-log",
        architecture="attention",
        mechanism="kl-without-log",
        marker="# fault: kl_div without the logarithm",
        story="Distillation has a negative loss: kl_div takes logarithms of the student.",
        build=lambda: parts.make_loop(parts.Transformer(), parts.tokens, distil_loss),
        proof=is_no_divergence,
    ),
    contract(
        name="broadcast-target",
        architecture="recurrent",
        mechanism="broadcast",
        marker="# fault: [N, 1] against [N]",
        blind=True,
        story="A regression predicts the mean (a kind of report with a warning in it, as "
        "deepset-ai/FARM 229): [N, 1] against [N] is every prediction against every target.",
        build=build_broadcast,
        proof=compares_all_with_all,
    ),
    contract(
        name="end-as-padding",
        architecture="attention",
        mechanism="label-never-trained",
        marker="# fault: the end is taken for padding",
        blind=True,
        causal=True,
        story="A tuned model never stops (a kind of report against chat tuning, as "
        "ibm-granite/granite-3.1-language-models 2): end and padding share an id, so the end is "
        "masked out of the labels.",
        build=build_end_as_padding,
        proof=never_trains(END),
    ),
    contract(
        name="class-zero-ignored",
        architecture="conv",
        mechanism="label-never-trained",
        marker="# fault: class 0 is real",
        blind=True,
        story="One class is never predicted (a kind of report against segmentation): ignore_index "
        "is 0, which is a class here.",
        build=lambda: parts.make_loop(parts.ConvNet(), parts.images, ignoring_loss),
        proof=class_zero_ignored,
    ),
    contract(
        name="nll-of-probabilities",
        architecture="conv",
        mechanism="nll-without-log",
        marker="# fault: probabilities where logs belong",
        story="The loss is between -1 and 0: nll_loss takes log-probabilities.",
        build=lambda: parts.make_loop(parts.ConvNet(), parts.images, negative_log_loss),
        proof=loss_is_negative,
    ),
    contract(
        name="rectified-output",
        architecture="recurrent",
        mechanism="output-range",
        marker="# fault: the range of the targets is cut",
        story="A rectifier after the head: half the targets are negative and out of reach.",
        build=lambda: parts.make_loop(Rectified(), parts.waves),
        proof=cannot_reach,
    ),
)
