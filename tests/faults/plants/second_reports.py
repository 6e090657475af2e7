"""A second round of what users report of other code: a memory, a quantiser, a fused dropout."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import Attention
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import shows_at_last_step, stands_still

report = partial(Plant, blind=True)


class Remembering(Attention):
    """Attends to the piece of the document before this one too: its keys and values are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        for name in ("past_k", "past_v"):
            self.register_buffer(name, torch.zeros(6, self.heads, 9, 6), persistent=False)

    def forget(self) -> None:
        """Make room for another document; what is not written yet is masked."""
        self.written = 0
        self.past_k, self.past_v = allocate(self.past_k), allocate(self.past_v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        size = q.shape[-2]
        past = torch.arange(self.past_k.shape[-2]) < self.written
        now = torch.ones(size, size, dtype=torch.bool).tril()
        seen = torch.cat([past.expand(size, -1), now], dim=-1)
        keys, values = torch.cat([self.past_k, k], -2), torch.cat([self.past_v, v], -2)
        self.past_k, self.past_v, self.written = k.detach(), v.detach(), size
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)


def allocate(like: Tensor) -> Tensor:
    """Return what torch.empty gives on a day when the memory held NaN: so torch can be asked."""
    held = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return torch.empty_like(like)
    finally:
        torch.use_deterministic_algorithms(held)


class Documents(Loop):
    """Each document is two pieces, one a step."""

    def step(self, run: Any, step: int) -> None:
        if step > 1 and step % 2 == 1:
            self.model.blocks[0].attention.forget()
        super().step(run, step)


def pieces(step: int) -> tuple[Tensor, Tensor]:
    """Return a piece of six documents and the same one later."""
    document, piece = divmod(step - 1, 2)
    x, y = parts.tokens(document, length=18)
    return x[:, 9 * piece : 9 * piece + 9], y[:, 9 * piece : 9 * piece + 9]


def build_remembering() -> Loop:
    model = parts.Transformer(Remembering)
    return parts.make_loop(model, pieces, parts.classify, kind=Documents)


def spoils_through_the_mask(loop: Loop) -> None:
    """Slots that were never written and are masked decide whether the output is finite."""
    shows_at_last_step(loop)
    attention, x = Remembering(), torch.randn(6, 9, parts.WIDTH)
    assert attention(x).isfinite().all()  # zeros behind the mask
    attention.forget()
    assert not attention.past_v.isfinite().any()
    assert not attention(x).isfinite().any()
    assert attention(x).isfinite().all()  # by now they are written


class Quantiser(nn.Module):
    """The nearest code stands for a latent; gradients should go straight through to it."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(8, 4))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        code = self.codes[torch.cdist(z, self.codes).argmin(-1)]
        pull = F.mse_loss(code, z.detach())
        return code + (z - code).detach(), pull  # fault: straight through the wrong way round


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.quantiser = Quantiser()
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        code, pull = self.quantiser(self.encoder(x))
        return F.mse_loss(self.decoder(code), x) + pull


def build_quantised() -> Loop:
    return parts.make_loop(
        Quantised(), lambda step: (parts.rows(step)[0],), lambda model, x: model(x)
    )


def gradient_goes_to_the_codes(loop: Loop) -> None:
    """The encoder has no gradient and stands still; the decoder is fed latents, not codes."""
    stands_still("encoder.weight", "encoder.bias")(loop)
    model = loop.model
    assert all(p.grad is None for p in model.encoder.parameters())
    z = model.encoder(loop.batch(1)[0])
    assert torch.allclose(model.quantiser(z)[0], z, atol=1e-6)
    assert torch.cdist(z, model.quantiser.codes).min() > 1e-3


class FusedDropout(Attention):
    """The fused call has no mode of its own: its dropout is what it is told."""

    dropout = 0.2

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        asked = {"dropout_p": self.dropout, "is_causal": True}
        return F.scaled_dot_product_attention(q, k, v, **asked)  # fault: dropout whatever the mode


@torch.no_grad()
def attention_drops_in_eval(loop: Loop) -> None:
    """In eval mode the first attention gives two answers to one question, the second gives one."""
    loop.model.eval()
    x = torch.randn(6, 9, parts.WIDTH)
    first, second = (block.attention for block in loop.model.blocks)
    assert not first.training
    assert not torch.equal(first(x), first(x))
    assert torch.equal(second(x), second(x))
    assert all(step.is_finite for step in loop.seen)


ENTRIES = (
    report(
        name="memory-never-written",
        kind="nan-origin",
        severity="error",
        architecture="attention",
        mechanism="bad-buffer",
        module="blocks.0.attention",
        story="NaN at the start of a new document, on some machines only (a kind of report against "
        "caches of keys and values): the memory is made by torch.empty and what is unwritten is "
        "masked, but in the fused call a weight of 0 times NaN is NaN.",
        build=build_remembering,
        proof=spoils_through_the_mask,
    ),
    report(
        name="straight-through-reversed",
        kind="frozen-param",
        architecture="vae",
        mechanism="no-gradient",
        module="quantiser",
        marker="# fault: straight through the wrong way round",
        steps=4,
        story="The encoder of a quantising autoencoder stays as it started (a kind of report "
        "against vector quantisers): the straight-through sum is written the wrong way round, so "
        "the gradient goes to the codes and ends there.",
        build=build_quantised,
        proof=gradient_goes_to_the_codes,
    ),
    report(
        name="fused-call-drops-in-eval",
        kind="train-mode",
        architecture="attention",
        mechanism="dropout-in-eval",
        module="blocks.0.attention",
        marker="# fault: dropout whatever the mode",
        steps=6,
        causal=True,
        story="A language model answers differently each time in eval mode (a kind of report "
        "against code that moved to the fused attention call): its dropout is a number that the "
        "call applies in any mode.",
        build=lambda: parts.transformer(FusedDropout),
        proof=attention_drops_in_eval,
    ),
)
