"""What a run offers a loop that trains a model: `watch` and `compute`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tsx.recording.watching import Call, Watching

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

P = ParamSpec("P")
T = TypeVar("T")


class Watchable(ABC):
    """The half of a run that knows models."""

    _watching: Watching

    @property
    def last_call(self) -> Call | None:
        """The last function that `compute` called, with its arguments and its step."""
        return self._watching.last_call

    def watch(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        causal: bool | None = None,
        steps: int | None = None,
        intervals: Mapping[str, int] | None = None,
        fixed_batch: bool = False,
        every: int | None = None,
        on_nonfinite: str = "halt",
    ) -> None:
        """Look at a model as it trains: for what is wrong with it, its data and its loop.

        Records `watch/grad_norm` and `watch/update_ratio` on the next line that is logged, and
        findings; `tsx diagnose` shows them. Ends with the run.

        Args:
            model: the module that trains.
            optimizer: only this one's steps; default every optimizer that holds its parameters.
            causal: the model must not see the future of a sequence (True), or may (False); default
                it must not where its targets are its inputs, shifted.
            steps: of the optimizer, that the run is to have.
            intervals: key that is logged to the steps between two of its lines.
            fixed_batch: one batch is repeated on purpose.
            every: steps from one look to the next; default as many as cost next to nothing.
            on_nonfinite: "halt" raises `tsx.errors.Diverged` out of `compute` or the optimizer's
                `step` before a parameter is touched, "skip" leaves that update out, "continue"
                takes it. A finding is recorded in any case.
        """
        self._check_open()
        self._watching.watch(
            model,
            optimizer,
            every=every,
            on_nonfinite=on_nonfinite,
            causal=causal,
            steps=steps,
            intervals=dict(intervals or {}),
            fixed_batch=fixed_batch,
        )

    def compute(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `fn(*args, **kwargs)`, remembered as `last_call` so that it can be replayed.

        A loss in the result (a scalar, the first of a tuple, `["loss"]` or `.loss`) that is not
        finite becomes a finding. What `fn` raises comes out as it is, with a note of the step.

        Raises:
            RunClosed: the run is finished.
            Diverged: the loss is not finite, and a watched model is to halt then.
        """
        self._check_open()
        return self._watching.compute(fn, *args, **kwargs)

    @abstractmethod
    def _check_open(self) -> None:
        """Raise RunClosed where the run is finished."""
