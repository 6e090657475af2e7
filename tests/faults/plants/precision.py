"""Dtypes that part, matrix products in fp32 under autocast, attention that is not fused."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.faults import parts
from tests.faults.parts import WIDTH, Attention
from tests.faults.plant import Loop, Plant

autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


class Products(TorchDispatchMode):
    """Notes the dtype of each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm", "convolution"):
            self.dtypes.append(result.dtype)
        return result


class Calls(TorchFunctionMode):
    """Notes which torch functions are called, and whether one is under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.met_autocast = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        self.met_autocast |= torch.is_autocast_enabled("cpu")
        return func(*args, **(kwargs or {}))


def in_autocast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with autocast():
        logits = model(x)
    return F.cross_entropy(logits.float().flatten(0, -2), y.flatten())


def regress_in_autocast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with autocast():
        return F.mse_loss(model(x).float(), y)


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.rms_norm(x, (WIDTH,), self.weight, 1e-6)  # fault: bf16 beside fp32


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.norm = RmsNorm()

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(self.proj(h))


def norm_gets_bf16(loop: Loop) -> None:
    seen: list[torch.dtype] = []
    norm = loop.model.middle.norm
    handle = norm.register_forward_hook(lambda m, x, y: seen.append(x[0].dtype))
    with torch.no_grad():
        loop.loss(*loop.batch(1))
    handle.remove()
    assert seen == [torch.bfloat16]
    assert norm.weight.dtype == torch.float32


class DoublePrecision(nn.Module):
    """A table from numpy: fp64, and all that is added to it."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(16, dtype=torch.float64)[:, None] / torch.arange(1, WIDTH + 1)
        self.register_buffer("table", angle.sin())
        self.mix = nn.Linear(WIDTH, WIDTH).double()

    def forward(self, h_BTD: Tensor) -> Tensor:
        h_BTD = h_BTD + self.table[: h_BTD.shape[1]]  # fault: fp64 from here on
        return self.mix(h_BTD).float()


class Careful(Attention):
    """Leaves autocast for its scores, out of care, and takes the products with it."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            return super().attend(q, k, v, keep_BT)  # fault: products in fp32


def outside_autocast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    output = model(x)  # fault: the model runs before autocast
    with autocast():
        return F.mse_loss(output, y)


def some_in(dtype: torch.dtype, *, all_of_them: bool = False, under: bool = True):
    """Return a proof that some (or all) products have this dtype, under autocast or not."""

    def proof(loop: Loop) -> None:
        with torch.no_grad(), Calls() as calls, Products() as products:
            loop.loss(*loop.batch(1))
        wrong = [found for found in products.dtypes if found is dtype]
        assert wrong
        assert (len(wrong) == len(products.dtypes)) is all_of_them
        assert calls.met_autocast is under

    return proof


class Dropped(Attention):
    """The fused call with dropout, which this device fuses only without."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        asked = {"dropout_p": 0.1 if self.training else 0.0, "is_causal": True}
        return F.scaled_dot_product_attention(q, k, v, **asked)  # fault: dropout in the call


class LearnedBias(Attention):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(width)
        self.bias = nn.Parameter(torch.zeros(16, 16))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        size = q.shape[-2]
        hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
        bias = self.bias[:size, :size].masked_fill(hidden, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # fault: a bias that learns


def is_not_fused(loop: Loop) -> None:
    """The graph of the faulty block has no fused node, that of a plain call has."""
    attention = loop.model.blocks[0].attention
    q, k, v = attention.split(torch.randn(2, 9, WIDTH))
    with Calls() as calls:
        attention.attend(q, k, v, None)
    assert F.scaled_dot_product_attention in calls.seen
    assert not any("Flash" in name for name in _list_nodes(attention.attend(q, k, v, None)))
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert any("Flash" in name for name in _list_nodes(plain))


def _list_nodes(output: Tensor) -> list[str]:
    waiting, names = [output.grad_fn], []
    while waiting and len(names) < 100:
        node = waiting.pop()
        if node is not None:
            names.append(node.name())
            waiting.extend(upper for upper, _ in node.next_functions)
    return names


ENTRIES = (
    Plant(
        name="mixed-norm",
        kind="dtype-mismatch",
        architecture="recurrent",
        mechanism="fp32-weight-bf16-input",
        module="middle.norm",
        marker="# fault: bf16 beside fp32",
        warns="Mismatch dtype between input and weight",
        story="A norm outside autocast is given bf16 and has an fp32 weight: no fused kernel.",
        build=lambda: parts.make_loop(parts.Recurrent(Normed()), parts.waves, regress_in_autocast),
        proof=norm_gets_bf16,
    ),
    Plant(
        name="double-precision",
        kind="upcast",
        architecture="recurrent",
        mechanism="fp64-from-numpy",
        module="middle",
        marker="# fault: fp64 from here on",
        blind=True,
        story="Half the speed for no reason (a kind of question in forums): a table made in numpy "
        "is fp64, and so is all that comes after.",
        build=lambda: parts.recurrent(DoublePrecision()),
        proof=some_in(torch.float64, under=False),
    ),
    Plant(
        name="careful-attention",
        kind="upcast",
        architecture="attention",
        mechanism="autocast-left",
        module="blocks.0.attention",
        marker="# fault: products in fp32",
        causal=True,
        story="Attention leaves autocast for the sake of its softmax, and takes both its products "
        "with it.",
        build=lambda: parts.make_loop(parts.Transformer(Careful), parts.tokens, in_autocast),
        proof=some_in(torch.float32),
    ),
    Plant(
        name="autocast-around-loss",
        kind="upcast",
        architecture="conv",
        mechanism="autocast-misplaced",
        marker="# fault: the model runs before autocast",
        blind=True,
        story="Mixed precision gives no speed (a kind of question in forums): autocast is around "
        "the loss, not around the model.",
        build=lambda: parts.make_loop(
            parts.ConvNet(),
            lambda step: (parts.images(step)[0], torch.zeros(12, 4)),
            outside_autocast,
        ),
        proof=some_in(torch.float32, all_of_them=True),
    ),
    Plant(
        name="dropout-in-the-call",
        kind="attention-backend",
        severity="info",
        architecture="attention",
        mechanism="dropout-not-fused",
        module="blocks.0.attention",
        marker="# fault: dropout in the call",
        causal=True,
        story="The fused call is given a dropout, which no fused kernel of this device has.",
        build=lambda: parts.transformer(Dropped),
        proof=is_not_fused,
    ),
    Plant(
        name="bias-that-learns",
        kind="attention-backend",
        architecture="attention",
        mechanism="mask-wants-gradient",
        module="blocks.0.attention",
        marker="# fault: a bias that learns",
        severity="info",
        causal=True,
        story="A learned bias goes in as the mask: a mask with a gradient leaves the fused kernel.",
        build=lambda: parts.transformer(LearnedBias),
        proof=is_not_fused,
    ),
)
