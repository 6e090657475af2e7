"""Routers that have collapsed, experts that nobody is sent to, tokens that are dropped.

Seen are the calls that are traced, and one call of each step that is looked at: a listener stands
while a known router runs. Not covered: routers inside captured graphs, unless the model returns
their statistics.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor, nn

from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.engine import has_compiled_parts
from tsx.diagnostics.routing.router_layers import (
    MAX_LISTED,
    Observed,
    RouterLayer,
    Verdict,
    iter_verdicts,
)
from tsx.diagnostics.routing.routes import FUNCTIONS, Choice, Listener, Routes, list_routing
from tsx.diagnostics.tracing.tape import OpSeen, Tape

KIND = Kind(
    "router",
    means="A router sends its tokens to too few experts, drops them, or does not choose at all.",
    story="An aux of 144 was taken for a collapsed router; nobody had looked at the load, and the "
    "144 was what a flat router gives. Over all layers a load can be even while each layer has "
    "collapsed.",
    evidence="Load and mean probability of each expert, layer by layer, share of tokens dropped.",
    fix="Look at the load per layer; weigh the balancing loss higher, or draw the router smaller.",
)


class Routing(Detector):
    """Keeps an eye on all routers of a model."""

    name = "routing"
    kinds = (KIND,)
    functions = FUNCTIONS

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._routes = Routes(scene.model)
        self._layers: dict[str, RouterLayer] = {}
        self._dropped: dict[str, Tensor] = {}  # by the module with the experts
        self._hooks: list[Any] = []
        self._listener: Listener | None = None
        self._thread = 0  # that it stands in
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

    def after_trace(self, tape: Tape) -> None:
        """Measure what was chosen in a traced call."""
        self._measure_all(self.scene.step)

    def after_call(self, call: Call) -> None:
        """Measure what was chosen in one that is not."""
        self._unhook()
        self._measure_all(call.step)
        if self._layers and self._is_due(call):
            self._measure_returned(call)
        if call.is_looked:
            self._last_step = call.step

    def _measure_all(self, step: int) -> None:
        choices = {choice.module: choice for choice in reversed(self._routes.choices)}
        self._routes.begin()
        for choice in reversed(choices.values()):
            self._measure(choice, step)

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
                self._thread = threading.get_ident()  # modes are each thread's own
                self._listener.__enter__()  # type: ignore[no-untyped-call]

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if self._thread != threading.get_ident():
                return
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
        layer.home = self._routes.find_home(choice.module, num_experts) or ""
        dropped = self._dropped.get(layer.home)
        with torch.no_grad():
            sizes = choice.measure()
            if dropped is not None:
                sizes = torch.cat([sizes, dropped.to(sizes).reshape(1)])

        def take(values: Any) -> None:
            load, prob = values[:num_experts], values[num_experts : 2 * num_experts]
            tokens, spread, *rest = values[2 * num_experts :]
            share = rest[0] if rest else None
            layer.add(Observed(step, load, prob, tokens, spread, share))
            self._judge(step)

        self.scene.voice.read_late(sizes, take)

    def _measure_returned(self, call: Call) -> None:
        """Take the statistics that a compiled model returns of its routers, in their order."""
        stats = list_routing(call.result)
        layers = list(self._layers.values())
        if len(stats) != len(layers) or not all(layer.seen for layer in layers):
            return
        if any(layer.seen[-1].step == call.step for layer in layers):
            return
        rows = torch.stack([torch.cat([load, prob]).float() for load, prob in stats])

        def take(values: Any) -> None:
            for layer, row in zip(layers, values, strict=True):
                tokens, half = layer.seen[-1].tokens, len(row) // 2
                load = [share * tokens * layer.top_k for share in row[:half]]
                layer.add(Observed(call.step, load, row[half:], tokens, math.nan))
            self._judge(call.step)

        self.scene.voice.read_late(rows, take)

    def _judge(self, step: int) -> None:
        """Judge all layers together once each was seen in this step."""
        layers = list(self._layers.values())
        if all(layer.seen and layer.seen[-1].step == step for layer in layers):
            for verdict in iter_verdicts(layers):
                self._report(verdict)

    def _report(self, verdict: Verdict) -> None:
        """Report the first of layers that are alike, once."""
        order = list(self.scene.modules.values())
        first = min(verdict.layers, key=lambda layer: order.index(layer.name))
        if (verdict.mechanism, first.name) in self._told:
            return
        self._told.add((verdict.mechanism, first.name))
        last = first.seen[-1]
        self.scene.report(
            KIND.name,
            verdict.mechanism,
            verdict.cause,
            verdict.fix,
            phase="forward",
            module=first.name,
            where=verdict.where or first.where,
            evidence={
                **verdict.evidence,
                "load": [round(count / max(sum(last.load), 1.0), 4) for count in last.load[:64]],
                "probability": [round(p, 4) for p in last.prob[:64]],
                "load_max_over_mean": last.imbalance,
                "tokens": last.tokens,
                "modules": list(dict.fromkeys(x.home for x in verdict.layers))[:MAX_LISTED],
            },
        )
