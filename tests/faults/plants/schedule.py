"""Rates that do not fit, losses that jump or stand, updates that are too large."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import at_step
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import find_parameter

spike = partial(Plant, kind="loss-spike", steps=20)
plateau = partial(Plant, kind="plateau", steps=40)
rate = partial(Plant, kind="lr", steps=10)
ratio = partial(Plant, kind="update-ratio", steps=3)
silent = partial(Plant, kind="interval-never-fires", steps=12)


def losses(loop: Loop) -> list[float]:
    return [step.losses[0] for step in loop.seen]


def jumps(at: int, factor: float, *, comes_back: bool):
    """Return a proof that the loss jumps at a step, and whether it comes back by the end."""

    def proof(loop: Loop) -> None:
        seen = losses(loop)
        before = max(seen[at - 6 : at - 1])
        assert seen[at - 1] > factor * before
        assert (seen[-1] < 3 * before) is comes_back
        assert all(step.is_finite for step in loop.seen)

    return proof


def build_bright_batch() -> Loop:
    def bright(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return 100.0 * x, (y + 1) % parts.CLASSES

    model = parts.ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loop = parts.make_loop(
        model, at_step(15, bright, parts.images), parts.classify, optimizer=optimizer, clip=1.0
    )
    return loop


def build_restart() -> Loop:
    """A schedule starts anew at a rate that the run never had."""
    loop = parts.recurrent()

    def factor(step: int) -> float:
        return 100.0 if step == 12 else 1.0  # fault: a restart at a hundredfold

    loop.scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, factor)
    return loop


class OptimizerForgotten(Loop):
    """Resumes: weights come back, the optimizer's state does not."""

    def step(self, run: Any, step: int) -> None:
        if step == 110:
            self.optimizer.state.clear()  # fault: resumed without the optimizer's state
        super().step(run, step)


def build_tiny_rate() -> Loop:
    return parts.conv(lr=1e-9)


def stands(loop: Loop) -> None:
    """The loss goes nowhere, although a plain rate would learn."""
    seen = losses(loop)
    assert abs(sum(seen[-10:]) - sum(seen[:10])) < 0.5
    assert min(seen) > 0.5 * seen[0]


def build_unlearnable() -> Loop:
    """Labels of another shuffle than their pictures."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.images(step, size=32)
        return x, y[torch.randperm(len(y), generator=parts.draw(step))]

    return parts.conv(batch=batch, lr=1e-3)


def build_saturated() -> Loop:
    """The output is squashed, and starts at its end."""
    model = parts.Recurrent()
    with torch.no_grad():
        model.head.bias.fill_(60.0)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x).tanh(), y)  # fault: tanh at its end

    return parts.make_loop(model, parts.waves, loss)


def build_per_epoch() -> Loop:
    """A warm-up of 100 "steps" is stepped once an epoch of 5."""
    loop = parts.make_loop(parts.Mlp(), parts.rows, kind=PerEpoch)
    warm_up = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda n: min(1.0, n / 100))
    loop.schedule = warm_up
    return loop


class PerEpoch(Loop):
    def step(self, run: Any, step: int) -> None:
        super().step(run, step)
        if step % 5 == 0:
            self.schedule.step()  # fault: once an epoch
        run.log({"lr": self.optimizer.param_groups[0]["lr"]}, step=step)


def hardly_warm(loop: Loop) -> None:
    assert max(step.logged["lr"] for step in loop.seen) <= 0.02 * 1e-2 + 1e-12
    assert loop.seen[0].logged["lr"] == 0.0


def build_muon_rate() -> Loop:
    """A rate of AdamW for Muon, whose updates have the size of the rate times a root."""
    model = parts.Recurrent(nn.Linear(parts.WIDTH, parts.WIDTH))
    matrices = [p for p in model.middle.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=1e-4, weight_decay=0.0, adjust_lr_fn="original")
    return parts.make_loop(model, parts.waves, optimizer=[muon, torch.optim.AdamW(rest, lr=1e-2)])


def muon_crawls(loop: Loop) -> None:
    moved = find_parameter(loop, "middle.weight") - loop.initial["middle.weight"]
    assert moved.norm() / loop.initial["middle.weight"].norm() < 2e-3


def build_sgd_rate() -> Loop:
    return parts.transformer(lr=1.0)


def is_wild(loop: Loop) -> None:
    assert max(losses(loop)) > 5 * losses(loop)[0]


def build_decayed() -> Loop:
    model = parts.Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    return parts.make_loop(model, parts.tokens, parts.classify, optimizer=optimizer)


def decays_norms(loop: Loop) -> None:
    norm = loop.model.norm.weight
    (group,) = loop.optimizer.param_groups
    assert group["weight_decay"] == 0.5
    assert any(p is norm for p in group["params"])


def moves_by(name: str, low: float):
    """Return a proof that one step moved a parameter by more than `low` of its size."""

    def proof(loop: Loop) -> None:
        before = loop.initial[name]
        moved = (find_parameter(loop, name) - before).norm() / before.norm()
        assert moved > low * len(loop.seen) / 3
        assert all(step.is_finite for step in loop.seen)

    return proof


class StateMixer(nn.Module):
    """A short convolution over time that starts from almost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(parts.WIDTH, parts.WIDTH, 3, groups=parts.WIDTH)
        nn.init.normal_(self.conv.weight, std=1e-3)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return h_BTD + F.silu(self.conv(F.pad(h_BTD.mT, (2, 0)))).mT


