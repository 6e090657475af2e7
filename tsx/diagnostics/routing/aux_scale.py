"""The balancing loss of a mixture against what its routers' own load and probabilities give.

    aux of a layer = E * sum_e f_e r_e

with f the shares of the routed tokens and r the mean probabilities, is 1 for a flat router and for
a balanced one, K where f is summed over the K chosen, and L times that where layers are added. A
logged aux that is none of these, but L^2 or N times one, is mis-scaled; nothing is said of balance.

An aux is a logged value of that name, in a step whose call was traced. Its line is that of the
first number of the call with this very value. Not covered: other formulas of balance.

Shapes: L layers, E experts, K chosen per token, N tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.routing.routes import FUNCTIONS, Choice, Routes, list_routing
from tsx.diagnostics.tracing.tape import OpSeen, Tape

KIND = Kind(
    "aux-scale",
    means="The balancing loss of a mixture has another scale than its formula, or moves nothing.",
    story="An aux of 144 was called incredibly high and blamed on the router. It was 12 x 12: sums "
    "over 12 layers were multiplied, and a flat router reads 144.",
    evidence="The logged aux, what the loads and probabilities of the same step give, their ratio.",
    fix="Take the product per layer and the mean over layers; means over tokens, not sums.",
)
KEY = re.compile(r"(^|[/_.])aux(_loss)?$|balanc\w*_loss$")
NOT_KEY = re.compile(r"(^|/)(val|valid|eval|test)|layer", re.IGNORECASE)
EXACT = 1e-4  # relative: a number of the same call
APART = 10.0  # times EXACT: how far all that is right must be from what is exactly wrong
NEAR, CLEAR = 0.05, 2.0  # for a mean over micro-batches: relative, and times all that is right
OUTWEIGHS = 5.0  # times the rest of the loss: the usual weights make it a hundredth
FIRST_STEPS = 4  # in which that is judged: later the rest may have become small, rightly
MAX_NUMBERS = 500  # of a call that are kept
MAX_STEPS = 8  # whose calls wait for a line
_OPS = (
    *("sum", "mul", "mean", "dot", "add", "add_", "div", "stack", "cat", "select", "squeeze"),
    *("unsqueeze", "view", "_to_copy", "sub", "neg", "clone", "mul_", "div_", "expand"),
)


@dataclass(slots=True)
class _Number:
    """A small result of a call; those of one element may be the aux."""

    tensor: Tensor
    op: str
    where: str
    module: str
    sources: tuple[int, ...]  # ids of what it was made of


@dataclass(slots=True)
class _Seen:
    """What is known of the aux of one call."""

    step: int
    numbers: list[tuple[str, str, bool, frozenset[int]]]  # where, module, gradient, descendants
    values: list[float] = field(default_factory=list)
    sums: list[tuple[int, int]] = field(default_factory=list)  # numbers: result, summand
    loss: int = -1  # the number that is the loss
    layers: list[list[float]] = field(default_factory=list)  # load and probability, of each layer
    top_k: int = 1
    tokens: int = 1


class AuxScale(Detector):
    """Holds a logged aux against the routers of its step."""

    name = "aux_scale"
    kinds = (KIND,)
    functions = FUNCTIONS
    ops = frozenset(_OPS)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._routes = Routes(scene.model)
        self._numbers: list[_Number] = []
        self._held: set[int] = set()  # ids of their tensors
        self._stats: list[tuple[Tensor, Tensor]] = []
        self._is_traced = False
        self._calls: dict[int, _Seen] = {}
        self._logged: dict[int, tuple[str, float]] = {}
        self._heavy = 0

    def before_call(self, call: Call) -> None:
        """Forget the last call."""
        self._is_traced = False
        self._numbers.clear()
        self._held.clear()
        self._routes.begin()

    def saw_function(self, seen: OpSeen) -> None:
        """See the routers' choices."""
        self._routes.see(seen)

    def saw_op(self, seen: OpSeen) -> None:
        """Keep small results, and what they were made of."""
        out = seen.out
        if not isinstance(out, Tensor) or out.numel() > 64 or not out.is_floating_point():
            return
        if len(self._numbers) < MAX_NUMBERS:
            # Of what is held only: the id of anything else may be another's by now.
            sources = tuple(id(t) for t in iter_tensors(seen.args) if id(t) in self._held)
            self._held.add(id(out))
            self._numbers.append(_Number(out, seen.name, seen.where, seen.module, sources))

    def after_trace(self, tape: Tape) -> None:
        """Take the routers' own statistics, where the model returns them."""
        self._is_traced = True
        self._stats = next((s for s in (list_routing(c.out) for c in tape.root_calls) if s), [])

    def after_call(self, call: Call) -> None:
        """Send numbers, loads and probabilities of a traced call to the host."""
        choices = list({choice.module: choice for choice in self._routes.choices[::-1]}.values())
        choices, numbers = choices[::-1], self._numbers
        self._numbers = []
        self._routes.begin()
        if not self._is_traced or not choices or not numbers or call.step in self._calls:
            return
        stats = self._stats or [_split(choice) for choice in choices]
        self._stats = []
        if len({len(load) for load, _ in stats}) != 1:
            return
        singles = [number for number in numbers if number.tensor.numel() == 1]
        seen = _describe(call, singles, numbers)
        seen.top_k = choices[0].chosen_NK.shape[1]
        seen.tokens = len(choices[0].chosen_NK)
        values = [number.tensor.detach().reshape(()).float() for number in singles]
        rows = [torch.cat([load, prob]).detach().float() for load, prob in stats]
        packed = torch.cat([torch.stack(values).to(rows[0]), *rows]) if values else None
        if packed is None:
            return

        def take(held: Any) -> None:
            seen.values = held[: len(values)]
            rest, width = held[len(values) :], len(rows[0])
            seen.layers = [rest[i : i + width] for i in range(0, len(rest), width)]
            self._calls[seen.step] = seen
            self._match(seen.step)

        self.scene.voice.read_late(packed, take)

    def saw_values(self, values: Mapping[str, Any], step: int) -> None:
        """See what was logged as an aux."""
        for key, value in values.items():
            if _is_aux(key) and isinstance(value, float):
                self._logged.setdefault(step, (key, value))
                self._match(step)
        while len(self._logged) > MAX_STEPS:
            self._logged.pop(next(iter(self._logged)))
        while len(self._calls) > MAX_STEPS:
            self._calls.pop(next(iter(self._calls)))

    def _match(self, step: int) -> None:
        """Judge a step once both its call and its line are there."""
        if step not in self._calls or step not in self._logged:
            return
        seen, (key, aux) = self._calls.pop(step), self._logged.pop(step)
        same = [i for i, value in enumerate(seen.values) if _is_near(value, aux, EXACT / 10)]
        evidence: dict[str, Any] = {"key": key, "aux": aux, **_describe_layers(seen)}
        place = seen.numbers[same[0]][:2] if same else ("", "")
        wrong = _find_scale(seen, aux, is_exact=bool(same))
        if wrong is not None:
            self._report_scale(wrong, place, step, evidence)
        elif same:
            self._judge_gradient(seen, same, place, evidence)
            self._judge_weight(seen, same, evidence)

    def _report_scale(
        self, wrong: str, place: tuple[str, str], step: int, evidence: Mapping[str, Any]
    ) -> None:
        if wrong == "sum-over-layers":
            cause = "sums over layers are multiplied: a flat router reads the square of their count"
            fix = "multiply load and probability within each layer, then take the mean over layers"
        else:
            cause = "the balancing loss is summed over tokens: it grows with the batch"
            fix = "take the mean of the probabilities over tokens"
        self._report(wrong, cause, fix, place, step, evidence)

    def _judge_gradient(
        self, seen: _Seen, same: Sequence[int], place: tuple[str, str], evidence: Mapping[str, Any]
    ) -> None:
        """Tell of an aux in the loss that has no gradient: it is made of counts alone."""
        is_in_loss = any(seen.loss in seen.numbers[i][3] for i in same)
        if is_in_loss and not any(seen.numbers[i][2] for i in same):
            cause = "the balancing loss has no gradient: it is made of counts alone, and is added "
            cause += "to the loss for nothing"
            fix = "multiply the shares of the tokens with the mean probabilities, which have one"
            self._report("no-gradient", cause, fix, place, seen.step, evidence)

    def _judge_weight(self, seen: _Seen, same: Sequence[int], evidence: Mapping[str, Any]) -> None:
        """Tell of a balancing loss that is many times the loss it helps."""
        below = frozenset(same).union(*(seen.numbers[i][3] for i in same))
        for result, part in seen.sums:
            if part not in below or seen.step > FIRST_STEPS:
                continue
            weighed, rest = seen.values[part], seen.values[result] - seen.values[part]
            if abs(weighed) < OUTWEIGHS * abs(rest):
                continue
            self._heavy += 1
            if self._heavy > 1:  # the first call's other loss may be small by chance
                cause = "the balancing loss outweighs the loss: the router balances, and little "
                cause += "is learned beside"
                fix = "weigh the balancing loss by about 0.01"
                more = {"weighed": weighed, "rest_of_the_loss": rest}
                place = (seen.numbers[result][0], "")
                self._report("weight-too-large", cause, fix, place, seen.step, {**evidence, **more})
            return

    def _report(
        self,
        mechanism: str,
        cause: str,
        fix: str,
        place: tuple[str, str],
        step: int,
        evidence: Mapping[str, Any],
    ) -> None:
        self.scene.report(
            KIND.name,
            mechanism,
            cause,
            fix,
            step=step,
            phase="forward",
            module=place[1],
            where=place[0],
            evidence=evidence,
        )


