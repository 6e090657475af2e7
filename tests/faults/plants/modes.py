"""Modules in the wrong mode, buffers that move under frozen weights, ties that come undone."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import VOCABULARY, WIDTH
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import find_parameter, forward_quietly, has_moved

mode = partial(Plant, kind="train-mode", steps=6)
drift = partial(Plant, kind="buffer-drift", steps=4)
tied = partial(Plant, kind="tied-weights", steps=4)


class NeverBack(Loop):
    """Scores the model after three steps and goes on in eval mode."""

    def step(self, run: Any, step: int) -> None:
        super().step(run, step)
        if step == 3:
            self.model.eval()  # fault: never back to train
            with torch.no_grad():
                self.loss(*self.batch(99))


def left_in_eval(loop: Loop) -> None:
    assert not any(module.training for module in loop.model.modules())
    assert any(isinstance(m, nn.Dropout | nn.BatchNorm2d) for m in loop.model.modules())


def build_norm_conv(kind: type[Loop]) -> Loop:
    middle = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.2))
    return parts.conv(middle, kind=kind)


class ScoredInTrain(Loop):
    """Scores without eval mode."""

    def step(self, run: Any, step: int) -> None:
        super().step(run, step)
        with torch.no_grad():
            loss = self.loss(*self.batch(90 + step))  # fault: scored in train mode
        run.log({"val/loss": float(loss)}, step=step)


def scores_at_random(loop: Loop) -> None:
    assert loop.model.training
    with torch.no_grad():
        assert loop.loss(*loop.batch(91)) != loop.loss(*loop.batch(91))
    assert all("val/loss" in step.logged for step in loop.seen)


class AlwaysDropping(nn.Module):
    """Makes its dropout when it is called, so no eval ever reaches it."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        return F.dropout(h_BTD, 0.3)  # fault: training is True by default


def drops_in_eval(loop: Loop) -> None:
    x = loop.batch(1)[0]
    assert not torch.equal(forward_quietly(loop.model, x), forward_quietly(loop.model, x))


class EvalInside(nn.Module):
    """A part that is put into eval mode for a look at its features, by its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.body = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.drop.eval()  # fault: one part is never in train
        return self.body(self.drop(x))


def part_in_eval(loop: Loop) -> None:
    loop.model.train()
    loop.model(loop.batch(1)[0])
    assert loop.model.training
    assert not loop.model.middle.drop.training


class Frozen(nn.Module):
    """A pretrained part with its weights frozen; its running statistics are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


def frozen_but_drifts(module: str, *buffers: str):
    """Return a proof that a module's parameters stand still and these buffers move."""

    def proof(loop: Loop) -> None:
        parameters = dict(loop.model.get_submodule(module).named_parameters())
        assert parameters
        assert not any(has_moved(loop, f"{module}.{name}") for name in parameters)
        assert all(has_moved(loop, f"{module}.{name}") for name in buffers)

    return proof


class Codebook(nn.Module):
    """Nearest codes; the codes follow the data by a running mean, frozen or not."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.register_buffer("codes", torch.randn(5, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        h = self.proj(h)
        nearest = torch.cdist(h, self.codes).argmin(-1)
        if self.training:
            for code in nearest.unique().tolist():
                mean = h[nearest == code].detach().mean(0)
                self.codes[code].lerp_(mean, 0.2)  # fault: moves in a frozen part
        return h + (self.codes[nearest] - h).detach()


class Normaliser(nn.Module):
    """Scales inputs by what it has seen so far, of a detector that is not trained any more."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean())  # fault: whatever the mode
        return self.gain * (x - self.mean)


class NormalisedForecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Normaliser()
        self.net = parts.Recurrent()

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.net(self.scale(x_BTF))


class TiedLanguage(nn.Module):
    """A GRU whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids_BT))[0])


def build_untied_by_load() -> Loop:
    """A checkpoint that has both weights is loaded by assignment."""
    model = TiedLanguage()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)  # fault: each name gets a tensor of its own
    return parts.make_loop(model, parts.tokens, parts.classify)


def build_untied_by_copy() -> Loop:
    loop = parts.transformer()
    clone = loop.model.embed.weight.detach().clone()
    loop.model.head.weight = nn.Parameter(clone)  # fault: equal, but not the same
    loop.optimizer = torch.optim.AdamW(loop.model.parameters(), lr=1e-2)
    return loop


class Mirror(nn.Module):
    """An autoencoder whose decoder should be its encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4, bias=False)
        self.decoder = nn.Linear(4, 6, bias=False)
        self.decoder.weight.data = self.encoder.weight.data.t()  # fault: shares data at the start

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def build_mirror() -> Loop:
    model = Mirror()
    for name in ("encoder", "decoder"):  # what moving a model to a device does to shared data
        layer = getattr(model, name)
        layer.weight.data = layer.weight.data.clone()
    return parts.make_loop(model, lambda step: (parts.rows(step)[0],) * 2)


