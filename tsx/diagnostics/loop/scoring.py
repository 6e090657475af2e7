"""In which mode a model is scored, between two steps of a loop.

Hooks on the model would be copied and saved along with it. So the loop itself is looked at, through
the interpreter's profile function, and only when a score is due: two lines with a score say when
the next one comes. The first forward pass that is seen ends the look.
"""

from __future__ import annotations

import re
import sys
from collections.abc import KeysView, Mapping
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
from torch import nn

from tsx.diagnostics.tracing.loop_source import list_frames
from tsx.diagnostics.tracing.source_lines import find_scope_line

MAX_EVENTS = 20_000  # of one look
MAX_LOOKS = 32  # without a forward pass: the score is made elsewhere
_SCORE = re.compile(r"(^|[/_. -])(val|valid|validation|eval|test|dev|holdout)([/_. -]|$)", re.I)
_NO_GRAD = re.compile(r"\b(no_grad|inference_mode|set_grad_enabled)\b")


class Scoring:
    """Sees how scores are made.

    Args:
        model: that is scored.

    Attributes:
        in_train: scores that were made in train mode.
        line: of the last of them.
        is_right: one was made in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.in_train = 0
        self.line = ""
        self.is_right = False
        self._model = model
        self._plain: KeysView[str] | None = None  # keys of a line
        self._steps: list[int] = []  # of the last two lines with a score
        self._events = 0
        self._looks = 0

    def saw_values(self, values: Mapping[str, Any], step: int) -> None:
        """Note when scores are logged."""
        if values.keys() == self._plain:  # a line like one before, without a score
            return
        is_score = any(_is_score(key) for key in values)
        if not is_score:
            self._plain = dict.fromkeys(values).keys()
        elif self._steps[-1:] != [step]:
            self._steps = [*self._steps[-1:], step]

    def end_step(self, step: int) -> None:
        """Look at what comes before the next call, if a score is due."""
        if len(self._steps) < 2 or self.is_right or self._looks >= MAX_LOOKS:
            return
        before, last = self._steps
        if step >= 2 * last - before and sys.getprofile() is None:
            self._events = 0
            self._looks += 1
            sys.setprofile(self._see)

    def stop(self) -> None:
        """Look no more."""
        if sys.getprofile() == self._see:
            sys.setprofile(None)

    def note(self, *, is_training: bool, line: str) -> None:
        """Note a forward pass without gradients."""
        self._looks = 0
        if is_training:
            self.in_train += 1
            self.line = line or self.line
        else:
            self.is_right = True

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        self._events += 1
        if self._events > MAX_EVENTS:
            self.stop()
        if event != "call" or frame.f_code.co_name != "forward":
            return
        if frame.f_locals.get("self") is self._model and not torch.is_grad_enabled():
            self.stop()
            line = find_scope_line(list_frames(), _NO_GRAD)
            self.note(is_training=self._model.training, line=line)


@lru_cache(maxsize=1024)
def _is_score(key: object) -> bool:
    """Return whether a key is one of scores; each line asks again for the same few."""
    return isinstance(key, str) and _SCORE.search(key) is not None
