"""The forward pass makes NaN or inf: logarithms, quotients, exponentials, empty reductions."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import at_step
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import shows_at_last_step

nan = partial(Plant, kind="nan-origin", severity="error", proof=shows_at_last_step)


class Probabilities(nn.Module):
    """A head that answers with log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8 * 4, parts.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        p = self.proj(x).softmax(-1)
        return p.log()  # fault: logarithm after softmax


def build_log_softmax() -> Loop:
    def loud(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[0] *= 3000.0
        return x, y

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return -model(x).gather(1, y[:, None]).mean() - 0.01 * model(x).mean()

    model = parts.ConvNet(head=Probabilities())
    return parts.make_loop(model, at_step(3, loud, parts.images), loss)


class LogReturns(nn.Module):
    """What a forecaster of prices does to its input."""

    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF[:, 1:].log() - x_BTF[:, :-1].log()  # fault: logarithm of a price of zero


class PriceModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.returns = LogReturns()
        self.net = parts.Recurrent()

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.net(self.returns(x_BTF))


def build_log_returns() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.waves(step)
        x = x + 3.0
        if step == 3:
            x[1, 4] = 0.0
        return x, y[:, 1:]

    return parts.make_loop(PriceModel(), batch)


def saturated_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    p = model(x).sigmoid()
    label = (y > 0).float()
    return -(label * p.log() + (1 - label) * (1 - p).log()).mean()  # fault: 1 - p is zero


def build_saturated() -> Loop:
    def far(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * 400.0, y

    return parts.make_loop(parts.Mlp(), at_step(3, far, parts.rows), saturated_loss)


class Standardize(nn.Module):
    """Scale each window by itself."""

    def forward(self, x_BTF: Tensor) -> Tensor:
        centred = x_BTF - x_BTF.mean(1, keepdim=True)
        return centred / centred.square().mean(1, keepdim=True).sqrt()  # fault: no eps


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Standardize()
        self.net = parts.Recurrent()

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.net(self.scale(x_BTF))


def build_constant_window() -> Loop:
    def flat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[2] = 0.5
        return x, y

    return parts.make_loop(Scaled(), at_step(3, flat, parts.waves))


class UnitLength(nn.Module):
    """Cosine features."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)  # fault: no length to divide by


def build_unit_length() -> Loop:
    def dark(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[3] = -60.0  # an empty picture: the rectified stem is 0 everywhere
        return x, y

    def bright(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.images(step)
        return x.abs() + 3.0, y

    loop = parts.conv(UnitLength(), batch=at_step(3, dark, bright))
    with torch.no_grad():
        loop.model.stem.weight.abs_()
    return loop


class OwnBatchNorm(nn.Module):
    """Batch normalisation over samples by hand, unbiased."""

    def forward(self, x_BD: Tensor) -> Tensor:
        centred = x_BD - x_BD.mean(0)
        variance = centred.square().sum(0) / (torch.ones(len(x_BD)).sum() - 1)  # fault: one sample
        return centred / (variance + 1e-5).sqrt()


def build_last_batch() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        return parts.rows(step, size=1 if step == 3 else 8)

    return parts.mlp(OwnBatchNorm(), batch=batch)


def masked_mean(model: nn.Module, x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    error = (model(x) - y).square()[valid]
    return error.mean()  # fault: mean of nothing


def build_nothing_valid() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        x, y = parts.waves(step)
        return x, y, torch.full(y.shape, step != 2)

    return parts.make_loop(parts.Recurrent(), batch, masked_mean)


def all_ignored(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x).flatten(0, 1)
    return F.cross_entropy(logits, y.flatten(), ignore_index=-100)  # fault: all labels ignored


def build_prompt_only() -> Loop:
    def prompt(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.full_like(y, -100)

    return parts.make_loop(parts.Transformer(), at_step(3, prompt, parts.tokens), all_ignored)


class Encoder(nn.Module):
    """Mean and log-variance, unbounded."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 2 * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.body(x).chunk(2, -1)
        noise = torch.randn_like(mean)
        var = log_var.exp()  # fault: unbounded log-variance
        return mean, log_var, mean + var.sqrt() * noise


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_var, z = self.encoder(x)
        divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1).mean()
        return F.mse_loss(self.decoder(z), x) + 1e-3 * divergence


def build_vae() -> Loop:
    def far(x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (x * 1000.0,)

    def batch(step: int) -> tuple[Tensor]:
        x, y = parts.rows(step)
        return far(x, y) if step == 3 else (x,)

    return parts.make_loop(Vae(), batch, lambda model, x: model(x), lr=1e-3)


class OwnSoftplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (1 + x.exp()).log()  # fault: exponential before the logarithm


def build_softplus() -> Loop:
    def far(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * 500.0, y

    return parts.mlp(OwnSoftplus(), batch=at_step(3, far, parts.rows))


class GammaCorrection(nn.Module):
    """Brightness to a learned power."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(0.45))

    def forward(self, x: Tensor) -> Tensor:
        return x**self.power  # fault: power of a negative number


class Gamma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = GammaCorrection()
        self.net = parts.ConvNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.gamma(x))


def build_gamma() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.images(step)
        return (x - 0.5 if step == 3 else x.abs() + 0.1), y

    return parts.make_loop(Gamma(), batch, parts.classify)


def normal_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    mean, raw = model(x).chunk(2, -1)
    sigma = F.softplus(raw)
    distance = (y - mean) / sigma  # fault: a deviation of zero
    return (0.5 * distance.square() + (sigma + 1e-6).log()).mean()


def build_sure() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        if step == 3:
            with torch.no_grad():
                model.head.bias[1] = -400.0
        return parts.waves(step)

    model = parts.Recurrent(outputs=2)
    return parts.make_loop(model, batch, normal_loss)


ENTRIES = (
    nan(
        name="log-after-softmax",
        architecture="conv",
        mechanism="log-of-zero",
        module="head",
        marker="# fault: logarithm after softmax",
        story="The loss is inf on a bright picture: the softmax of a far class underflows to 0 "
        "and its logarithm is taken. log_softmax would not.",
        build=build_log_softmax,
    ),
    nan(
        name="zero-price",
        architecture="recurrent",
        mechanism="log-of-zero",
        module="returns",
        marker="# fault: logarithm of a price of zero",
        story="One price of the series is 0, a holiday filled in; log-returns make it -inf and "
        "the states NaN.",
        build=build_log_returns,
    ),
    nan(
        name="saturated-sigmoid",
        architecture="mlp",
        mechanism="log-of-zero",
        marker="# fault: 1 - p is zero",
        blind=True,
        story="A cross-entropy by hand is NaN after some epochs (a kind of report against "
        "autoencoders, as RasmussenLab/vamb 12): a sigmoid is exactly 1 in fp32, and 0 * log(0) "
        "is NaN.",
        build=build_saturated,
    ),
    nan(
        name="constant-window",
        architecture="recurrent",
        mechanism="division-by-zero",
        module="scale",
        marker="# fault: no eps",
        story="Windows are scaled by their own deviation. A constant one has none: 0 / 0.",
        build=build_constant_window,
    ),
    nan(
        name="unit-length",
        architecture="conv",
        mechanism="division-by-zero",
        module="middle",
        marker="# fault: no length to divide by",
        story="Features are divided by their length; an empty picture has features of length 0.",
        build=build_unit_length,
    ),
    nan(
        name="last-batch-of-one",
        architecture="mlp",
        mechanism="empty-reduction",
        also=("division-by-zero",),
        module="middle",
        marker="# fault: one sample",
        blind=True,
        story="NaN at the end of each epoch only (a kind of report against loops without "
        "drop_last): the last batch has one sample, and an unbiased variance divides by 0.",
        build=build_last_batch,
    ),
    nan(
        name="nothing-valid",
        architecture="recurrent",
        mechanism="empty-reduction",
        marker="# fault: mean of nothing",
        steps=2,
        story="No target of this batch is valid, and the mean over an empty selection is NaN.",
        build=build_nothing_valid,
    ),
    nan(
        name="prompt-only-batch",
        architecture="attention",
        mechanism="empty-reduction",
        marker="# fault: all labels ignored",
        blind=True,
        causal=True,
        story="The loss is NaN now and then in instruction tuning (a kind of report against "
        "fine-tuning scripts): truncation left a batch of prompts, every label is -100.",
        build=build_prompt_only,
    ),
    nan(
        name="vae-log-variance",
        architecture="vae",
        mechanism="overflow-fp32",
        module="encoder",
        marker="# fault: unbounded log-variance",
        blind=True,
        story="The divergence term explodes, then NaN (a kind of report against autoencoders, as "
        "vanderschaarlab/synthcity 331): exp of an unbounded log-variance.",
        build=build_vae,
    ),
    nan(
        name="own-softplus",
        architecture="mlp",
        mechanism="overflow-fp32",
        module="middle",
        marker="# fault: exponential before the logarithm",
        story="log(1 + exp(x)) is inf where x is above 88, although softplus is about x there.",
        build=build_softplus,
    ),
    nan(
        name="gamma-correction",
        architecture="conv",
        mechanism="pow-of-negative",
        module="gamma",
        marker="# fault: power of a negative number",
        story="Pictures come centred instead of in 0 .. 1; a broken power of a negative number "
        "is NaN.",
        build=build_gamma,
    ),
    nan(
        name="sure-forecast",
        architecture="recurrent",
        mechanism="division-by-zero",
        marker="# fault: a deviation of zero",
        story="The likelihood divides by a predicted deviation; softplus of a very negative "
        "number is exactly 0.",
        build=build_sure,
    ),
)
