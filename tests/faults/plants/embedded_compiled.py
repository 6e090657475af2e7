"""The performance diary's faults of compilation, in tsx's own model; backend "eager" again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.faults.embedded import plant, replace
from tests.faults.plant import Loop
from tsx.model.attention import RotaryTable
from tsx.model.experts import Experts
from tsx.model.moe import MixtureOfExperts
from tsx.model.router import Routing

# torch warns of what its own tracer does.
WARNS = "The .grad attribute of a Tensor|<class 'torch.autograd.function.Function'>"


def apply_expert(x_MD: Tensor, gate_up_YD: Tensor, down_DX: Tensor) -> Tensor:
    gate, up = F.linear(x_MD, gate_up_YD).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down_DX)


class PerExpert(Experts):
    """Each expert takes its own rows through a compiled function: a shape for each count."""

    def __init__(self, num_experts: int, hidden_size: int, width: int) -> None:
        super().__init__(num_experts, hidden_size, width)
        forget()
        self.one = torch.compile(apply_expert, backend="eager", dynamic=False)

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        y_ND = torch.zeros_like(x_ND)
        for index in range(len(self.gate_up_EYD)):
            rows, slot = (routing.experts_NK == index).nonzero(as_tuple=True)
            y = self.one(x_ND[rows], self.gate_up_EYD[index], self.down_EDX[index])  # fault: rows
            y_ND = y_ND.index_add(0, rows, routing.weights_NK[rows, slot, None] * y)
        return y_ND


class ReadingMixture(MixtureOfExperts):
    """Reads its busiest load to the host, to print it one day."""

    busiest = 0.0

    def forward(self, x_BTD: Tensor, valid_N: Tensor | None) -> Any:
        y, stats = super().forward(x_BTD, valid_N)
        self.busiest = stats.load_E.max().item()  # fault: read inside the block
        return y, stats


class RegisteringTable(RotaryTable):
    """Registers its tables anew at each call."""

    def forward(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        self.build(num_tokens)  # fault: tables made again in forward
        return super().forward(num_tokens)


def forget() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@contextmanager
def compiled_blocks(mixture: type) -> Any:
    """Let the trainer compile its blocks with graph breaks allowed, and without a compiler."""

    def compile_blocks(model: Any, mode: Any) -> None:
        forget()
        for block in model.blocks:
            block.compile(backend="eager", dynamic=False)

    with (
        mock.patch("tsx.trainer.session.check_can_compile", return_value=None),
        mock.patch("tsx.trainer.session.compile_blocks", compile_blocks),
        replace("tsx.model.forecaster.MixtureOfExperts", mixture)(),
    ):
        yield


def reaches_limit(loop: Loop) -> None:
    """The one function was compiled as often as the limit allows."""
    frames = dict(torch._dynamo.utils.counters["frames"])
    forget()
    assert frames["ok"] >= torch._dynamo.config.recompile_limit
    assert frames["total"] > frames["ok"]


def breaks_in_blocks(loop: Loop) -> None:
    counters = torch._dynamo.utils.counters
    broken = sum(sum(counters[key].values()) for key in ("graph_break", "unimplemented", "resumes"))
    forget()
    assert broken >= 1
    assert loop.model.blocks[0].moe.busiest > 0


def tables_are_new(loop: Loop) -> None:
    """Each call leaves other tables than the last, of equal values."""
    rotary = loop.model.rotary
    first, _ = rotary(24)
    second, _ = rotary(24)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


ENTRIES = (
    plant(
        name="tsx-experts-by-rows",
        kind="recompile-limit",
        mechanism="shape-of-routed-rows",
        module="blocks.0.moe.experts",
        marker="# fault: rows",
        warns=WARNS,
        slow=True,
        story="The performance diary: each expert is compiled for each count of rows, the limit of "
        "8 is reached in two steps, and the rest runs as it is written.",
        patch=replace("tsx.model.moe.Experts", PerExpert),
        proof=reaches_limit,
    ),
    plant(
        name="tsx-item-in-block",
        kind="graph-break",
        mechanism="item",
        module="blocks.0.moe",
        marker="# fault: read inside the block",
        warns=WARNS,
        slow=True,
        story="A load is read to the host inside a compiled block: the graph ends there.",
        patch=lambda: compiled_blocks(ReadingMixture),
        config={"perf__compile": True},
        proof=breaks_in_blocks,
    ),
    plant(
        name="tsx-tables-again",
        kind="throughput",
        severity="info",
        mechanism="rebuilt-in-forward",
        module="rotary",
        marker="# fault: tables made again in forward",
        story="The tables of positions are made again in each forward pass.",
        patch=replace("tsx.model.forecaster.RotaryTable", RegisteringTable),
        proof=tables_are_new,
    ),
)
