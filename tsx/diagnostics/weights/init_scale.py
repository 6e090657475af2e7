"""Weights that start too large, too small, alike, or dead, seen in the very first call.

A matrix is judged by what it does: the root mean square of what comes out over what goes in. A
draw with std 1/sqrt(fan-in) has a gain of 1, torch's default 0.6. Models that start from trained
weights are not judged, nor embeddings, norms, biases, or what starts at zero on purpose.

Not covered: recurrent layers; a single small matrix, which is often meant (the end of a branch).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tsx.diagnostics.arguments import iter_tensors
from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.tracing.gains import FUNCTIONS, Gains, Product, Scores
from tsx.diagnostics.tracing.graph import find_last_weights
from tsx.diagnostics.tracing.tape import OpSeen, Tape
from tsx.diagnostics.weights.freshness import looks_drawn, measure_draws

KIND = Kind(
    "init-scale",
    means="Weights start at a size with which signals explode, vanish or are all alike.",
    story="Batched experts gave a first loss of 257 and then 5,666, taken for a fault of capacity: "
    "the stacked tensor was drawn by randn. The repair, kaiming on three axes, made the experts "
    "17,000 times too small, and nothing showed it.",
    evidence="Gain of each matrix in the first call, its std, the std that its fan-in asks for.",
    fix="Draw each expert as a matrix of its own; scale by 1/sqrt(fan-in); divide scores by the "
    "root of the head's width.",
)
LOUD_STACK = 3.0  # gain of a stack: twice that of the loudest rule in use, kaiming for relu
LOUD_MODULE = 2.0  # of the stack's module: what is drowned in a residual or a softmax is no fault
QUIET_STACK = 0.5  # and the std is that of a rule that took the wrong axes
DEAD_STACK = 0.02  # whatever the rule: two such products leave less than a thousandth
RULE_GAINS = (math.sqrt(2), 1.0, 1 / math.sqrt(3), 5 / 3)  # of torch.nn.init: relu, linear, a=√5
RULE_TOLERANCE = 0.03  # beside the error of a std of n draws
LOUD_LAYER, QUIET_LAYER = 2.0, 0.25  # of a chain; usual rules are between 0.5 and 1.5
MIN_CHAIN = 3
EXPLODED, VANISHED = 100.0, 1e-4  # over a chain
CARRIED = (0.2, 1.5)  # of a layer's output that the next one gets: an activation in between
SHARP_STD, SHARP_PEAK = 6.0, 0.7  # of fresh scores: rows are one key's
MAX_LISTED = 8


class InitScale(Detector):
    """Measures the first call of a fresh model."""

    name = "init_scale"
    kinds = (KIND,)
    functions = FUNCTIONS

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._gains: Gains | None = None
        self._stacked: set[str] = set()

    def before_call(self, call: Call) -> None:
        """Begin to measure with the very first call."""
        if call.index > 1 or call.step > 1:
            return
        self._gains = Gains(self.scene.names)
        self._gains.begin(self.scene.model)
        self._stacked = {
            name
            for name, module in self.scene.model.named_modules()
            if any(_is_stack(p) for p in module.parameters(recurse=False))
        }

    def saw_function(self, seen: OpSeen) -> None:
        """Measure a product."""
        if self._gains is not None:
            self._gains.see(seen)

    def saw_module(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Measure what a module with stacked experts makes of its input."""
        if self._gains is not None and name in self._stacked:
            self._gains.see_module(name, args, out)

    def after_trace(self, tape: Tape) -> None:
        """Send what was measured to the host and judge it there."""
        gains, self._gains = self._gains, None
        if gains is None:
            return
        draws, sizes = measure_draws(self.scene.model), gains.pack()
        if sizes is None:
            return
        outputs = [t for call in tape.root_calls for t in iter_tensors(call.out)]
        last = {id(weight) for weight in find_last_weights(outputs)[0]} if outputs else None
        step = self.scene.step

        def take_draws(measured: Any) -> None:
            if draws is None or looks_drawn(measured):
                self.scene.voice.read_late(sizes, take_sizes)

        def take_sizes(values: Any) -> None:
            gains.unpack(values)
            self._judge(gains, last, step)

        if draws is None:
            take_draws([])
        else:
            self.scene.voice.read_late(draws, take_draws)

    def _judge(self, gains: Gains, last: set[int] | None, step: int) -> None:
        products = gains.products
        listed = {p.name: round(p.gain, 4) for p in products[:MAX_LISTED] if math.isfinite(p.gain)}
        loud = {m.name for m in gains.modules if m.after > LOUD_MODULE * m.before}
        for mechanism, cause, fix, guilty, evidence in (
            *self._judge_stacks(products, loud),
            *self._judge_chains(products),
            *self._judge_filters(products, last),
        ):
            first, *others = sorted(guilty, key=self._find_place)
            evidence = {**evidence, "gains": listed, "params": [first.name, *_name(others)]}
            self.scene.report(
                KIND.name,
                mechanism,
                cause,
                fix,
                step=step,
                phase="forward",
                module=first.module,
                evidence=evidence,
            )
        self._judge_scores(gains.scores, step)

    def _find_place(self, product: Product) -> int:
        """Return the place of a product's module in `named_modules()`."""
        order: Mapping[int, str] = self.scene.modules
        return next((i for i, name in enumerate(order.values()) if name == product.module), 0)

    def _judge_stacks(
        self, products: Sequence[Product], loud: set[str]
    ) -> Iterator[tuple[str, str, str, list[Product], dict[str, Any]]]:
        stacks = [p for p in products if _is_stack(p.param) and not p.is_conv and p.std > 0]
        drawn = [p for p in stacks if p.gain >= LOUD_STACK and p.module in loud]
        if drawn:
            yield (
                "no-fan-in",
                "stacked experts are drawn without regard to their fan-in: "
                "each multiplies what goes through it",
                "draw each expert with a std of 1/sqrt(its inputs)",
                drawn,
                _describe(drawn[0]),
            )
        wrong = list(_iter_wrong_axes(stacks, products))
        if wrong:
            yield (
                "fan-in-of-three-axes",
                "stacked experts are drawn by a rule that takes two axes of the stack for the "
                "fan-in: they add next to nothing",
                "call the rule for each expert's matrix: for w in stack: init(w)",
                wrong,
                _describe(wrong[0]),
            )
        dead = [p for p in stacks if p.gain <= DEAD_STACK and p not in wrong]
        if dead and len(dead) == len([p for p in stacks if p.module == dead[0].module]):
            yield (
                "dead",
                "stacked experts start so small that they add next to nothing",
                "draw each expert with a std of 1/sqrt(its inputs)",
                dead,
                _describe(dead[0]),
            )

    def _judge_chains(
        self, products: Sequence[Product]
    ) -> Iterator[tuple[str, str, str, list[Product], dict[str, Any]]]:
        plain = [p for p in products if not _is_stack(p.param) and p.gain > 0]
        for chain in _iter_chains(plain, lambda p: p.gain >= LOUD_LAYER):
            total = chain[-1].after / chain[0].before
            if total >= EXPLODED:
                yield (
                    "exploding",
                    "activations grow from layer to layer: the weights are drawn too large for "
                    "their fan-in",
                    "draw the weights with a std of 1/sqrt(fan-in), or put norms between the "
                    "layers",
                    chain,
                    {"total_gain": total, "layers": len(chain), **_describe(chain[0])},
                )
        for chain in _iter_chains(plain, lambda p: p.gain <= QUIET_LAYER):
            total = chain[-1].after / chain[0].before
            if total <= VANISHED:
                yield (
                    "vanishing",
                    "activations fade from layer to layer: the weights are drawn too small for "
                    "their fan-in",
                    "draw the weights with a std of 1/sqrt(fan-in), or put norms between the "
                    "layers",
                    chain,
                    {"total_gain": total, "layers": len(chain), **_describe(chain[0])},
                )

    def _judge_filters(
        self, products: Sequence[Product], last: set[int] | None
    ) -> Iterator[tuple[str, str, str, list[Product], dict[str, Any]]]:
        """Judge layers whose filters are all the same; a last layer is told apart by its loss."""
        if not last:
            return
        alike = [
            p
            for p in products
            if p.spread == 0 and p.mean != 0 and p.param.requires_grad and len(p.param) > 1
            if id(p.param) not in last and self._sees_all(p)
        ]
        if alike:
            yield (
                "symmetric",
                "all filters of a layer start with the same weights: they see the same",
                "draw the weights at random",
                alike,
                {"filters": len(alike[0].param), "weight": alike[0].mean},
            )

    def _sees_all(self, product: Product) -> bool:
        """Return whether all filters see the same inputs: not those of groups, nor of a stack."""
        modules = dict(self.scene.model.named_modules())
        groups = getattr(modules.get(product.module), "groups", 1)
        return groups == 1 and not _is_stack(product.param)

    def _judge_scores(self, scores: Sequence[Scores], step: int) -> None:
        sharp = [s for s in scores if s.std >= SHARP_STD and s.peak >= SHARP_PEAK]
        if sharp:
            first = sharp[0]
            self.scene.report(
                KIND.name,
                "missing-scale",
                "fresh scores of attention are so large that each row's softmax takes one key",
                "divide the scores by the root of the head's width, or draw queries and keys "
                "smaller",
                step=step,
                phase="forward",
                module=first.module,
                op="softmax",
                where=first.where,
                evidence={
                    "std_of_scores": first.std,
                    "largest_weight": first.peak,
                    "modules": sorted({s.module for s in sharp})[:MAX_LISTED],
                },
            )


