"""Small healthy models and data that plants spoil one piece of.

Shapes: B batch, T time, D hidden size, H heads, A head size, V vocabulary, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.plant import Loop

CLASSES, VOCABULARY, WIDTH = 4, 11, 12


def draw(step: int) -> torch.Generator:
    """Return the generator of one step's batch."""
    return torch.Generator().manual_seed(1000 + step)


def images(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """Return pictures [B, 1, 8, 8] of one of four corners, and which."""
    generator = draw(step)
    label_B = torch.randint(CLASSES, (size,), generator=generator)
    x = 0.3 * torch.randn(size, 1, 8, 8, generator=generator)
    for index, label in enumerate(label_B.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        x[index, 0, top : top + 4, left : left + 4] += 1.0
    return x, label_B


def waves(step: int, size: int = 6, length: int = 13) -> tuple[Tensor, Tensor]:
    """Return a series [B, T, 1] and the same one point later."""
    generator = draw(step)
    phase_B = 6.28 * torch.rand(size, 1, generator=generator)
    time_T = torch.arange(length + 1) / 2.0
    series = (time_T + phase_B).sin() + 0.05 * torch.randn(size, length + 1, generator=generator)
    return series[:, :-1, None], series[:, 1:, None]


def tokens(step: int, size: int = 6, length: int = 9) -> tuple[Tensor, Tensor]:
    """Return tokens 1 .. V-1 that go up by one or two, [B, T], and the same one later."""
    generator = draw(step)
    start_B = torch.randint(VOCABULARY - 1, (size, 1), generator=generator)
    stride_B = torch.randint(1, 3, (size, 1), generator=generator)
    ids = (start_B + stride_B * torch.arange(length + 1)) % (VOCABULARY - 1) + 1
    return ids[:, :-1], ids[:, 1:]


def rows(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Return six features [B, 6] and a target [B, 1] that depends on two of them."""
    x = torch.randn(size, 6, generator=draw(step))
    return x, x[:, :1] - 0.5 * x[:, 1:2]


class ConvNet(nn.Module):
    """A stem, a middle on maps [B, 8, 8, 8] and a head."""

    def __init__(self, middle: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.middle = middle or nn.Identity()
        self.head = head or nn.Linear(8 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.stem(x)))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


class Recurrent(nn.Module):
    """A GRU, a middle on its states [B, T, D] and a head per step."""

    def __init__(self, middle: nn.Module | None = None, inputs: int = 1, outputs: int = 1) -> None:
        super().__init__()
        self.rnn = nn.GRU(inputs, WIDTH, batch_first=True)
        self.middle = middle or nn.Identity()
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.head(self.middle(self.rnn(x_BTF)[0]))


class Mlp(nn.Module):
    """Two layers with a middle [B, D] between them."""

    def __init__(self, middle: nn.Module | None = None, outputs: int = 1, inputs: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, WIDTH)
        self.middle = middle or nn.Identity()
        self.last = nn.Linear(WIDTH, outputs)

    def forward(self, x_BF: Tensor) -> Tensor:
        return self.last(self.middle(F.relu(self.first(x_BF))))


class Attention(nn.Module):
    """Causal attention by hand; `mask` and `weigh` are what plants replace."""

    heads = 2

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        q, k, v = self.split(x_BTD)
        return self.join(self.attend(q, k, v, keep_BT))

    def split(self, x_BTD: Tensor) -> list[Tensor]:
        """Return q, k and v, each [B, H, T, A]."""
        parts = self.qkv(x_BTD).chunk(3, dim=-1)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def join(self, y_BHTA: Tensor) -> Tensor:
        return self.out(y_BHTA.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return self.weigh(scores, self.mask(scores, keep_BT)) @ v

    def mask(self, scores: Tensor, keep_BT: Tensor | None) -> Tensor:
        """Return what may be seen, [B or 1, 1, T, T], True where it may."""
        size = scores.shape[-1]
        seen = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
        return seen if keep_BT is None else seen & keep_BT[:, None, None, :]

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        return scores.masked_fill(~seen, -torch.inf).softmax(-1)


class Block(nn.Module):
    """Pre-norm: attention, then a small feed-forward part."""

    def __init__(self, attention: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.attention = attention
        self.second_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x_BTD: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        normed = self.first_norm(x_BTD)
        x_BTD = x_BTD + (
            self.attention(normed) if keep_BT is None else self.attention(normed, keep_BT)
        )
        return x_BTD + self.down(F.gelu(self.up(self.second_norm(x_BTD))))


class Transformer(nn.Module):
    """Two blocks over tokens; `attention` makes the first one's, or both."""

    def __init__(
        self, attention: Callable[[], nn.Module] = Attention, *, both: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(16, WIDTH))
        second = attention if both else Attention
        self.blocks = nn.ModuleList([Block(attention()), Block(second())])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids_BT: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.embed(ids_BT) + self.position[: ids_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD, keep_BT)
        return self.head(self.norm(x_BTD))


def classify(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy over the last axis; labels of -100 count nothing."""
    return F.cross_entropy(model(x).flatten(0, -2), label.flatten())


def regress(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error."""
    return F.mse_loss(model(x), target)


def make_loop(
    model: nn.Module,
    batch: Callable[[int], tuple[Any, ...]],
    score: Callable[..., Tensor] = regress,
    *,
    lr: float = 1e-2,
    optimizer: Any = None,
    kind: type[Loop] = Loop,
    **rest: Any,
) -> Any:
    """Join the parts to a loop; AdamW where no optimizer is given."""
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    def loss(*args: Any) -> Tensor:
        return score(model, *args)

    return kind(model=model, optimizer=optimizer, batch=batch, loss=loss, **rest)


def conv(middle: nn.Module | None = None, **rest: Any) -> Any:
    """Return a loop of the ConvNet on images."""
    return make_loop(ConvNet(middle), rest.pop("batch", images), classify, **rest)


def recurrent(middle: nn.Module | None = None, **rest: Any) -> Any:
    """Return a loop of the GRU on waves."""
    return make_loop(Recurrent(middle), rest.pop("batch", waves), regress, **rest)


def mlp(middle: nn.Module | None = None, **rest: Any) -> Any:
    """Return a loop of the two layers on rows."""
    return make_loop(Mlp(middle), rest.pop("batch", rows), regress, **rest)


def transformer(attention: Callable[[], nn.Module] = Attention, **rest: Any) -> Any:
    """Return a loop of the transformer on tokens."""
    both = rest.pop("both", False)
    return make_loop(Transformer(attention, both=both), rest.pop("batch", tokens), classify, **rest)


def at_step(number: int, spoil: Callable[..., Any], batch: Callable[[int], Any]) -> Any:
    """Return `batch`, spoiled at one step: `spoil` takes the parts and returns them."""
    return lambda step: spoil(*batch(step)) if step == number else batch(step)
