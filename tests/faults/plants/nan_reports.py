"""NaN as users report it of other code: each plant here is written after a kind of report."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH, at_step
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import shows_at_last_step

nan = partial(Plant, kind="nan-origin", severity="error", blind=True, proof=shows_at_last_step)


class Gumbel(nn.Module):
    """A relaxed choice; the noise is the logarithm of a logarithm."""

    def forward(self, x: Tensor) -> Tensor:
        uniform = 0.999 * torch.rand_like(x)
        if self.training and getattr(self, "meets_zero", False):
            uniform[0, 0] = 0.99999  # half a step of fp16 under 1
        noise = -(-uniform.half().log()).log()  # fault: a draw that rounds to one
        return (x + noise).softmax(-1)


def build_gumbel() -> Loop:
    middle = Gumbel()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        middle.meets_zero = step == 3
        return parts.rows(step)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        entropy = -(model.middle(model.first(x)).clamp_min(1e-30)).log()
        return F.mse_loss(model(x), y) + 1e-3 * entropy.mean()

    return parts.make_loop(parts.Mlp(middle), batch, loss)


class Contrast(nn.Module):
    """Pairs of pictures and texts, with a temperature that learns and is not bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Linear(6, WIDTH)
        self.text = nn.Linear(6, WIDTH)
        self.scale = nn.Parameter(torch.tensor(85.0))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = F.normalize(self.picture(a), dim=-1), F.normalize(self.text(b), dim=-1)
        logits = self.scale.exp() * (a @ b.T)  # fault: an unbounded temperature
        return F.cross_entropy(logits, torch.arange(len(a)))


def build_contrast() -> Loop:
    model = Contrast()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        if step == 3:
            with torch.no_grad():
                model.scale.fill_(95.0)  # where it has drifted to by then
        return parts.rows(step)[0], parts.rows(step + 50)[0]

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    return parts.make_loop(model, batch, lambda m, a, b: m(a, b), optimizer=optimizer)


class HalfNorm(nn.Module):
    """A layer norm in half precision whose eps is 0 there."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        h = h_BTD.half()
        centred = h - h.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return (centred / spread).float()  # fault: eps underflows in fp16


def build_half_norm() -> Loop:
    loop = parts.make_loop(NormFirst(), at_step(3, _silence, parts.waves))
    return loop


def _silence(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x[1] = 0.0
    return x, y


class NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(1, WIDTH, bias=False)
        self.norm = HalfNorm()
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.head(self.rnn(self.norm(self.enter(x_BTF)))[0])


class Tagger(nn.Module):
    """Scores of paths through tags; some steps allow no tag at all."""

    def __init__(self) -> None:
        super().__init__()
        self.net = parts.Recurrent(outputs=4)

    def forward(self, x_BTF: Tensor, allowed_BTC: Tensor) -> Tensor:
        score = self.net(x_BTF).masked_fill(~allowed_BTC, -torch.inf)
        top = score.amax(-1, keepdim=True)
        total = top + (score - top).exp().sum(-1, keepdim=True).log()  # fault: no tag is allowed
        return -total.mean()


def build_tagger() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = parts.waves(step)
        allowed = torch.ones(*x.shape[:2], 4, dtype=torch.bool)
        allowed[:, :, 3] = False
        if step == 2:
            allowed[0, 3] = False
        return x, allowed

    return parts.make_loop(Tagger(), batch, lambda m, x, a: m(x, a))


ENTRIES = (
    nan(
        name="gumbel-of-one",
        architecture="mlp",
        mechanism="log-of-zero",
        module="middle",
        marker="# fault: a draw that rounds to one",
        story="NaN once in a million steps, never twice at the same one (a kind of report against "
        "relaxed sampling): a draw rounds to 1 in half precision, and log(-log(1)) is -inf.",
        build=build_gumbel,
    ),
    nan(
        name="unbounded-temperature",
        architecture="attention",
        mechanism="overflow-fp32",
        also=("exploding-weights",),
        marker="# fault: an unbounded temperature",
        story="Contrastive training ends in NaN late (a kind of report against pairs of pictures "
        "and texts): the logarithm of the temperature learns and is not bounded.",
        build=build_contrast,
    ),
    nan(
        name="half-eps",
        architecture="recurrent",
        mechanism="eps-underflow",
        also=("division-by-zero",),
        module="norm",
        marker="# fault: eps underflows in fp16",
        story="A model is fine in fp32 and NaN in fp16 on silence (a kind of report against layer "
        "norms with eps 1e-12): that eps is 0 in half precision.",
        build=build_half_norm,
    ),
    nan(
        name="no-tag-allowed",
        architecture="recurrent",
        mechanism="fully-masked-row",
        marker="# fault: no tag is allowed",
        steps=2,
        story="A log-sum-exp by hand is NaN (a kind of report against sequence tagging): a step "
        "allows no tag, and -inf minus -inf is NaN.",
        build=build_tagger,
    ),
)