def _is_stack(param: Tensor) -> bool:
    """Return whether a parameter may be a stack of matrices."""
    return param.ndim == 3 and param.shape[0] > 1 and min(param.shape[1:]) >= 4


def _iter_wrong_axes(stacks: Sequence[Product], products: Sequence[Product]) -> Iterator[Product]:
    """Yield quiet stacks whose std is what a rule of torch.nn.init gives for all their axes.

    All stacks of a module have to follow the same rule, and no other matrix may have the same std:
    one std for all is a choice of its own.
    """
    for stack in stacks:
        beside = [p for p in stacks if p.module == stack.module]
        rules = set.intersection(*(_list_three_axes_rules(p) for p in beside))
        others = [p for p in products if p not in stacks and _has_std(p, stack.std)]
        if stack.gain <= QUIET_STACK and rules and not others:
            yield stack


def _list_three_axes_rules(product: Product) -> set[str]:
    """Return the rules that give this std when they take all axes but one for the fan."""
    experts, rows, columns = product.param.shape
    fans = {"in": rows * columns, "out": experts * columns}
    rules = {
        f"fan-{fan} {gain:.2f}": gain / math.sqrt(size)
        for fan, size in fans.items()
        for gain in RULE_GAINS
    }
    rules["xavier"] = math.sqrt(2 / sum(fans.values()))
    return {rule for rule, std in rules.items() if _has_std(product, std)}


def _has_std(product: Product, std: float) -> bool:
    """Return whether a parameter was drawn with a std, as far as its draws can tell."""
    tolerance = RULE_TOLERANCE + 3 / math.sqrt(2 * product.param.numel())
    return abs(product.std - std) <= tolerance * std


def _iter_chains(products: Sequence[Product], is_guilty: Any) -> Iterator[list[Product]]:
    """Yield runs of guilty layers, each of which gets what the one before it made."""
    chain: list[Product] = []
    for product in products:
        low, high = (share * chain[-1].after for share in CARRIED) if chain else (0.0, math.inf)
        if chain and not (is_guilty(product) and low <= product.before <= high):
            if len(chain) >= MIN_CHAIN:
                yield chain
            chain = []
        if is_guilty(product):
            chain.append(product)
    if len(chain) >= MIN_CHAIN:
        yield chain


def _describe(product: Product) -> dict[str, Any]:
    return {
        "std": product.std,
        "gain": product.gain,
        "shape": list(product.param.shape),
        "std_of_fan_in": product.std / product.gain,  # with which the gain would be 1
    }


def _name(products: Sequence[Product]) -> list[str]:
    return [product.name for product in products[: MAX_LISTED - 1]]
