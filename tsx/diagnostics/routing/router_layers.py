"""What a router did over the calls, and what is wrong with it.

Each router is judged by itself: over all layers a load may be even that is even in none. A verdict
needs several calls in a row; a fresh router, a small batch and an expert for rare tokens are no
faults. Owns the thresholds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

CALLS = 3  # in a row that must agree
TAKES_ALL, SURE = 0.95, 0.8  # tokens that one expert gets, and its mean probability
UNLIKELY = 0.1  # mean probability of a dead expert, against a flat router's
EXPECTED = 30.0  # tokens that a flat router would have sent to it over the calls
EVEN = 1.25  # busiest expert over the mean, over all layers: looks balanced
UNEVEN = 1.25  # and of one layer that is flat
FLAT = 1e-3  # spread of a probability against 1/E; a narrow router drawn at 0.02 starts at 5e-3
GROWS = 1.5  # from the first call to the last: it is on its way
# Tokens that no expert changes, in two calls or in one: a fresh router with a capacity of 1.0 drops
# up to a third at the start.
DROPPED, MOSTLY_DROPPED = 0.3, 0.5
MAX_LISTED = 8


@dataclass(slots=True)
class Observed:
    """What a router did in one call, on the host.

    Attributes:
        step: of the call.
        load: tokens per expert.
        prob: mean probability per expert.
        tokens: of the call.
        spread: of a token's probabilities, against a flat router's.
        dropped: share of tokens that no expert changed; None where nobody looked.
    """

    step: int
    load: list[float]
    prob: list[float]
    tokens: float
    spread: float
    dropped: float | None = None

    @property
    def imbalance(self) -> float:
        """Load of the busiest expert over the mean."""
        return max(self.load) * len(self.load) / max(sum(self.load), 1.0)


@dataclass(slots=True)
class RouterLayer:
    """One router over the calls.

    Attributes:
        name: of the module that chooses.
        where: line of its scores.
        capacity: line that takes choices back.
        top_k: experts per token.
        home: the module that holds it and its experts.
        first_spread: of its very first call.
        seen: the last calls.
    """

    name: str
    where: str = ""
    capacity: str = ""
    top_k: int = 1
    home: str = ""
    first_spread: float = math.nan
    seen: deque[Observed] = field(default_factory=lambda: deque(maxlen=CALLS))

    def add(self, call: Observed) -> None:
        """Take a call."""
        if math.isnan(self.first_spread):
            self.first_spread = call.spread
        self.seen.append(call)

    def list_dead(self) -> list[int]:
        """Return the experts that get nothing and stay unlikely."""
        first, last = self.seen[0], self.seen[-1]
        count = len(last.load)
        chosen = sum(sum(call.load) for call in self.seen)
        if chosen / count < EXPECTED:
            return []
        return [
            e
            for e in range(count)
            if all(c.load[e] == 0 and c.prob[e] * count < UNLIKELY for c in self.seen)
            and last.prob[e] <= GROWS * first.prob[e] + 1e-12
        ]

    def find_only(self) -> int | None:
        """Return the expert that takes nearly all tokens, for sure."""
        best = max(range(len(self.seen[-1].load)), key=lambda e: self.seen[-1].load[e])
        takes_all = all(
            call.load[best] >= TAKES_ALL * call.tokens
            and call.prob[best] >= SURE
            and call.tokens >= EXPECTED / CALLS
            for call in self.seen
        )
        return best if takes_all else None

    @property
    def is_flat(self) -> bool:
        """Whether the probabilities are all alike, and stay so, while the load is not."""
        stays = 0 < self.seen[-1].spread <= GROWS * self.first_spread
        return stays and all(c.spread < FLAT and c.imbalance > UNEVEN for c in self.seen)


class Verdict(NamedTuple):
    """A fault of some layers, alike in all of them."""

    mechanism: str
    cause: str
    fix: str
    layers: list[RouterLayer]
    where: str = ""  # where it is not the line of the scores
    evidence: Mapping[str, Any] = MappingProxyType({})


def iter_verdicts(layers: Sequence[RouterLayer]) -> Iterator[Verdict]:
    """Yield what is wrong with the routers of a model, each seen up to the same step."""
    yield from _judge_drops(layers)
    known = [layer for layer in layers if len(layer.seen) == CALLS]
    alone = [layer for layer in known if layer.find_only() is not None]
    dead = [layer for layer in known if layer not in alone and layer.list_dead()]
    if 1 < len(alone) + len(dead) == len(layers) and is_even(layers):
        yield Verdict(
            "collapse-hidden-by-sum",
            "each layer's router sends all tokens to a few experts, other ones in each layer: "
            "over all layers the load looks even",
            "balance the load of each layer by itself: aux per layer, then the mean",
            [*alone, *dead],
        )
        return
    if alone:
        yield Verdict(
            "collapse",
            "the router is sure of one expert for nearly every token",
            "weigh the balancing loss higher, draw the router smaller, look for a bias",
            alone,
            evidence={"expert": alone[0].find_only()},
        )
    if dead:
        yield Verdict(
            "dead-experts",
            "experts get no token at all, and their probability stays near 0",
            "weigh the balancing loss higher, draw the router smaller, look for a bias",
            dead,
            evidence={"experts": dead[0].list_dead()[:MAX_LISTED]},
        )
    flat = [layer for layer in known if layer.is_flat]
    if flat:
        yield Verdict(
            "flat-probabilities",
            "the router's probabilities are all alike: the aux reads as if the load were even, "
            "and it is not",
            "take the temperature out of the router's scores, or draw its weights larger",
            flat,
            evidence={"spread": flat[0].seen[-1].spread},
        )


def _judge_drops(layers: Sequence[RouterLayer]) -> Iterator[Verdict]:
    """Judge capacity: it takes a line that takes choices back, and tokens left as they were."""
    guilty = []
    for layer in layers:
        shares = [c.dropped for c in layer.seen if c.dropped is not None and c.tokens >= EXPECTED]
        least = DROPPED if len(shares) > 1 else MOSTLY_DROPPED
        if layer.capacity and shares and min(shares) >= least:
            guilty.append(layer)
    if guilty:
        yield Verdict(
            "dropped-tokens",
            "experts have no room for many of the tokens: they are dropped",
            "give the experts more room, balance the load, or route without a capacity",
            guilty,
            guilty[0].capacity,
            {"dropped_frac": [layer.seen[-1].dropped for layer in guilty[:MAX_LISTED]]},
        )


def is_even(layers: Sequence[RouterLayer]) -> bool:
    """Return whether the load over all layers looks even."""
    if len({len(layer.seen[-1].load) for layer in layers}) != 1:
        return False
    shares = [[c / max(sum(x.seen[-1].load), 1.0) for c in x.seen[-1].load] for x in layers]
    total = [sum(column) for column in zip(*shares, strict=True)]
    imbalance: float = max(total) * len(total) / max(sum(total), 1e-9)
    return imbalance <= EVEN