def _split(choice: Choice) -> tuple[Tensor, Tensor]:
    """Return load and mean probability of a choice."""
    sizes = choice.measure()
    num_experts = (len(sizes) - 2) // 2
    load = sizes[:num_experts]
    return load / load.sum().clamp(min=1), sizes[num_experts:-2]


def _describe(call: Call, singles: Sequence[_Number], numbers: Sequence[_Number]) -> _Seen:
    """Return what is known of the numbers of a call without their values."""
    places = {id(number.tensor): index for index, number in enumerate(singles)}
    below = _find_descendants(numbers)
    described = [
        (
            number.where,
            number.module,
            number.tensor.requires_grad,
            frozenset(places[i] for i in below[id(number.tensor)] if i in places),
        )
        for number in singles
    ]
    sums = [
        (places[id(number.tensor)], places[source])
        for number in singles
        if number.op in ("add", "add_")
        for source in number.sources
        if source in places and source != id(number.tensor)
    ]
    loss = places.get(id(call.loss), -1)
    return _Seen(call.step, described, sums=sums, loss=loss)


def _find_descendants(numbers: Sequence[_Number]) -> dict[int, set[int]]:
    """Return, for each result, all that was made of it; each is after what it was made of."""
    below: dict[int, set[int]] = {id(number.tensor): set() for number in numbers}
    for number in reversed(numbers):
        name = id(number.tensor)
        for source in number.sources:
            if source in below and source != name:
                below[source] |= {name} | below[name]
    return below


