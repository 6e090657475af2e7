"""Models that look odd and are right: masks, ties, zero starts, frozen parts, routers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH
from tests.faults.plant import Healthy, Loop
from tests.faults.proofs import has_moved, trains


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, h: Tensor) -> Tensor:
        return self.drop(h)


class SafeRoot(nn.Module):
    """A root with the input made safe before it, and where after it."""

    def forward(self, x: Tensor) -> Tensor:
        positive = x > 0.2
        safe = torch.where(positive, x - 0.2, 1.0)
        return torch.where(positive, safe.sqrt(), torch.zeros_like(x))


class NormConv(nn.Module):
    """Batch statistics in train mode, running ones in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class FrozenConv(nn.Module):
    """A backbone that is frozen by design: no gradient, and its norm in eval mode for good."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


def build_frozen() -> Loop:
    model = parts.ConvNet(FrozenConv())
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    return parts.make_loop(model, parts.images, parts.classify, optimizer=optimizer)


def frozen_for_good(loop: Loop) -> None:
    trains(*(f"middle.{n}" for n in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")))(loop)
    assert not has_moved(loop, "middle.norm.running_mean")


class ZeroBranch(nn.Module):
    """A residual branch whose last layer starts at zero, so that the block starts as nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(F.gelu(self.up(h)))


def build_zero_branch() -> Loop:
    model = parts.Mlp(ZeroBranch())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return parts.make_loop(model, parts.rows, optimizer=optimizer)


class Vae(nn.Module):
    """A bounded log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_var = self.encoder(x).chunk(2, -1)
        log_var = log_var.clamp(-8.0, 8.0)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1).mean()
        return F.mse_loss(self.decoder(z), x) + 1e-3 * divergence


class SparseMixture(nn.Module):
    """Top-2 of four experts with a balancing loss; each expert takes its own rows."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        flat = h.flatten(0, -2)
        probs = self.router(flat).softmax(-1)
        weight, chosen = probs.topk(2, -1)
        load = F.one_hot(chosen, 4).sum(1).float().mean(0) / 2
        self.aux = 4 * (load * probs.mean(0)).sum()
        y = flat
        for index, expert in enumerate(self.experts):
            rows, slot = (chosen == index).nonzero(as_tuple=True)
            y = y.index_add(0, rows, weight[rows, slot, None] * expert(flat[rows]))
        return y.view_as(h)


class WithAux(Loop):
    def step(self, run: Any, step: int) -> None:
        super().step(run, step)
        run.log({"aux_loss": float(self.model.middle.aux.detach())}, step=step)


def mixture_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    output = model(x)  # leaves the aux of this batch behind
    return F.mse_loss(output, y) + 0.01 * model.middle.aux


class Siamese(nn.Module):
    """One encoder for both halves of a pair, with a distance that is safe at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return ((self.embed(a) - self.embed(b)).square().sum(-1) + 1e-6).sqrt()


def pairs(step: int) -> tuple[Tensor, Tensor, Tensor]:
    a, _ = parts.rows(step)
    b, _ = parts.rows(step + 500)
    b[0] = a[0]
    return a, b, (a - b)[:, 0].abs()


class CausalConv(nn.Module):
    """Convolutions over time, padded on the left only."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, WIDTH, 3)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, dilation=2)
        self.leave = nn.Conv1d(WIDTH, 1, 1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        x = F.relu(self.enter(F.pad(x_BTF.mT, (2, 0))))
        return self.leave(F.relu(self.mix(F.pad(x, (4, 0))))).mT


class RunningNorm(nn.Module):
    """Divides by the mean square up to each step: causal, unlike a window's own."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        count = torch.arange(1, h_BTD.shape[1] + 1)[None, :, None]
        mean = h_BTD.square().mean(-1, keepdim=True).cumsum(1) / count
        return h_BTD / (mean + 1e-3).sqrt()


class BothWays(nn.Module):
    """A bidirectional GRU that fills gaps: it may look ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, WIDTH, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, 1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.head(self.rnn(x_BTF)[0])


def gaps(step: int) -> tuple[Tensor, Tensor]:
    """Return series with every third point taken out, and the whole series."""
    x, _ = parts.waves(step)
    given = x.clone()
    given[:, 1::3] = 0.0
    return given, x


causal = partial(Healthy, causal=True)
ENTRIES = (
    Healthy(
        name="dropout",
        architecture="recurrent",
        looks="two forward passes in train mode differ",
        build=lambda: parts.recurrent(Dropping()),
        proof=trains(),
        steps=40,
    ),
    Healthy(
        name="double-where",
        architecture="conv",
        looks="a root behind where, with its input made safe as well",
        build=lambda: parts.conv(SafeRoot()),
        proof=trains(),
    ),
    Healthy(
        name="batch-norm",
        architecture="conv",
        looks="outputs depend on the batch in train mode; in eval mode they do not",
        build=lambda: parts.conv(NormConv()),
        proof=trains(),
    ),
    Healthy(
        name="frozen-by-design",
        architecture="conv",
        looks="a part without gradients from the start, its norm in eval mode for good",
        build=build_frozen,
        proof=frozen_for_good,
    ),
    Healthy(
        name="zero-start",
        architecture="mlp",
        looks="the last layer of a branch starts at 0, so the layers before it have no gradient "
        "in the first step and the first update is large beside 0",
        build=build_zero_branch,
        proof=trains(),
        steps=60,
    ),
    Healthy(
        name="bounded-vae",
        architecture="vae",
        looks="a loss with noise in it, and exponentials of a bounded log-variance",
        build=lambda: parts.make_loop(
            Vae(), lambda step: (parts.rows(step)[0],), lambda model, x: model(x)
        ),
        proof=trains(),
        steps=60,
    ),
    Healthy(
        name="sparse-mixture",
        architecture="moe",
        looks="experts take rows of unequal counts; the balancing loss is near 1",
        build=lambda: parts.make_loop(
            parts.Recurrent(SparseMixture()), parts.waves, mixture_loss, kind=WithAux
        ),
        proof=trains(),
        steps=40,
    ),
    Healthy(
        name="siamese",
        architecture="mlp",
        looks="one encoder runs twice a step; one pair of each batch is equal",
        build=lambda: parts.make_loop(
            Siamese(), pairs, lambda model, a, b, y: F.mse_loss(model(a, b), y)
        ),
        proof=trains(),
        steps=40,
    ),
    causal(
        name="causal-convolution",
        architecture="conv",
        looks="convolutions over time, padded on the left only",
        build=lambda: parts.make_loop(CausalConv(), parts.waves),
        proof=trains(),
    ),
    causal(
        name="running-norm",
        architecture="recurrent",
        looks="statistics over time, of the past only",
        build=lambda: parts.recurrent(RunningNorm()),
        proof=trains(),
        steps=40,
    ),
    Healthy(
        name="gap-filler",
        architecture="recurrent",
        looks="both directions of time, declared; targets are the inputs where they were taken",
        build=lambda: parts.make_loop(BothWays(), gaps, declares={"causal": False}),
        proof=trains(),
        steps=40,
    ),
)