def build_hot_group() -> Loop:
    model = parts.ConvNet()
    groups = [
        {"params": model.stem.parameters(), "lr": 1e-3},
        {"params": model.head.parameters(), "lr": 1.0},  # fault: a rate of another group
    ]
    return parts.make_loop(model, parts.images, parts.classify, optimizer=torch.optim.AdamW(groups))


class TwoNumbers(Loop):
    """Counts forward passes of two models in one step, and asks when to score."""

    scored = 0

    def step(self, run: Any, step: int) -> None:
        super().step(run, step)
        number = 2 * step - 1  # a second pass comes before this one
        if number % 6 == 0:  # fault: a multiple of six among odd numbers
            self.scored += 1
            run.log({"val/loss": 0.0}, step=step)


def never_scored(loop: Loop) -> None:
    assert loop.scored == 0
    assert loop.declares["intervals"] == {"val/loss": 6}


class LogsAtHundred(Loop):
    def step(self, run: Any, step: int) -> None:
        self.optimizer.zero_grad()
        loss = run.compute(self.loss, *self.batch(step))
        loss.backward()
        self.update()
        if step % 100 == 0:  # fault: the run has 12 steps
            run.log({"loss": float(loss.detach())}, step=step)


def logs_nothing(loop: Loop) -> None:
    assert not any(step.logged for step in loop.seen)