def apart(first: str, second: str, *, transposed: bool = False):
    """Return a proof that two weights are equal at the start, other tensors, and apart later."""

    def proof(loop: Loop) -> None:
        a, b = loop.initial[first], loop.initial[second]
        assert torch.equal(a, b.mT if transposed else b)
        a, b = find_parameter(loop, first), find_parameter(loop, second)
        assert a.data_ptr() != b.data_ptr()
        assert not torch.allclose(a, b.mT if transposed else b, atol=1e-4)

    return proof


ENTRIES = (
    mode(
        name="left-in-eval",
        architecture="conv",
        mechanism="never-back-to-train",
        marker="# fault: never back to train",
        blind=True,
        story="Training goes worse after the first validation (a kind of report against course "
        "code, as udacity/deep-learning-v2-pytorch 397): eval, and no train after it.",
        build=lambda: build_norm_conv(NeverBack),
        proof=left_in_eval,
    ),
    mode(
        name="scored-in-train",
        architecture="conv",
        mechanism="scored-in-train-mode",
        marker="# fault: scored in train mode",
        blind=True,
        story="Validation is noisy and too low (a kind of report against training code, as "
        "wolny/pytorch-3dunet 53): the model is scored with dropout on.",
        build=lambda: build_norm_conv(ScoredInTrain),
        proof=scores_at_random,
    ),
    mode(
        name="always-dropping",
        architecture="recurrent",
        mechanism="dropout-in-eval",
        module="middle",
        marker="# fault: training is True by default",
        blind=True,
        story="Two runs of a model in eval mode differ (a kind of report against models, as "
        "wenwenyu/PICK-pytorch 77): a functional dropout is not told the mode.",
        build=lambda: parts.recurrent(AlwaysDropping()),
        proof=drops_in_eval,
    ),
    mode(
        name="part-in-eval",
        architecture="mlp",
        mechanism="part-left-in-eval",
        module="middle.drop",
        marker="# fault: one part is never in train",
        story="One dropout of the model is put into eval mode by a forward pass.",
        build=lambda: parts.mlp(EvalInside()),
        proof=part_in_eval,
    ),
    drift(
        name="frozen-statistics-move",
        architecture="conv",
        mechanism="batch-norm-in-train",
        module="middle.norm",
        blind=True,
        story="A frozen backbone is not frozen (a kind of report against transfer learning, as "
        "lightly-ai/lightly 1438): requires_grad is off, running statistics move.",
        build=lambda: parts.make_loop(
            m := parts.ConvNet(Frozen()),
            parts.images,
            parts.classify,
            optimizer=torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2),
        ),
        proof=frozen_but_drifts("middle", "norm.running_mean", "norm.running_var"),
    ),
    drift(
        name="frozen-codebook-moves",
        architecture="mlp",
        mechanism="codebook-follows",
        module="middle",
        marker="# fault: moves in a frozen part",
        story="A quantiser is frozen; its codes follow the data all the same.",
        build=lambda: parts.mlp(Codebook()),
        proof=frozen_but_drifts("middle", "codes"),
    ),
    drift(
        name="normaliser-moves",
        architecture="recurrent",
        mechanism="running-mean-in-eval",
        module="scale",
        marker="# fault: whatever the mode",
        story="A normaliser that is not trained any more keeps a running mean, in eval mode too.",
        build=lambda: parts.make_loop(NormalisedForecaster(), parts.waves),
        proof=frozen_but_drifts("scale", "mean"),
    ),
    tied(
        name="untied-by-load",
        architecture="recurrent",
        mechanism="load-assigns",
        module="head",
        marker="# fault: each name gets a tensor of its own",
        blind=True,
        story="Head and embedding drift apart after a resume (a kind of report about loading "
        "tied models, as google/torchax 68): loading by assignment unties them.",
        build=build_untied_by_load,
        proof=apart("embed.weight", "head.weight"),
    ),
    tied(
        name="untied-by-copy",
        architecture="attention",
        mechanism="copied-not-shared",
        module="head",
        marker="# fault: equal, but not the same",
        causal=True,
        story="The head is tied by a copy: equal on the first day, apart on the second.",
        build=build_untied_by_copy,
        proof=apart("embed.weight", "head.weight"),
    ),
    tied(
        name="mirror-broken",
        architecture="mlp",
        mechanism="data-shared-until-moved",
        module="decoder",
        marker="# fault: shares data at the start",
        story="A decoder shares the data of its encoder until the model is moved to a device.",
        build=build_mirror,
        proof=apart("encoder.weight", "decoder.weight", transposed=True),
    ),
)
