"""The diaries' faults of training, in tsx's own trainer: weights, schedule, intervals, data."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from tests.faults.embedded import after_build, plant, replace
from tests.faults.plant import Loop
from tests.faults.proofs import has_moved, shows_at_last_step, stands_still
from tsx.config import OptimConfig
from tsx.data.windows import Batch
from tsx.model.embedding import PointEmbedding
from tsx.model.experts import Experts
from tsx.model.router import Routing
from tsx.trainer.schedule import get_lr

NORMS = [f"blocks.{n}.{part}_norm.weight" for n in (0, 1) for part in ("attention", "moe")]


class CastingEmbedding(PointEmbedding):
    """Takes fp32 points into a bf16 model."""

    def forward(self, input_BC: Tensor) -> Tensor:
        return super().forward(input_BC.to(self.gate.weight.dtype))


@contextmanager
def bf16_model() -> Any:
    """Let the trainer build its model in bf16, weights and all."""
    embedding = replace("tsx.model.forecaster.PointEmbedding", CastingEmbedding)
    with embedding(), after_build(lambda model: model.bfloat16())():
        yield


def norms_stand(loop: Loop) -> None:
    """Norms are bit-equal after all steps, with gradients, and in fp32 they would move."""
    stands_still(*NORMS, "norm.weight", others=False)(loop)
    moved = [name for name, _ in loop.model.named_parameters() if has_moved(loop, name)]
    assert len(moved) > 15
    for name in NORMS:
        parameter = loop.model.get_parameter(name)
        assert parameter.grad.any()
        step = 1e-3 * torch.ones_like(parameter, dtype=torch.float32)
        assert torch.equal((parameter.detach().float() - step).bfloat16(), parameter.detach())


def freeze_norm_groups(model: Any, config: OptimConfig) -> Any:
    """Return an AdamW over matrices only: norms and biases were to get a group of their own."""
    trained = [p for p in model.parameters() if p.ndim >= 2]
    return torch.optim.AdamW(trained, lr=config.lr, fused=True)  # fault: the other group is lost


def vectors_stand(loop: Loop) -> None:
    names = [name for name, p in loop.model.named_parameters() if p.ndim < 2]
    stands_still(*names)(loop)


class DetachedExperts(Experts):
    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        return super().forward(x_ND, routing).detach()  # fault: routed part without a graph


def routed_stand(loop: Loop) -> None:
    names = ("experts.gate_up_EYD", "experts.down_EDX")
    with_decay = [f"blocks.{n}.moe.{name}" for n in (0, 1) for name in names]
    assert all(loop.model.get_parameter(name).grad is None for name in with_decay)
    stands_still(*with_decay)(loop)


def decay_all(model: Any, config: OptimConfig) -> Any:
    """Return an AdamW that decays norms and biases too."""
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.1, fused=True)


def decays_norms(loop: Loop) -> None:
    norms = [loop.model.get_parameter(name) for name in NORMS]
    ids = {
        id(p)
        for group in loop.optimizer.param_groups
        if group["weight_decay"]
        for p in group["params"]
    }
    assert all(id(norm) in ids for norm in norms)


def never_arrives(loop: Loop) -> None:
    """The rate is a thousandth of what was asked for, and nothing is learned."""
    config = loop.session.config
    assert max(get_lr(config, step) for step in range(1, 7)) < 1e-3 * config.optim.lr
    assert abs(loop.seen[-1].losses[0] - loop.seen[0].losses[0]) < 1.0


class OddParity:
    """Interval counted on micro-steps: numbered from 0, seen at each odd one, never a multiple."""

    def __init__(self, every: int) -> None:
        self.every = every

    def is_due(self, step: int, micro: int) -> bool:
        last = step * micro - 1  # number of the step's last micro-batch
        return last % self.every == 0


@contextmanager
def odd_parity() -> Any:
    """Let the trainer ask that interval when to log and when to score."""

    def evaluate(self: Any) -> None:
        config = self._config
        if OddParity(config.eval.every).is_due(self.step, config.train.grad_accum_steps):
            self._evaluate()  # fault: multiples of four among odd numbers

    with mock.patch("tsx.trainer.loop.Trainer._evaluate_when_due", evaluate):
        yield


def interval_is_silent(loop: Loop) -> None:
    config = loop.session.config
    every, micro = config.eval.every, config.train.grad_accum_steps
    assert not any(OddParity(every).is_due(step, micro) for step in range(1, 10_000))
    assert config.train.steps > every
    assert all(len(step.losses) == 2 for step in loop.seen)


def past_the_end(loop: Loop) -> None:
    config = loop.session.config
    assert config.eval.every > config.train.steps
    assert not any("val" in key for step in loop.seen for key in step.logged)


def longer_than_context(loop: Loop) -> None:
    config = loop.session.config
    assert max(config.model.horizons) > config.data.context_length


def nothing_held_out(loop: Loop) -> None:
    assert loop.session.corpus.val is None
    assert loop.session.config.eval.every > 0


def leaves_gaps(loop: Loop) -> None:
    data = loop.session.config.data
    assert data.stride > data.context_length + 1


def spoil_target(batch: Batch, step: int) -> Batch:
    """Make a target of one window NaN from a step on."""
    if step < 3:
        return batch
    target = batch.target_BC.copy()
    target[1, 4] = np.nan
    return Batch(batch.input_BC, target, batch.target_mask_BC, batch.input_mask_BC)


def target_is_bad(loop: Loop) -> None:
    shows_at_last_step(loop)
    _, _, target_BC, mask_BC, _ = loop.seen[-1].batches[0]
    assert (~target_BC.isfinite()).nonzero().tolist() == [[1, 4]]
    assert mask_BC[1, 4]


def slice_back(batch: Batch, step: int) -> Batch:
    """Take the wrong slice: the target is the point before."""
    target = np.roll(batch.input_BC, 1, axis=1)
    return Batch(batch.input_BC, target, batch.target_mask_BC, batch.input_mask_BC)


def target_is_past(loop: Loop) -> None:
    for step in loop.seen:
        x_BC, _, target_BC, *_ = step.batches[0]
        assert torch.equal(target_BC[:, 1:], x_BC[:, :-1])


def train_padding(batch: Batch, step: int) -> Batch:
    """Say of every target that it counts."""
    mask = np.ones_like(batch.target_mask_BC)
    return Batch(batch.input_BC, batch.target_BC, mask, batch.input_mask_BC)


def counts_padding(loop: Loop) -> None:
    seen = [step.batches[0] for step in loop.seen]
    assert any(not seen_BC.all() for _, seen_BC, *_ in seen)
    assert all(mask_BC.all() for _, _, _, mask_BC, _ in seen)


def burst(batch: Batch, step: int) -> Batch:
    """Serve one batch a thousand times too large."""
    scale = np.float32(1000.0 if step == 8 else 1.0)
    return Batch(
        batch.input_BC * scale, batch.target_BC * scale, batch.target_mask_BC, batch.input_mask_BC
    )


def has_spike(loop: Loop) -> None:
    losses = [step.losses[0] for step in loop.seen]
    assert losses[7] > 50 * max(losses[:7])
    assert all(step.is_finite for step in loop.seen)


ENTRIES = (
    plant(
        name="tsx-bf16-norms",
        kind="frozen-param",
        mechanism="update-underflow",
        module="blocks.0.attention_norm",
        steps=6,
        story="The diary's 49 norms: the model is in bf16, and Adam's step at 1.0 is under half an "
        "ulp. Believed to be the gradient flow through token skipping.",
        patch=bf16_model,
        config={"optim__lr": 1e-3, "optim__schedule": "constant"},
        proof=norms_stand,
    ),
    plant(
        name="tsx-group-lost",
        kind="frozen-param",
        mechanism="not-in-optimizer",
        module="blocks.0.attention_norm",
        marker="# fault: the other group is lost",
        story="Groups by weight decay: the one without decay never reached the optimizer.",
        patch=replace("tsx.trainer.optim.build_optimizer", freeze_norm_groups),
        proof=vectors_stand,
    ),
    plant(
        name="tsx-experts-detached",
        kind="frozen-param",
        mechanism="no-gradient",
        module="blocks.0.moe.experts",
        marker="# fault: routed part without a graph",
        story="The routed experts' output is detached; the shared one hides it.",
        patch=replace("tsx.model.moe.Experts", DetachedExperts),
        proof=routed_stand,
    ),
    plant(
        name="tsx-decay-on-norms",
        kind="lr",
        mechanism="weight-decay-on-norms",
        severity="info",
        module="blocks.0.attention_norm",
        story="One group for all: weight decay pulls the norms to 0.",
        patch=replace("tsx.trainer.optim.build_optimizer", decay_all),
        proof=decays_norms,
    ),
    plant(
        name="tsx-endless-warm-up",
        kind="lr",
        mechanism="warm-up-longer-than-run",
        story="The diary's run of 80 steps with a warm-up of 10,000: the rate never arrives.",
        steps=6,
        config={"optim__warmup_steps": 10_000},
        proof=never_arrives,
    ),
    plant(
        name="tsx-odd-parity",
        kind="interval-never-fires",
        mechanism="odd-parity",
        marker="# fault: multiples of four among odd numbers",
        story="Validation and checkpoints never come: the interval is asked of micro-steps, and "
        "with two of them a step their numbers are odd for ever.",
        steps=6,
        patch=odd_parity,
        config={"train__grad_accum_steps": 2, "eval__every": 4},
        proof=interval_is_silent,
    ),
    plant(
        name="tsx-interval-past-end",
        kind="interval-never-fires",
        mechanism="interval-longer-than-run",
        story="A run of 6 steps is to be scored every 50.",
        config={"eval__every": 50},
        proof=past_the_end,
    ),
    plant(
        name="tsx-horizon-past-window",
        kind="config-lint",
        mechanism="horizon-longer-than-context",
        story="A horizon of 32 points in windows of 24: its last points have no label, ever.",
        config={"model__horizons": [1, 32]},
        proof=longer_than_context,
    ),
    plant(
        name="tsx-nothing-held-out",
        kind="config-lint",
        mechanism="no-validation-series",
        story="Validation is asked for every 2 steps, and no series is held out for it.",
        config={"data__val_split": 0.0, "eval__every": 2},
        proof=nothing_held_out,
    ),
    plant(
        name="tsx-windows-with-gaps",
        kind="config-lint",
        mechanism="stride-longer-than-context",
        story="Windows start 40 points apart and are 24 long: 16 of 40 points are never seen.",
        config={"data__stride": 40},
        proof=leaves_gaps,
    ),
    plant(
        name="tsx-bad-target",
        kind="nan-origin",
        severity="error",
        mechanism="bad-target",
        story="A target of sample 1 is NaN while its mask says that it counts.",
        served=spoil_target,
        proof=target_is_bad,
    ),
    plant(
        name="tsx-wrong-slice",
        kind="target-shift",
        mechanism="lag-minus-one",
        severity="error",
        story="The language model's diary: input and target are sliced the wrong way round, so "
        "the target is the point before.",
        served=slice_back,
        proof=target_is_past,
    ),
    plant(
        name="tsx-padding-trained",
        kind="data-quality",
        mechanism="loss-on-padding",
        story="The mask of the targets is all True: zeros after a short series are trained on.",
        served=train_padding,
        proof=counts_padding,
    ),
    plant(
        name="tsx-burst",
        kind="loss-spike",
        mechanism="bad-scale",
        steps=10,
        config={"train__steps": 10},
        story="One batch is a thousand times too large; the loss jumps and comes back.",
        served=burst,
        proof=has_spike,
    ),
)
