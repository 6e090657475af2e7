"""The forward pass is finite and the backward pass is not."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import at_step
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import shows_at_last_step


def finite_loss(loop: Loop) -> None:
    """The loss is finite at every step, the gradient at every one but the last."""
    shows_at_last_step(loop)
    assert all(abs(loss) < float("inf") for loss in loop.seen[-1].losses)


nan = partial(Plant, kind="nan-origin", severity="error", proof=finite_loss)


class Siamese(nn.Module):
    """Distance between the embeddings of two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, parts.WIDTH)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        gap = self.embed(a) - self.embed(b)
        return gap.square().sum(-1).sqrt()  # fault: root of a distance of zero


def build_siamese() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        a, y = parts.rows(step)
        b, _ = parts.rows(step + 50)
        if step == 3:
            b[2] = a[2]  # the same row as both halves of a pair
        return a, b, y[:, 0].abs()

    def loss(model: nn.Module, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(a, b), y)

    return parts.make_loop(Siamese(), batch, loss)


class SafeRoot(nn.Module):
    """A root that is meant to be safe below zero."""

    def forward(self, x: Tensor) -> Tensor:
        root = (x - 0.2).sqrt()  # fault: where does not guard a gradient
        return torch.where(x > 0.2, root, torch.zeros_like(x))


class OwnElu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        low = x.exp() - 1  # fault: exponential of the branch not taken
        return torch.where(x < 0, low, x)


def build_safe_root() -> Loop:
    loop = parts.conv(SafeRoot())
    with torch.no_grad():
        loop.model.stem.weight.abs_()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.images(step)
        return (x if step == 2 else x.abs() + 3.0), y

    loop.batch = batch
    return loop


def build_elu() -> Loop:
    def far(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * 600.0, y

    return parts.mlp(OwnElu(), batch=at_step(3, far, parts.rows))


class SignedRoot(torch.autograd.Function):
    """sign(x) * sqrt(|x|) with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign() * x.abs().sqrt()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (2 * x.abs().sqrt())  # fault: backward divides by the input


class Compress(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SignedRoot.apply(x)


class Loudness(nn.Module):
    """Compresses a recording before its GRU, after a trained gain."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.compress = Compress()
        self.net = parts.Recurrent()

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.net(self.compress(self.gain * x_BTF))


def build_silence() -> Loop:
    def silent(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[0, 3] = 0.0
        return x, y

    return parts.make_loop(Loudness(), at_step(3, silent, parts.waves))


class Angle(nn.Module):
    """Angle between a predicted direction and the true one."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 3)

    def forward(self, x: Tensor, direction: Tensor) -> Tensor:
        cosine = (F.normalize(self.proj(x), dim=-1) * direction).sum(-1)
        return cosine.clamp(-1.0, 1.0).acos()  # fault: slope of acos at one


def build_angle() -> Loop:
    model = Angle()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = parts.rows(step)
        direction = F.normalize(torch.randn(len(x), 3, generator=parts.draw(step)), dim=-1)
        if step == 3:
            with torch.no_grad():  # a row that is solved already, along one axis
                model.proj.weight.zero_()
                model.proj.bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
            direction[1] = torch.tensor([1.0, 0.0, 0.0])
        return x, direction

    return parts.make_loop(model, batch, lambda m, x, d: m(x, d).mean())


class Critic(nn.Module):
    """A critic with a penalty on the length of its slope."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, parts.WIDTH), nn.ReLU(), nn.Linear(parts.WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        length = slope.square().sum(-1).sqrt()  # fault: length of a flat slope
        return (length - 1).square().mean() + self.net(x).mean()


def build_critic() -> Loop:
    def batch(step: int) -> tuple[Tensor]:
        x, _ = parts.rows(step)
        if step == 3:
            with torch.no_grad():
                model.net[0].bias.fill_(-50.0)  # every unit of the critic is off
        return (x,)

    model = Critic()
    return parts.make_loop(model, batch, lambda m, x: m(x))


class Whiten(nn.Module):
    """Decorrelates features through their eigenvectors."""

    def forward(self, x_BD: Tensor) -> Tensor:
        centred = x_BD - x_BD.mean(0)
        covariance = centred.T @ centred / len(x_BD) + 1e-3 * torch.eye(x_BD.shape[1])
        values, vectors = torch.linalg.eigh(covariance)  # fault: equal eigenvalues
        return centred @ vectors / values.sqrt()


def build_whiten() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.rows(step)
        if step == 3:  # a batch of one row again and again has no spread at all
            x, y = x[:1].expand(16, 6).clone(), y[:1].expand(16, 1).clone()
        return x, y

    return parts.mlp(Whiten(), batch=batch)


ENTRIES = (
    nan(
        name="equal-pair",
        architecture="mlp",
        mechanism="sqrt-at-zero",
        marker="# fault: root of a distance of zero",
        blind=True,
        story="The loss is fine and all weights become NaN (a kind of report against metric "
        "learning, as pytorch/pytorch 2421): a pair of equal rows has distance 0, where the "
        "slope of the root is infinite.",
        build=build_siamese,
    ),
    nan(
        name="guarded-root",
        architecture="conv",
        mechanism="where-gradient",
        module="middle",
        marker="# fault: where does not guard a gradient",
        blind=True,
        steps=2,
        story="torch.where picks the good branch and the gradient is NaN all the same (a kind of "
        "report against torch, as pytorch/pytorch 187297): 0 times the slope of the root that "
        "was not picked.",
        build=build_safe_root,
    ),
    nan(
        name="own-elu",
        architecture="mlp",
        mechanism="where-gradient",
        module="middle",
        marker="# fault: exponential of the branch not taken",
        blind=True,
        story="Large positive inputs give a NaN gradient (a kind of report against torch, as "
        "pytorch/pytorch 68425): the exponential of the branch not taken is inf, and 0 * inf.",
        build=build_elu,
    ),
    nan(
        name="silent-recording",
        architecture="recurrent",
        mechanism="custom-backward",
        also=("division-by-zero",),
        module="compress",
        marker="# fault: backward divides by the input",
        story="A function with a backward pass of its own divides by its input; silence is 0.",
        build=build_silence,
    ),
    nan(
        name="solved-angle",
        architecture="mlp",
        mechanism="acos-at-one",
        marker="# fault: slope of acos at one",
        blind=True,
        story="A loss of angles diverges when it is nearly solved (a kind of report against "
        "pose estimation): acos has no slope at 1, and clamp does not give it one.",
        build=build_angle,
    ),
    nan(
        name="flat-critic",
        architecture="mlp",
        mechanism="sqrt-at-zero",
        also=("division-by-zero",),
        marker="# fault: length of a flat slope",
        blind=True,
        story="A gradient penalty makes every weight NaN (a kind of report against adversarial "
        "training): where the critic is flat its slope is 0, and so is the length under the "
        "root.",
        build=build_critic,
    ),
    nan(
        name="equal-eigenvalues",
        architecture="mlp",
        mechanism="degenerate-decomposition",
        also=("division-by-zero",),
        module="middle",
        marker="# fault: equal eigenvalues",
        story="The gradient of eigenvectors divides by differences of eigenvalues; a batch "
        "without spread has equal ones.",
        build=build_whiten,
    ),
)
