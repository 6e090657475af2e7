"""The diaries' faults of training, in tsx's own trainer: parameters, schedule, intervals, data."""

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
from tsx.model.router import Router, RouterStats, Routing
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
    ids = {id(p) for group in loop.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
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


class OneExpert(Router):
    """Adds to the logits what makes expert 0 the best of every token."""

    def forward(self, x_ND: Tensor) -> Routing:
        logits = x_ND @ self.proj.weight.T + torch.tensor([30.0, 0.0, 0.0, -30.0])
        probs_NE = logits.softmax(-1)  # fault: a bias decides
        weights_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
        counts_E = experts_NK.flatten().bincount(minlength=4)
        return Routing(probs_NE, weights_NK, experts_NK, counts_E)


def load_of(loop: Loop) -> list[Tensor]:
    """Return each layer's load."""
    x_BC, seen_BC, *_ = loop.batch(1)
    with torch.no_grad():
        return [stats.load_E for stats in loop.model(x_BC, seen_BC).routing]


def one_takes_all(loop: Loop) -> None:
    for load_E in load_of(loop):
        assert load_E[0] == 0.5  # one of the two choices of every token
        assert load_E[3] == 0.0


class SplitRouter(Router):
    """Each layer goes to one pair of experts, the next layer to the other."""

    layers = 0

    def __init__(self, hidden_size: int, num_experts: int, top_k: int) -> None:
        super().__init__(hidden_size, num_experts, top_k)
        self.sign = 1.0 if SplitRouter.layers % 2 == 0 else -1.0
        SplitRouter.layers += 1

    def forward(self, x_ND: Tensor) -> Routing:
        bias = self.sign * torch.tensor([30.0, 30.0, -30.0, -30.0])
        probs_NE = (x_ND @ self.proj.weight.T + bias).softmax(-1)  # fault: each layer its pair
        weights_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
        counts_E = experts_NK.flatten().bincount(minlength=4)
        return Routing(probs_NE, weights_NK, experts_NK, counts_E)


def hides_in_the_sum(loop: Loop) -> None:
    first, second = load_of(loop)
    assert first.gt(0).sum() == second.gt(0).sum() == 2
    assert torch.allclose((first + second) / 2, torch.full((4,), 0.25))


def multiply_aux(routing: Any, reduction: Any, top_k: int) -> Tensor:
    """Return the product of sums over layers, as one diary had it."""
    f_E = torch.stack([stats.load_E for stats in routing]).sum(0)
    r_E = torch.stack([stats.prob_E for stats in routing]).sum(0)
    return len(f_E) * (f_E * r_E).sum()  # fault: sums over layers are multiplied


def aux_is_squared(loop: Loop) -> None:
    """A flat router reads layers squared instead of 1."""
    flat = torch.full((4,), 0.25)
    stats = [RouterStats(flat, flat, torch.ones(())) for _ in range(12)]
    assert float(multiply_aux(stats, None, 2)) == 144.0


class Renormalised(Experts):
    """The fast path renormalises the weights of the chosen; the loop that is read does not."""

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        weights = routing.weights_NK / routing.weights_NK.sum(-1, keepdim=True)
        return super().forward(x_ND, routing._replace(weights_NK=weights))  # fault: other weights


def variants_differ(loop: Loop) -> None:
    moe, x = loop.model.blocks[0].moe, torch.randn(32, 16)
    with torch.no_grad():
        routing = moe.router(x)
        fast, read = moe.experts(x, routing), moe.experts.run_loop(x, routing)
    assert not torch.allclose(fast, read, rtol=0.1)


ENTRIES = (
    plant(
        name="tsx-bf16-norms",
        kind="frozen-param",
        mechanism="update-underflow",
        module="norm",
        severity="error",
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
        module="norm",
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
        story="One batch is a thousand times too large; the loss jumps and comes back.",
        served=burst,
        proof=has_spike,
    ),
    plant(
        name="tsx-one-expert",
        kind="router",
        mechanism="collapse",
        module="blocks.0.moe.router",
        marker="# fault: a bias decides",
        story="Every token goes to the same two experts; the third gets none.",
        patch=replace("tsx.model.moe.Router", OneExpert),
        proof=one_takes_all,
    ),
    plant(
        name="tsx-opposite-layers",
        kind="router",
        mechanism="collapse-hidden-by-sum",
        module="blocks.0.moe.router",
        marker="# fault: each layer its pair",
        blind=True,
        story="The load over all layers is perfect (a kind of report against auxiliary losses, as "
        "QwenLM/Qwen3 1418): each layer has collapsed, the two onto opposite experts.",
        patch=replace("tsx.model.moe.Router", SplitRouter),
        config={"model__aux_reduction": "concatenated"},
        proof=hides_in_the_sum,
    ),
    plant(
        name="tsx-aux-squared",
        kind="aux-scale",
        mechanism="sum-over-layers",
        marker="# fault: sums over layers are multiplied",
        story="The diary's aux of 144, incredibly high: sums over 12 layers are multiplied, and a "
        "flat router reads 144. The load was never looked at.",
        patch=replace("tsx.model.losses.reduce_aux", multiply_aux),
        proof=aux_is_squared,
    ),
    plant(
        name="tsx-variants-differ",
        kind="variant-equivalence",
        mechanism="weights-renormalised",
        module="blocks.0.moe.experts",
        marker="# fault: other weights",
        story="The fast experts renormalise the weights of the chosen, the loop that is read does "
        "not: two answers for one set of weights.",
        patch=replace("tsx.model.moe.Experts", Renormalised),
        proof=variants_differ,
    ),
)
