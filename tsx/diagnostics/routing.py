"""Routers that have collapsed, experts that nobody is sent to, tokens that are dropped.

Each router is judged by itself: over all layers a load may be even that is even in none. A verdict
needs several calls in a row; a fresh router, a small batch and an expert for rare tokens are no
faults.

Seen are the calls that are traced, and one call of each step that is looked at. Not covered:
routers inside captured graphs, unless the model returns their statistics.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.engine import has_compiled_parts
from tsx.diagnostics.routes import FUNCTIONS, Choice, Listener, Routes, list_routing
from tsx.diagnostics.tape import OpSeen

KIND = Kind(
    "router",
    means="A router sends its tokens to too few experts, drops them, or does not choose at all.",
    story="An aux of 144 was taken for a collapsed router; nobody had looked at the load, and the "
    "144 was what a flat router gives. Over all layers a load can be even while each layer has "
    "collapsed.",
    evidence="Load and mean probability of each expert, layer by layer, share of tokens dropped.",
    fix="Look at the load per layer; weigh the balancing loss higher, or draw the router smaller.",
)
CALLS = 3  # in a row that must agree
TAKES_ALL, SURE = 0.95, 0.8  # tokens that one expert gets, and its mean probability
UNLIKELY = 0.1  # mean probability of a dead expert, against a flat router's
EXPECTED = 30.0  # tokens that a flat router would have sent to it over the calls
EVEN = 1.25  # busiest expert over the mean, over all layers: looks balanced
UNEVEN = 1.25  # and of one layer that is flat
FLAT = 0.01  # spread of a token's probabilities, against 1/E
GROWS = 1.5  # from the first call to the last: it is on its way
DROPPED = 0.3  # tokens that no expert changes; a capacity of 1.0 drops up to a fifth at the start
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
        seen: the last calls.
    """

    name: str
    where: str = ""
    capacity: str = ""
    top_k: int = 1
    seen: deque[Observed] = field(default_factory=lambda: deque(maxlen=CALLS))

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
        first, last = self.seen[0], self.seen[-1]
        stays = 0 < last.spread <= GROWS * first.spread
        return stays and all(c.spread < FLAT and c.imbalance > UNEVEN for c in self.seen)


