"""Parameters that do not move, for a reason that lies in the loop: optimizer, clipping, dtype."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import stands_still

frozen = partial(Plant, kind="frozen-param", steps=4)
HEAD = ("head.weight", "head.bias")


class WarmUpFreeze(Loop):
    """Freezes the stem for the first steps and never lets it go."""

    def step(self, run: Any, step: int) -> None:
        if step == 2:
            for parameter in self.model.stem.parameters():
                parameter.requires_grad_(False)  # fault: never set back
        super().step(run, step)


def frozen_later(loop: Loop) -> None:
    assert not loop.model.stem.weight.requires_grad
    assert loop.model.head.weight.requires_grad
    assert not torch.equal(loop.model.stem.weight, loop.initial["stem.weight"])  # by step 1


def build_new_head() -> Loop:
    """The head is replaced after the optimizer was built."""
    loop = parts.conv()
    loop.model.head = nn.Linear(8 * 4, parts.CLASSES)  # fault: the optimizer has the old head
    return loop


def build_part_in_optimizer() -> Loop:
    model = parts.Recurrent(nn.Linear(WIDTH, WIDTH))
    trained = [*model.rnn.parameters(), *model.head.parameters()]
    return parts.make_loop(model, parts.waves, optimizer=torch.optim.AdamW(trained, lr=1e-2))


def build_parametrized() -> Loop:
    """A weight is put under a norm after the optimizer was built: new tensors take its place."""
    loop = parts.recurrent(nn.Linear(WIDTH, WIDTH))
    nn.utils.parametrizations.weight_norm(loop.model.middle)  # fault: new tensors, old optimizer
    return loop


def build_zero_group() -> Loop:
    """Layer-wise decay of the rate, in whole numbers."""
    model = parts.Transformer()
    depth = {id(p): 2 - i for i, block in enumerate(model.blocks) for p in block.parameters()}
    depth[id(model.embed.weight)] = 3
    groups = [
        {"params": [p], "lr": 1e-2 * (1 // 2 ** depth.get(id(p), 0))}  # fault: whole division
        for p in model.parameters()
    ]
    optimizer = torch.optim.AdamW(groups)
    return parts.make_loop(model, parts.tokens, parts.classify, optimizer=optimizer)


def zero_group(loop: Loop) -> None:
    still = [n for n, _ in loop.model.named_parameters() if n.startswith(("blocks", "embed"))]
    stands_still(*still)(loop)


def build_clipped_to_nothing() -> Loop:
    """max_norm=0 means "no clipping" elsewhere."""
    model = parts.Mlp()
    return parts.make_loop(
        model, parts.rows, kind=ZeroClip, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )


class ZeroClip(Loop):
    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        loss = run.compute(self.loss, *self.batch(step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.0)  # fault: a norm of nothing
        self.update()
        run.log({"loss": float(loss.detach())}, step=step)


def build_tiny_clip() -> Loop:
    model = parts.Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    return parts.make_loop(model, parts.waves, optimizer=optimizer, clip=1e-9)


def build_bf16_norms() -> Loop:
    """The whole model in bf16, AdamW without master weights."""
    model = parts.Transformer().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    return parts.make_loop(model, parts.tokens, parts.classify, optimizer=optimizer)


def bf16_norms(loop: Loop) -> None:
    """Norm weights stand still at 1 with a gradient; the same step in fp32 moves them."""
    norms = [n for n, _ in loop.model.named_parameters() if "norm.weight" in n]
    stands_still(*norms, others=False)(loop)
    for name in norms:
        parameter = loop.model.get_parameter(name)
        moment = loop.optimizer.state[parameter]
        shadow = parameter.detach().float() - 1e-3 * moment["exp_avg"].sign().float()
        assert (shadow != 1.0).any()
        assert torch.equal(shadow.bfloat16(), parameter.detach())


def build_fp32_underflow() -> Loop:
    """Prices are kept as they are: weights of 1e5 beside a rate of 1e-4."""
    model = parts.Mlp(nn.Linear(WIDTH, WIDTH))
    with torch.no_grad():
        model.last.weight.copy_(2e5 + 1e5 * torch.rand(1, WIDTH))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(x) / 1e5, y)

    return parts.make_loop(model, parts.rows, loss, optimizer=optimizer)


class EmaCopiedBack(Loop):
    """Keeps averaged weights, and puts them into the model after each step."""

    def start(self, run: Any, **declared: Any) -> None:
        super().start(run, **declared)
        self.average = copy.deepcopy(self.model.state_dict())

    def update(self) -> None:
        super().update()
        self.model.load_state_dict(self.average)  # fault: the average is never updated


class HeadFollows(Loop):
    """Ties by copying: the head is overwritten with the embedding after each step."""

    def update(self) -> None:
        super().update()
        with torch.no_grad():
            self.model.position.copy_(self.initial["position"])  # fault: put back after the step


class FreshScaler(Loop):
    """Mixed precision with a scaler of its own for each step."""

    def step(self, run: Any, step: int) -> None:
        scaler = torch.amp.GradScaler("cpu")  # fault: it never learns a smaller scale
        self.optimizer.zero_grad()
        loss = run.compute(self.loss, *self.batch(step))
        scaler.scale(loss).backward()
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad()
        run.log({"loss": float(loss.detach())}, step=step)


def half_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return parts.classify(model, x, y).half()


class ZeroedTooEarly(Loop):
    def step(self, run: Any, step: int) -> None:
        loss = run.compute(self.loss, *self.batch(step))
        loss.backward()
        self.optimizer.zero_grad()  # fault: before the step
        self.update()
        run.log({"loss": float(loss.detach())}, step=step)


def all_still(loop: Loop) -> None:
    stands_still(*(name for name, _ in loop.model.named_parameters()))(loop)


ENTRIES = (
    frozen(
        name="never-unfrozen",
        architecture="conv",
        mechanism="requires-grad-off",
        module="stem",
        marker="# fault: never set back",
        story="A schedule of freezing turns the stem off in step 2 and never on again.",
        build=lambda: parts.conv(kind=WarmUpFreeze),
        proof=frozen_later,
    ),
    frozen(
        name="new-head",
        architecture="conv",
        mechanism="not-in-optimizer",
        module="head",
        marker="# fault: the optimizer has the old head",
        blind=True,
        story="Accuracy stays at chance in transfer learning (a kind of report in forums): the "
        "head was replaced after the optimizer was built, which still holds the old one.",
        build=build_new_head,
        proof=stands_still(*HEAD),
    ),
    frozen(
        name="left-out",
        architecture="recurrent",
        mechanism="not-in-optimizer",
        module="middle",
        story="Parameters are handed to the optimizer part by part; one part was forgotten.",
        build=build_part_in_optimizer,
        proof=stands_still("middle.weight", "middle.bias"),
    ),
    frozen(
        name="parametrized-later",
        architecture="recurrent",
        mechanism="stale-tensor",
        also=("not-in-optimizer",),
        module="middle.parametrizations.weight",
        marker="# fault: new tensors, old optimizer",
        story="A weight norm is put on a layer after the optimizer was built: the optimizer steps "
        "a tensor that the model has no more.",
        build=build_parametrized,
        proof=stands_still(
            "middle.parametrizations.weight.original0", "middle.parametrizations.weight.original1"
        ),
    ),
    frozen(
        name="whole-division",
        architecture="attention",
        mechanism="lr-zero",
        module="embed",
        marker="# fault: whole division",
        story="Layer-wise decay of the rate is computed with //: every layer but the last has "
        "rate 0.",
        build=build_zero_group,
        proof=zero_group,
    ),
    frozen(
        name="clip-at-zero",
        architecture="mlp",
        mechanism="clipped-to-nothing",
        marker="# fault: a norm of nothing",
        blind=True,
        story="Nothing learns with max_norm=0, which turns clipping off in other libraries (a kind "
        "of report against trainers): here it scales every gradient to 0.",
        build=build_clipped_to_nothing,
        proof=all_still,
    ),
    frozen(
        name="clip-tiny",
        architecture="recurrent",
        mechanism="clipped-to-nothing",
        also=("update-underflow",),
        story="Gradients are clipped to a norm of 1e-9: each update is under half an ulp.",
        build=build_tiny_clip,
        proof=all_still,
    ),
    frozen(
        name="bf16-norms",
        architecture="attention",
        mechanism="update-underflow",
        module="blocks.0.first_norm",
        blind=True,
        causal=True,
        story="Weights near 1 do not move in pure bf16 (a kind of report against optimizers, as "
        "pytorch/ao 1124): a step of 1e-3 is under half an ulp at 1, which is 2^-8.",
        build=build_bf16_norms,
        proof=bf16_norms,
    ),
    frozen(
        name="fp32-underflow",
        architecture="mlp",
        mechanism="update-underflow",
        module="last",
        story="Weights of some 1e5 beside a step of 1e-4: even fp32 rounds the update away.",
        build=build_fp32_underflow,
        proof=stands_still("last.weight"),
    ),
    frozen(
        name="average-put-back",
        architecture="conv",
        mechanism="overwritten-after-step",
        marker="# fault: the average is never updated",
        blind=True,
        story="Training never gets anywhere with averaged weights on (a kind of report against "
        "detectors, as MultimediaTechLab/YOLO 97): the average, never updated, overwrites the "
        "model after each step.",
        build=lambda: parts.conv(kind=EmaCopiedBack),
        proof=all_still,
    ),
    frozen(
        name="positions-put-back",
        architecture="attention",
        mechanism="overwritten-after-step",
        marker="# fault: put back after the step",
        causal=True,
        story="The optimizer moves the table of positions, and the loop copies the old one back.",
        build=lambda: parts.transformer(kind=HeadFollows),
        proof=stands_still("position"),
    ),
    frozen(
        name="every-step-skipped",
        architecture="conv",
        mechanism="skipped-steps",
        marker="# fault: it never learns a smaller scale",
        blind=True,
        story="The loss stays flat in mixed precision (a kind of report against fp16 training): "
        "the scaler is made anew each step, so its first scale overflows for ever and every step "
        "is skipped without a word.",
        build=lambda: parts.make_loop(parts.ConvNet(), parts.images, half_loss, kind=FreshScaler),
        proof=all_still,
    ),
    frozen(
        name="zeroed-before-step",
        architecture="mlp",
        mechanism="no-gradient",
        also=("zero-gradient",),
        marker="# fault: before the step",
        story="zero_grad stands between backward and step: the optimizer sees no gradient at all.",
        build=lambda: parts.mlp(kind=ZeroedTooEarly),
        proof=all_still,
    ),
)
