"""Tells of each step of a learning rate scheduler, and of the line that asked for it.

While anybody listens, the `step` methods of torch's schedulers are wrapped; what they do does not
change. Steps that torch takes by itself (a scheduler's first, a chain's parts) are not told.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

Listener = Callable[[Any, str], None]  # gets the scheduler and "file.py:12"

_TORCH = str(Path(torch.__file__).parent)
_listeners: list[weakref.WeakMethod[Listener]] = []  # whoever is gone listens no more
_originals: dict[type, Callable[..., Any]] = {}


def listen(listener: Listener) -> None:
    """Tell somebody of each scheduler's step from now on; a bound method, held weakly."""
    if not _originals:
        for kind in vars(lr_scheduler).values():
            if inspect.isclass(kind) and "step" in vars(kind):
                _wrap(kind)
    _listeners.append(weakref.WeakMethod(listener))


def stop(listener: Listener) -> None:
    """Tell them no more; without any listener the methods are torch's own again."""
    _listeners[:] = [held for held in _listeners if held() not in (None, listener)]
    if not _listeners:
        for kind, original in _originals.items():
            kind.step = original  # type: ignore[attr-defined]
        _originals.clear()


def find_rule(scheduler: Any) -> Any:
    """Return the user's function that makes a scheduler's rates, None where torch's own does."""
    rules = getattr(scheduler, "lr_lambdas", None)
    rule = rules[0] if isinstance(rules, list) and rules else None
    return rule if inspect.isfunction(rule) else None


def find_rate(optimizer: Optimizer) -> float | None:
    """Return the largest rate of an optimizer's groups, None where an accelerator has them."""
    highest: float | None = None
    for group in optimizer.param_groups:  # each step asks: a plain loop is the fastest
        rate = group.get("lr")
        if rate is None or (isinstance(rate, torch.Tensor) and not rate.is_cpu):
            continue
        if highest is None or rate > highest:
            highest = float(rate)
    return highest


def _wrap(kind: type) -> None:
    original = _originals[kind] = kind.step  # type: ignore[attr-defined]

    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if not caller.f_code.co_filename.startswith(_TORCH):
            where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            for held in list(_listeners):
                listener = held()
                if listener is not None:
                    with contextlib.suppress(Exception):  # the loop goes on, whoever listens
                        listener(self, where)
        return original(self, *args, **kwargs)

    kind.step = step  # type: ignore[attr-defined]
