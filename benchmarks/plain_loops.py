"""Plain training loops that cost is measured on: a small causal transformer under AdamW.

Nothing in them knows of tsx; two sizes, named for what a step takes on two cores. Each is written
as an ordinary user would, and is given a `run` with `watch`, `compute` and `log`, which may do
nothing.

Shapes: B batch, T time, D hidden size, H heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256
BATCHES = 16  # that are served in turn: none follows itself


class Size(NamedTuple):
    """How large a loop is."""

    name: str
    hidden_size: int
    num_layers: int
    batch: int
    length: int


SIZES = (Size("15 ms", 64, 2, 12, 96), Size("100 ms", 128, 4, 14, 128))


class Block(nn.Module):
    """Causal attention and a feed-forward, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the next states, shape as given."""
        parts = self.qkv(self.attention_norm(x_BTD)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, 32)).transpose(1, 2) for part in parts)
        y_BHTA = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(y_BHTA.transpose(1, 2).flatten(2))
        return x_BTD + self.down(F.gelu(self.up(self.mlp_norm(x_BTD))))


class Transformer(nn.Module):
    """Tokens in, logits out."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, size.hidden_size)
        self.places = nn.Parameter(0.02 * torch.randn(size.length, size.hidden_size))
        self.blocks = nn.ModuleList(Block(size.hidden_size) for _ in range(size.num_layers))
        self.norm = nn.LayerNorm(size.hidden_size)
        self.head = nn.Linear(size.hidden_size, VOCABULARY, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return logits [B, T, vocabulary]."""
        x_BTD = self.embed(ids_BT) + self.places
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))


class OwnClock:
    """Seconds that one loop has had to itself, where several take turns in one process.

    What goes by the time then comes as often as it would if the loop ran alone.
    """

    def __init__(self) -> None:
        self._had_s = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        """Return the seconds until now."""
        under_way = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._had_s + under_way

    def go(self) -> None:
        """The loop's turn begins."""
        self._since = time.perf_counter()

    def rest(self) -> float:
        """End the loop's turn and return how long it took."""
        assert self._since is not None
        took = time.perf_counter() - self._since
        self._had_s += took
        self._since = None
        return took


class QuietRun:
    """A run that does nothing."""

    def watch(self, model: nn.Module, optimizer: object) -> None:
        """Look away."""

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function."""
        return fn(*args)

    def log(self, values: dict[str, float], step: int) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Nothing was begun."""


class PlainLoop:
    """One loop of a size, from seed 0.

    Args:
        size: of model and batch.
        run: with `watch`, `compute` and `log`.
    """

    def __init__(self, size: Size, run: Any) -> None:
        torch.manual_seed(0)
        self.model = Transformer(size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        shape = (BATCHES, size.batch, size.length + 1)
        start = torch.randint(VOCABULARY, (*shape[:-1], 1), generator=generator)
        pace = torch.randint(1, 4, (*shape[:-1], 1), generator=generator)
        self._ids = (start + pace * torch.arange(shape[-1])) % VOCABULARY
        self._run = run
        self.steps = 0
        run.watch(self.model, self.optimizer)

    def step(self) -> None:
        """Take one training step."""
        self.steps += 1
        ids = self._ids[self.steps % BATCHES]
        self.optimizer.zero_grad()
        loss = self._run.compute(self.measure, ids[:, :-1], ids[:, 1:])
        loss.backward()
        self.optimizer.step()
        self._run.log({"loss": loss.item()}, step=self.steps)

    def measure(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return F.cross_entropy(self.model(x_BT).flatten(0, 1), y_BT.flatten())