class Routing(Detector):
    """Keeps an eye on all routers of a model."""

    name = "routing"
    kinds = (KIND,)
    functions = FUNCTIONS

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._routes = Routes(scene.model)
        self._layers: dict[str, RouterLayer] = {}
        self._homes: dict[str, str] = {}  # module of choice and experts to the router's
        self._dropped: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._listener: Listener | None = None
        self._last_step = 0  # that was looked at
        self._is_compiled = has_compiled_parts(scene.model)
        self._told: set[tuple[str, str]] = set()

    def before_call(self, call: Call) -> None:
        """Listen to the routers that are known, once in a step that is looked at."""
        self._routes.begin()
        self._dropped.clear()
        if not self._layers or self._is_compiled or not self._is_due(call):
            return
        modules = dict(self.scene.model.named_modules())
        for name in self._layers:
            module = modules.get(name)
            if module is not None:
                self._hook(name, module)

    def saw_function(self, seen: OpSeen) -> None:
        """See a choice in a traced call."""
        if self._listener is None:
            self._routes.see(seen)

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """See which tokens a mixture leaves as they are."""
        is_home = any(
            self._routes.find_home(choice.module, choice.probs_NE.shape[-1]) == name
            for choice in self._routes.choices
        )
        before = args[0] if args else None
        after = out[0] if isinstance(out, tuple) and out else out
        if not is_home or not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return
        if before.shape == after.shape and before.ndim >= 2:
            is_same = ((after == before) | (after == 0)).all(-1)
            self._dropped[name] = is_same.float().mean()

    def after_call(self, call: Call) -> None:
        """Measure what was chosen."""
        self._unhook()
        choices = {choice.module: choice for choice in reversed(self._routes.choices)}
        self._routes.begin()
        for choice in reversed(choices.values()):
            self._measure(choice, call.step)
        if not choices and self._layers and self._is_due(call):
            self._measure_returned(call)
        if choices or call.is_looked:
            self._last_step = call.step

    def _is_due(self, call: Call) -> bool:
        """Return whether a call that is not traced is to be looked at: one of a step."""
        is_step = call.is_training and call.is_grad and call.is_looked
        return is_step and self._last_step != call.step

    def raised(self, call: Call, error: BaseException) -> None:
        """Listen no more."""
        self._unhook()
        self._routes.begin()

    def _hook(self, name: str, module: nn.Module) -> None:
        """Let a listener stand while a module runs; whatever fails, the module does not."""

        def enter(module: nn.Module, args: Any) -> None:
            if self._listener is None:
                self._listener = Listener(name, self._hear)
                self._listener.__enter__()  # type: ignore[no-untyped-call]

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        self._hooks.append(module.register_forward_pre_hook(enter))
        self._hooks.append(module.register_forward_hook(leave, always_call=True))

    def _hear(self, seen: OpSeen) -> None:
        try:
            self._routes.see(seen)
        except Exception:  # of odd input: this call is not judged
            self._routes.begin()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _measure(self, choice: Choice, step: int) -> None:
        """Send what a router did to the host; it is judged there."""
        layer = self._layers.setdefault(choice.module, RouterLayer(choice.module))
        if layer.seen and layer.seen[-1].step == step:
            return  # of another micro-batch
        layer.top_k = choice.chosen_NK.shape[1]
        layer.where = choice.where or layer.where
        layer.capacity = choice.capacity or layer.capacity
        num_experts = choice.probs_NE.shape[-1]
        home = self._routes.find_home(choice.module, num_experts)
        dropped = self._dropped.get(home or "")
        with torch.no_grad():
            sizes = choice.measure()
            if dropped is not None:
                sizes = torch.cat([sizes, dropped.to(sizes).reshape(1)])

        def take(values: Any) -> None:
            load, prob = values[:num_experts], values[num_experts : 2 * num_experts]
            tokens, spread, *rest = values[2 * num_experts :]
            share = rest[0] if rest else None
            layer.seen.append(Observed(step, load, prob, tokens, spread, share))
            self._judge(step)

        self.scene.voice.read_late(sizes, take)

    def _measure_returned(self, call: Call) -> None:
        """Take the statistics that a compiled model returns of its routers, in their order."""
        stats = list_routing(call.result)
        layers = list(self._layers.values())
        if not stats or len(stats) != len(layers) or not all(layer.seen for layer in layers):
            return
        rows = torch.stack([torch.cat([load, prob]).float() for load, prob in stats])

        def take(values: Any) -> None:
            for layer, row in zip(layers, values, strict=True):
                tokens, half = layer.seen[-1].tokens, len(row) // 2
                load = [share * tokens * layer.top_k for share in row[:half]]
                layer.seen.append(Observed(call.step, load, row[half:], tokens, math.nan))
            self._judge(call.step)

        self.scene.voice.read_late(rows, take)

    def _judge_drops(self) -> None:
        guilty = []
        for layer in self._layers.values():
            shares = [call.dropped for call in layer.seen if call.dropped is not None]
            if layer.capacity and len(shares) > 1 and min(shares) >= DROPPED:
                guilty.append(layer)
        if guilty:
            self._report(
                "dropped-tokens",
                "experts have no room for many of the tokens: they are dropped",
                "give the experts more room, balance the load, or route without a capacity",
                guilty,
                guilty[0].capacity,
                {"dropped_frac": [layer.seen[-1].dropped for layer in guilty[:MAX_LISTED]]},
            )

    def _judge(self, step: int) -> None:
        """Judge all layers together once each was seen in this step."""
        if any(not layer.seen or layer.seen[-1].step != step for layer in self._layers.values()):
            return
        self._judge_drops()
        layers = [layer for layer in self._layers.values() if len(layer.seen) == CALLS]
        guilty = {
            layer.name: layer
            for layer in layers
            if layer.find_only() is not None or layer.list_dead()
        }
        if len(guilty) > 1 and len(guilty) == len(self._layers) and _is_even(layers):
            self._report(
                "collapse-hidden-by-sum",
                "each layer's router sends all tokens to a few experts, other ones in each layer: "
                "over all layers the load looks even",
                "balance the load of each layer by itself: aux per layer, then the mean",
                list(guilty.values()),
                "",
                {},
            )
            return
        alone = [layer for layer in guilty.values() if layer.find_only() is not None]
        if alone:
            self._report(
                "collapse",
                "the router is sure of one expert for nearly every token",
                "weigh the balancing loss higher, draw the router smaller, look for a bias",
                alone,
                "",
                {"expert": alone[0].find_only()},
            )
        dead = [layer for layer in guilty.values() if layer not in alone]
        if dead:
            self._report(
                "dead-experts",
                "experts get no token at all, and their probability stays near 0",
                "weigh the balancing loss higher, draw the router smaller, look for a bias",
                dead,
                "",
                {"experts": dead[0].list_dead()[:MAX_LISTED]},
            )
        flat = [layer for layer in layers if layer.is_flat]
        if flat:
            self._report(
                "flat-probabilities",
                "the router's probabilities are all alike: the aux reads as if the load were "
                "even, and it is not",
                "take the temperature out of the router's scores, or draw its weights larger",
                flat,
                "",
                {"spread": flat[0].seen[-1].spread},
            )

    def _report(
        self,
        mechanism: str,
        cause: str,
        fix: str,
        layers: Sequence[RouterLayer],
        where: str,
        evidence: dict[str, Any],
    ) -> None:
        """Report the first of layers that are alike, once."""
        order = list(self.scene.modules.values())
        first = min(layers, key=lambda layer: order.index(layer.name))
        if (mechanism, first.name) in self._told:
            return
        self._told.add((mechanism, first.name))
        last = first.seen[-1]
        self.scene.report(
            KIND.name,
            mechanism,
            cause,
            fix,
            phase="forward",
            module=first.name,
            where=where or first.where,
            evidence={
                **evidence,
                "load": [round(count / max(sum(last.load), 1.0), 4) for count in last.load[:64]],
                "probability": [round(p, 4) for p in last.prob[:64]],
                "load_max_over_mean": last.imbalance,
                "tokens": last.tokens,
                "modules": [layer.name for layer in layers[:MAX_LISTED]],
            },
        )


def _is_even(layers: Sequence[RouterLayer]) -> bool:
    """Return whether the load over all layers looks even."""
    if len({len(layer.seen[-1].load) for layer in layers}) != 1:
        return False
    shares = [[c / max(sum(x.seen[-1].load), 1.0) for c in x.seen[-1].load] for x in layers]
    total = [sum(column) for column in zip(*shares, strict=True)]
    imbalance: float = max(total) * len(total) / max(sum(total), 1e-9)
    return imbalance <= EVEN
