"""Modes: a model that is left in eval, scored in train mode, or whose dropout knows of no mode."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from tsx.diagnostics.detector import Call, Detector, Kind, Scene
from tsx.diagnostics.loop.scoring import Scoring
from tsx.diagnostics.tracing.loop_source import list_frames
from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.source_lines import find_class_line, find_function_line
from tsx.diagnostics.tracing.tape import OpSeen, Tape
from tsx.diagnostics.tracing.trace import find_line

TIMES = 2  # that it has to be so: one step may be taken in another mode on purpose
_DROPOUTS = {
    *("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    *("dropout1d", "dropout2d", "dropout3d"),
}
_FUSED = "scaled_dot_product_attention"
_TO_EVAL = re.compile(r"\.eval\(\s*\)|\.train\(\s*False")

KIND = Kind(
    "train-mode",
    "The mode is not what the loop needs: training goes on in eval mode, the model is scored with "
    "dropout on, a part never drops, a dropout never stops.",
    "Training went worse after the first validation: eval(), and no train() after it.",
    "At how many steps, and which modules act otherwise in the two modes.",
    "model.train() before a step of training, model.eval() before scoring; hand self.training to "
    "functional dropouts.",
)


class Modes(Detector):
    """Follows the mode of a model through training and scoring."""

    name = "modes"
    kinds = (KIND,)
    functions = frozenset({*_DROPOUTS, _FUSED})

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._was_training = False
        self._in_eval = 0  # steps in a row
        self._is_in_eval = False  # the step under way
        self._line = ""
        self._drops: dict[str, nn.Module] | None = None  # in train mode before the first call
        self._stuck: dict[str, int] = {}
        self._scoring = Scoring(scene.model)
        self._is_functional = False
        self._said: set[str] = set()

    def before_call(self, call: Call) -> None:
        """Note the modes before the first call."""
        self._scoring.stop()
        if self._drops is None:
            self._drops = {
                name: module
                for name, module in self.scene.model.named_modules()
                if isinstance(module, _DropoutNd) and module.p > 0 and module.training
            }

    def after_call(self, call: Call) -> None:
        """See a call for training in eval mode, and parts in eval mode."""
        if not call.is_grad:
            self._scoring.note(is_training=call.is_training, line="")
        if not (call.is_grad and isinstance(call.loss, Tensor) and call.loss.requires_grad):
            return
        if call.is_training:
            self._was_training, self._in_eval = True, 0
            if call.is_looked:
                self._find_stuck(call.step)
        elif self._was_training and "eval" not in self._said:
            self._is_in_eval = True
            self._line = self._line or find_function_line(list_frames(), _TO_EVAL)

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """Count steps of training in eval mode."""
        self._scoring.end_step(step)
        if not self._is_in_eval:
            return
        self._is_in_eval = False
        self._in_eval += 1
        names = self._list_dependent()
        if self._in_eval < TIMES or not names:
            return
        self._said.add("eval")
        self._report(
            "never-back-to-train",
            "the model trains in eval mode: nothing has put it back after eval()",
            "call model.train() before the step",
            step,
            where=self._line,
            evidence={"modules": names},
        )

    def saw_function(self, seen: OpSeen) -> None:
        """Note a dropout that is none of torch's own modules."""
        if self._drops_always(seen.name, seen.args, seen.kwargs):
            self._is_functional = True

    def after_trace(self, tape: Tape) -> None:
        """Run the model in eval mode, if it calls dropouts by itself."""
        if not self._is_functional or "dropout" in self._said or not tape.root_calls:
            return
        self._is_functional = False
        first = tape.root_calls[0]
        spy = _Dropouts(self.scene.modules)
        with tape.trial(), spy:
            self.scene.model(*first.args, **first.kwargs)
        if spy.found is not None:
            module, where, name = spy.found
            self._said.add("dropout")
            self._report(
                "dropout-in-eval",
                f"{name} drops in eval mode too: it is not told the mode",
                "hand it training=self.training, or use nn.Dropout"
                if name != _FUSED
                else "dropout_p=self.p if self.training else 0.0",
                self.scene.step,
                module=module,
                where=where,
                phase="eval",
            )

    def saw_values(self, values: Mapping[str, Any], step: int) -> None:
        """See when scores are logged, and tell of those that were made in train mode."""
        self._scoring.saw_values(values, step)
        if self._scoring.in_train < TIMES or "score" in self._said:
            return
        names = self._list_dependent()
        if names and not self._scoring.is_right:
            self._said.add("score")
            self._report(
                "scored-in-train-mode",
                "the model is scored in train mode: dropout and batch statistics are on",
                "model.eval() before scoring, model.train() after it",
                step,
                where=self._scoring.line,
                phase="eval",
                evidence={"modules": names},
            )

    def pause(self) -> None:
        """Look no more until steps are shown again."""
        self._scoring.stop()

    def close(self, *, is_whole: bool) -> None:
        """Look no more."""
        self._scoring.stop()

    def _find_stuck(self, step: int) -> None:
        """Report dropouts that were in train mode and are in eval mode while the model trains."""
        for name, module in (self._drops or {}).items():
            if module.training or name in self._said:
                continue
            self._stuck[name] = self._stuck.get(name, 0) + 1
            if self._stuck[name] >= TIMES:
                self._said.add(name)
                self._report(
                    "part-left-in-eval",
                    f"{name} is in eval mode while the model trains",
                    "call model.train() before the step, and eval() on the whole model only",
                    step,
                    module=name,
                    where=self._find_switch(name),
                )

    def _find_switch(self, name: str) -> str:
        """Return the line of a class on the way to a module that puts it into eval mode."""
        modules = dict(self.scene.model.named_modules())
        while name:
            home, _, part = name.rpartition(".")
            pattern = re.compile(rf"\b{re.escape(part)}\.(eval\(\s*\)|train\(\s*False)")
            where, _ = find_class_line(type(modules[home]), pattern)
            if where:
                return where
            name = home
        return ""

    def _list_dependent(self) -> list[str]:
        """Return modules that act otherwise in the two modes."""
        return [
            name
            for name, module in self.scene.model.named_modules()
            if (isinstance(module, _DropoutNd) and module.p > 0) or isinstance(module, _BatchNorm)
        ][:16]

    def _drops_always(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """Return whether a dropout is called by a module that is none."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if isinstance(frame.f_locals.get("self"), _DropoutNd):
                return False
            frame = frame.f_back
        return drops(name, args, kwargs)

    def _report(
        self,
        mechanism: str,
        cause: str,
        fix: str,
        step: int,
        *,
        phase: str = "forward",
        **rest: Any,
    ) -> None:
        self.scene.report("train-mode", mechanism, cause, fix, step=step, phase=phase, **rest)


class _Dropouts(TorchFunctionMode):
    """Finds the first dropout that drops."""

    def __init__(self, modules: Mapping[int, str]) -> None:
        super().__init__()
        self.found: tuple[str, str, str] | None = None  # module, line, function
        self._modules = modules

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if self.found is None and drops(name, args, kwargs or {}):
            frame: FrameType | None = sys._getframe(1)
            module = ""
            while frame is not None and not module:
                module = self._modules.get(id(frame.f_locals.get("self")), "")
                frame = frame.f_back
            self.found = module, shorten(find_line()), name
        return func(*args, **(kwargs or {}))


def drops(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call of a torch function drops something.

    Args:
        name: of the function.
        args: of the call: input, share, whether it is on.
        kwargs: of the call.
    """
    if name == _FUSED:
        share = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        return isinstance(share, int | float) and share > 0
    if name not in _DROPOUTS:
        return False
    share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    is_on = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return bool(is_on) and isinstance(share, int | float) and share > 0