def _find_scale(seen: _Seen, aux: float, *, is_exact: bool) -> str | None:
    """Return what an aux was summed over, None where it is right or of another formula."""
    right, wrong = list(_iter_right(seen)), list(_iter_wrong(seen))
    for mechanism, value in wrong:
        if is_exact and _is_near(aux, value, EXACT):
            if not any(_is_near(aux, other, APART * EXACT) for other in right):
                return mechanism
        elif _is_near(aux, value, NEAR) and aux > CLEAR * max(right):
            return mechanism
    return None


def _iter_right(seen: _Seen) -> Iterator[float]:
    """Yield the values that this step's routers give under the usual conventions."""
    layers, joint = [_multiply(layer) for layer in seen.layers], _multiply(_join(seen.layers))
    for factor in _list_factors(seen, layers):
        yield from (factor * value for value in layers)
        yield factor * sum(layers) / len(layers)
        yield factor * sum(layers)
        yield factor * joint


def _list_factors(seen: _Seen, layers: Sequence[float]) -> list[int]:
    """Return 1 or K, what f is summed over: as the call's own numbers have it, or both."""
    both = sorted({1, seen.top_k})
    found = [
        factor
        for factor in both
        if all(any(_is_near(v, factor * a, EXACT) for v in seen.values) for a in layers)
    ]
    return found or both


def _iter_wrong(seen: _Seen) -> Iterator[tuple[str, float]]:
    """Yield mechanisms and the values that they give."""
    layers, joint = [_multiply(layer) for layer in seen.layers], _multiply(_join(seen.layers))
    mean = sum(layers) / len(layers)
    for factor in _list_factors(seen, layers):
        if len(layers) > 1:
            yield "sum-over-layers", factor * len(layers) ** 2 * joint
            yield "sum-over-layers", factor * len(layers) ** 2 * mean
        for value in (*layers, mean, sum(layers), joint):
            yield "sum-over-tokens", factor * seen.tokens * value


def _join(layers: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(layers) for column in zip(*layers, strict=True)]


def _multiply(layer: Sequence[float]) -> float:
    """Return E * sum_e f_e r_e of a row of loads and probabilities."""
    half = len(layer) // 2
    return half * sum(f * r for f, r in zip(layer[:half], layer[half:], strict=True))


def _describe_layers(seen: _Seen) -> dict[str, Any]:
    half = len(seen.layers[0]) // 2
    return {
        "flat_router": 1.0,
        "aux_of_each_layer": [_multiply(layer) for layer in seen.layers[:8]],
        "load_max_over_mean": [half * max(layer[:half]) for layer in seen.layers[:8]],
        "layers": len(seen.layers),
        "tokens": seen.tokens,
    }


def _is_near(value: float, other: float, tolerance: float) -> bool:
    return abs(value - other) <= tolerance * max(abs(other), 1e-9)


@lru_cache(maxsize=1024)
def _is_aux(key: str) -> bool:
    """Return whether a key is one of an aux in training; each line asks again for the same few."""
    return KEY.search(key) is not None and NOT_KEY.search(key) is None