ENTRIES = (
    spike(
        name="bright-batch",
        architecture="conv",
        mechanism="bad-scale",
        story="One batch is a hundred times too bright and wrongly labelled; the loss jumps.",
        build=build_bright_batch,
        proof=jumps(15, 4, comes_back=True),
    ),
    spike(
        name="rate-restarts",
        architecture="recurrent",
        mechanism="lr-restart",
        marker="# fault: a restart at a hundredfold",
        story="A schedule restarts at a hundred times the rate: the loss jumps a step later.",
        build=build_restart,
        proof=jumps(14, 5, comes_back=False),
    ),
    spike(
        name="state-forgotten",
        architecture="mlp",
        mechanism="optimizer-state-lost",
        marker="# fault: resumed without the optimizer's state",
        blind=True,
        story="The loss jumps at each resume (a kind of report against checkpoints): weights are "
        "loaded, the optimizer's state is not.",
        build=lambda: parts.mlp(
            kind=OptimizerForgotten,
            batch=lambda step: parts.rows(1),
            declares={"fixed_batch": True},
        ),
        steps=112,
        proof=jumps(111, 3, comes_back=True),
    ),
    plateau(
        name="rate-of-nothing",
        architecture="conv",
        mechanism="lr-too-small",
        story="A rate of 1e-9: the loss stands.",
        build=build_tiny_rate,
        proof=stands,
    ),
    plateau(
        name="labels-shuffled",
        architecture="conv",
        mechanism="labels-independent",
        blind=True,
        story="The loss stands at log 4 (a kind of question in forums): labels were shuffled apart "
        "from their pictures.",
        build=build_unlearnable,
        proof=stands,
    ),
    plateau(
        name="saturated-output",
        architecture="recurrent",
        mechanism="saturated",
        marker="# fault: tanh at its end",
        story="The output starts where tanh is flat, and no gradient leads away.",
        build=build_saturated,
        proof=stands,
    ),
    rate(
        name="warm-up-per-epoch",
        architecture="mlp",
        mechanism="scheduler-per-epoch",
        marker="# fault: once an epoch",
        blind=True,
        story="The rate stays at nearly 0 (a kind of question about schedules, as "
        "y0ast/Glow-PyTorch 3): a warm-up in steps is stepped once an epoch.",
        build=build_per_epoch,
        proof=hardly_warm,
    ),
    rate(
        name="muon-with-adam-rate",
        architecture="recurrent",
        mechanism="family-mismatch",
        module="middle",
        story="Muon is given a rate of AdamW's size without its adjustment: matrices crawl.",
        build=build_muon_rate,
        proof=muon_crawls,
    ),
    rate(
        name="adam-with-sgd-rate",
        architecture="attention",
        mechanism="family-mismatch",
        causal=True,
        story="AdamW is given a rate of SGD's size: the loss goes wild.",
        build=build_sgd_rate,
        proof=is_wild,
    ),
    rate(
        name="decay-on-norms",
        architecture="attention",
        mechanism="weight-decay-on-norms",
        module="blocks.0.first_norm",
        severity="info",
        causal=True,
        story="One group for all parameters: weight decay pulls norms and biases to 0.",
        build=build_decayed,
        proof=decays_norms,
    ),
    ratio(
        name="mixer-runs-away",
        architecture="recurrent",
        mechanism="init-too-small",
        module="middle.conv",
        story="The diary's 300 to 400 percent: a short convolution starts at 1e-3, and each step "
        "of the rate is ten times that.",
        build=lambda: parts.recurrent(StateMixer()),
        proof=moves_by("middle.conv.weight", 3.0),
    ),
    ratio(
        name="hot-group",
        architecture="conv",
        mechanism="group-rate",
        module="head",
        marker="# fault: a rate of another group",
        story="One group has a rate of 1.0: its weights are thrown about.",
        build=build_hot_group,
        proof=moves_by("head.weight", 5.0),
    ),
    ratio(
        name="sgd-overshoots",
        architecture="mlp",
        mechanism="lr-too-large",
        module="last",
        story="Plain SGD at a rate of 2: the last layer moves by several times its size.",
        build=lambda: parts.make_loop(
            m := parts.Mlp(), parts.rows, optimizer=torch.optim.SGD(m.parameters(), lr=2.0)
        ),
        proof=moves_by("last.weight", 3.0),
    ),
    silent(
        name="scored-never",
        architecture="mlp",
        mechanism="odd-parity",
        marker="# fault: a multiple of six among odd numbers",
        story="Scores are due at multiples of six of a counter that is odd whenever it is asked.",
        build=lambda: parts.mlp(kind=TwoNumbers, declares={"intervals": {"val/loss": 6}}),
        proof=never_scored,
    ),
    silent(
        name="logged-never",
        architecture="conv",
        mechanism="interval-longer-than-run",
        marker="# fault: the run has 12 steps",
        story="A run of twelve steps logs every hundred.",
        build=lambda: parts.conv(kind=LogsAtHundred, declares={"steps": 12}),
        proof=logs_nothing,
    ),
)
