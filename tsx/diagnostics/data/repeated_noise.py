"""Noise that comes again: the numbers that traced calls draw, compared from step to step.

Only what is drawn from the generators that all share is looked at: one of its own with a seed of
its own is meant.
"""

from __future__ import annotations

from torch import Tensor

from tsx.diagnostics.data.checksums import measure_checksum, read_checksums
from tsx.diagnostics.data.repeats import KIND, SAID, is_meant
from tsx.diagnostics.detector import Call, Detector, Scene
from tsx.diagnostics.tracing.loop_lines import LineWatch, seeds_all
from tsx.diagnostics.tracing.tape import OpSeen, Tape

DRAWS = frozenset(
    {"randn", "rand", "randint", "randperm", "normal", "randn_like", "rand_like", "randint_like"}
    | {"normal_", "uniform_", "random_", "exponential_", "bernoulli", "bernoulli_", "multinomial"}
    | {"native_dropout", "poisson", "log_normal_", "geometric_", "cauchy_"}
)
MIN_DRAWN = 8  # numbers of a draw
PATIENCE = 3  # calls through which the loop is watched for the line that seeds


class RepeatedNoise(Detector):
    """Remembers the checksums of draws."""

    name = "repeated_noise"
    ops = DRAWS

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._is_done = is_meant(scene)
        self._draws: list[int | Tensor] = []
        self._where = ""  # of the last draw
        self._old: tuple[int, ...] = ()
        self._old_step = 0
        self._patience = 0
        self._lines = LineWatch("manual_seed", "fork_rng")

    def before_call(self, call: Call) -> None:
        """Say what was found, once the line that seeds was seen: it may be inside a call."""
        self._draws = []
        if not self._patience or not self._lines.is_on:
            return
        self._patience -= 1
        seeds = [seen.where for seen in self._lines.calls if seeds_all(seen)]
        is_forked = any(seen.name == "fork_rng" for seen in self._lines.calls)
        if not (seeds or is_forked) and self._patience:
            return
        self._lines.stop()
        self._patience, self._is_done = 0, True
        if not is_forked:  # there it is meant
            self._tell(seeds[-1] if seeds else self._where)
        self._lines.forget()

    def after_call(self, call: Call) -> None:
        """Watch the loop where the line is missing, and the calls in it."""
        if self._patience:
            self._lines.start()

    def saw_op(self, seen: OpSeen) -> None:
        """Keep a checksum of what was drawn."""
        if self._is_done or seen.kwargs.get("generator") is not None:
            return
        out = seen.out[1] if isinstance(seen.out, tuple) and len(seen.out) > 1 else seen.out
        if isinstance(out, Tensor) and out.numel() >= MIN_DRAWN:
            total = measure_checksum(out)
            if total is not None:
                self._draws.append(total)
                self._where = seen.where

    def after_trace(self, tape: Tape) -> None:
        """Compare the draws of this traced call with those of the one before."""
        draws, self._draws = self._draws, []
        if draws:
            step, read_late = self.scene.step, self.scene.voice.read_late
            read_checksums(draws, read_late, lambda found: self._compare(found, step))

    def pause(self) -> None:
        """Look at no lines until steps are shown again."""
        self._lines.stop()

    def close(self, *, is_whole: bool) -> None:
        """Let go of the loop."""
        self._lines.stop()
        if self._patience:
            self._tell(self._where)

    def _compare(self, draws: tuple[int, ...], step: int) -> None:
        """Draws that are the same in two steps come of a seed in the loop."""
        is_same = draws == self._old and step != self._old_step
        self._old, self._old_step = draws, step
        if is_same and not (self._patience or self._is_done):
            self._patience = PATIENCE

    def _tell(self, where: str) -> None:
        cause, fix = SAID["reseeded"]
        self.scene.report(
            KIND,
            "reseeded",
            cause,
            fix,
            phase="forward",
            where=where,
            evidence={"drawn_at": self._where},
        )
