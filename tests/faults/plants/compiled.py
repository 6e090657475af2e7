"""What keeps torch.compile from helping: recompilations, their limit, breaks of the graph.

Compiled with the backend "eager": guards, breaks and recompilations are those of any backend, and
nothing is generated.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import WIDTH
from tests.faults.plant import Loop, Plant

# torch warns of what its own tracer reads.
compiled = partial(Plant, slow=True, warns="The .grad attribute of a Tensor")


def compile_model(model: nn.Module) -> nn.Module:
    """Compile a model's forward in place, so that its modules keep their names."""
    torch._dynamo.reset()
    model.compile(backend="eager", dynamic=False)
    return model


class Counting(nn.Module):
    """Keeps count of its calls in a number that the graph depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1.0 + 1e-3 * self.calls)  # fault: a number that changes each call


class Layer(nn.Module):
    """One layer; what is compiled must be a user's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class PerExpert(nn.Module):
    """Each expert is given its rows: another shape for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(Layer() for _ in range(3))
        for expert in self.experts:
            expert.compile(backend="eager", dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        y = x
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().flatten()
            y = y.index_add(0, rows, weight[rows, None] * expert(x[rows]))  # fault: shapes of rows
        return y


class Reading(nn.Module):
    """Reads a number to the host in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        top = x.abs().max().item()  # fault: read in the graph
        return x / (1.0 + top)


class Branching(nn.Module):
    """Takes a way that depends on its data."""

    def forward(self, h: Tensor) -> Tensor:
        h = F.silu(h)
        if h.mean() > 0:  # fault: a branch on data
            h = F.relu(h)
        return 2.0 * h


class Regrowing(nn.Module):
    """Makes its table of positions anew in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1, WIDTH))

    def forward(self, h_BTD: Tensor) -> Tensor:
        size = h_BTD.shape[1]
        if self.table.shape[0] != size:
            fresh = torch.arange(size * WIDTH).view(size, WIDTH) / 100.0
            self.register_buffer("table", fresh)  # fault: registered again in forward
        return h_BTD + self.table


def take_counts() -> tuple[int, int]:
    """Return frames compiled and graphs that ended early, and forget both.

    Versions of torch count breaks in different places.
    """
    counters = torch._dynamo.utils.counters
    frames = counters["frames"]["ok"]
    broken = sum(sum(counters[key].values()) for key in ("graph_break", "unimplemented", "resumes"))
    counters.clear()
    torch._dynamo.reset()
    return frames, broken


def recompiles(times: int):
    """Return a proof that at least so many frames were compiled."""

    def proof(loop: Loop) -> None:
        assert take_counts()[0] >= times

    return proof


def breaks(loop: Loop) -> None:
    assert take_counts()[1] >= 1


def build_compiled(middle: nn.Module, make: Any = None, **rest: Any) -> Loop:
    loop = (make or parts.mlp)(middle, **rest)
    compile_model(middle)
    torch._dynamo.utils.counters.clear()
    return loop


def build_experts() -> Loop:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return parts.mlp(PerExpert(), batch=lambda step: parts.rows(step, size=24 + 3 * step))


def uneven(step: int) -> tuple[Tensor, Tensor]:
    return parts.waves(step, length=8 + step)


ENTRIES = (
    compiled(
        name="counting-calls",
        kind="recompile",
        architecture="mlp",
        mechanism="python-number",
        module="middle",
        marker="# fault: a number that changes each call",
        blind=True,
        steps=5,
        story="Every step compiles again (a kind of report against torch.compile, as "
        "pytorch/pytorch 128319): the module counts its calls, and the graph depends on it.",
        build=lambda: build_compiled(Counting()),
        proof=recompiles(4),
    ),
    compiled(
        name="uneven-windows",
        kind="recompile",
        architecture="recurrent",
        mechanism="shape",
        module="middle",
        steps=4,
        story="Each batch has another length, and shapes are static: each compiles again.",
        build=lambda: build_compiled(Layer(), parts.recurrent, batch=uneven),
        proof=recompiles(4),
    ),
    compiled(
        name="experts-by-rows",
        kind="recompile-limit",
        architecture="moe",
        mechanism="shape-of-routed-rows",
        module="middle.experts.0",
        marker="# fault: shapes of rows",
        steps=8,
        story="The performance diary: experts are given their own rows, a new shape each time, "
        "until the limit of 8 is reached and the rest runs uncompiled.",
        build=build_experts,
        proof=recompiles(8),
    ),
    compiled(
        name="item-in-forward",
        kind="graph-break",
        architecture="mlp",
        mechanism="item",
        module="middle",
        marker="# fault: read in the graph",
        story="A number is read to the host in the middle of the graph.",
        build=lambda: build_compiled(Reading()),
        proof=breaks,
    ),
    compiled(
        name="branch-on-data",
        kind="graph-break",
        architecture="recurrent",
        mechanism="data-dependent-branch",
        module="middle",
        marker="# fault: a branch on data",
        story="A branch depends on the mean of the states: the graph ends there.",
        build=lambda: build_compiled(Branching(), parts.recurrent),
        proof=breaks,
    ),
    compiled(
        name="table-registered-again",
        kind="recompile",
        architecture="recurrent",
        mechanism="buffer-replaced",
        module="middle",
        marker="# fault: registered again in forward",
        steps=5,
        story="A cache of positions is registered anew in forward whenever the length changes.",
        build=lambda: build_compiled(Regrowing(), parts.recurrent, batch=uneven),
        proof=recompiles(4),
    ),
)
