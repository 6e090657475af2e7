"""Which experts got rows, as far as traced calls show it.

A router is whatever chooses by top-k over scores; its experts are the modules beside or below it.
An expert that no row chose in a few small batches may be chosen later; one whose probability is
next to nothing will not be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.detector import Voice
from tsx.diagnostics.tracing.tape import OpSeen

# A chance that is this small beside an even one does not come back by the noise of batches.
OUT_OF_REACH = 0.1
MIN_ROWS = 16  # that each expert would get by an even choice, before its lack of rows says a thing


@dataclass(slots=True)
class Choice:
    """What a router chose, over all traced calls.

    Attributes:
        rows: that went to each expert.
        chance: largest probability that each expert had in the last call.
    """

    rows: list[float]
    chance: list[float]

    def is_starved(self, expert: int) -> bool:
        """Return whether an expert got nothing although many rows were given out."""
        return not self.rows[expert] and sum(self.rows) / len(self.rows) >= MIN_ROWS

    def count_starved(self) -> int:
        """Return how many experts got nothing."""
        return sum(not rows for rows in self.rows)

    def is_out_of_reach(self, expert: int) -> bool:
        """Return whether no row was anywhere near choosing an expert."""
        return self.chance[expert] * len(self.chance) < OUT_OF_REACH


class RoutedRows:
    """Counts the rows of experts.

    Attributes:
        choices: by the name of the module in which the top-k was taken.
    """

    def __init__(self, voice: Voice) -> None:
        self.choices: dict[str, Choice] = {}
        self._voice = voice

    def saw_topk(self, seen: OpSeen) -> None:
        """Note a choice along the last axis."""
        scores, chosen = seen.args[0], seen.out[1]
        if not isinstance(scores, Tensor) or scores.ndim < 2 or scores.is_meta:
            return
        count = scores.shape[-1]
        if not 1 < count <= 4096 or not scores.is_floating_point() or chosen.ndim != scores.ndim:
            return
        rows = torch.zeros(count, device=scores.device)
        flat = chosen.reshape(-1)
        rows.index_add_(0, flat, torch.ones_like(flat, dtype=rows.dtype))
        flat_scores = scores.detach().reshape(-1, count).float()
        is_share = (flat_scores >= 0).all() & ((flat_scores.sum(-1) - 1).abs() < 1e-2).all()
        chance = torch.where(is_share, flat_scores, flat_scores.softmax(-1)).amax(0)

        def take(values: Any) -> None:
            self._add(seen.module, values[0], values[1])

        self._voice.read_late(torch.stack([rows, chance]), take)

    def find_starved(self, name: str) -> tuple[int, Choice] | None:
        """Return the number of the expert that a parameter belongs to, if it gets no rows.

        Args:
            name: "middle.experts.3.weight" or "blocks.0.moe.experts.gate_up[3]".
        """
        for stem, expert in _list_numbers(name):
            home = stem.rpartition(".")[0]
            for module, choice in self.choices.items():
                is_inside = f"{module}.".startswith(f"{stem}.")  # a list of layers, not of experts
                is_near = not is_inside and (not home or f"{module}.".startswith(f"{home}."))
                if is_near and expert < len(choice.rows) and choice.is_starved(expert):
                    return expert, choice
        return None

    def _add(self, module: str, rows: list[float], chance: list[float]) -> None:
        known = self.choices.get(module)
        if known is None or len(known.rows) != len(rows):
            self.choices[module] = Choice(rows, chance)
        else:
            known.rows = [one + other for one, other in zip(known.rows, rows, strict=True)]
            known.chance = chance


def _list_numbers(name: str) -> list[tuple[str, int]]:
    """Return each numbered list on the way to a parameter, the innermost first: stem, number."""
    found = []
    if name.endswith("]"):
        tensor, _, number = name[:-1].rpartition("[")
        found += [(tensor.rpartition(".")[0], int(number))] if number.isdigit() else []
        name = tensor
    parts = name.split(".")
    for place in range(len(parts) - 1, -1, -1):
        if parts[place].isdigit():
            found.append((".".join(parts[:place]), int(parts[place])))
    return found
