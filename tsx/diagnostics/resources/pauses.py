"""Time that a loop spends outside of its step, and steps that get slower.

The time from one step's end to the next call belongs to data, logs and schedules. On steps that are
looked at a thread takes samples of where the program stands meanwhile: that names the line. Looks
and traces are left out of all times. Not covered: time inside the step, see `perf.profile`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tsx.diagnostics.detector import Call, Detector, Scene
from tsx.diagnostics.resources.compiled_lines import is_user_file
from tsx.diagnostics.resources.waste import THROUGHPUT
from tsx.diagnostics.tracing.places import shorten

SAMPLE_S = 0.002  # between samples of the stack
MAX_SAMPLES = 2000  # of one pause
WINDOW = 64  # pauses that are judged together
MIN_PAUSES = 4
MIN_SEEN = 0.3  # of the samples that a pause should have, at one line: else the machine is busy
MIN_SHARE = 0.6  # of the step, that is spent before it
MIN_PAUSE_S = 0.015  # below it a tiny model or a busy machine is what makes the share large
MIN_SLOWDOWN = 2.0  # of the pauses of a window against those of the first
_OWN = str(Path(__file__).parents[2]) + os.sep
_MODULE = nn.modules.module.__file__
EVERY = 16  # steps between two judgements of a slowdown


class Pauses(Detector):
    """Times what lies between steps."""

    name = "pauses"
    kinds = (THROUGHPUT,)

    def __init__(self, scene: Scene, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(scene)
        self._clock = clock
        self._ended_s: float | None = None  # the last step
        self._pauses: deque[float] = deque(maxlen=WINDOW)
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._first: float | None = None  # median pause of the first window
        self._sampler: _Sampler | None = None
        self._places: Counter[str] = Counter()
        self._sampled_s = 0.0  # length of the pauses that samples were taken of
        self._count = 0
        self._is_told: set[str] = set()

    def begin_look(self, step: int) -> None:
        """Take samples of the pause that begins."""
        self._ended_s = self._clock()  # what others do at a look is no pause of the loop
        if self._sampler is None and len(self._is_told) < 2:
            self._sampler = _Sampler(threading.get_ident())

    def before_call(self, call: Call) -> None:
        """The pause is over."""
        pause = 0.0 if self._ended_s is None else max(call.entered_s - self._ended_s, 0.0)
        if self._sampler is not None:
            self._places.update(self._sampler.stop())
            self._sampler = None
            self._sampled_s += min(pause, MAX_SAMPLES * SAMPLE_S)
        if self._ended_s is not None:
            self._pauses.append(pause)
            self._ended_s = None

    def after_call(self, call: Call) -> None:
        """Note how long the call took."""
        self._steps.append(call.ended_s - call.began_s)

    def end_step(self, optimizer: Optimizer, step: int) -> None:
        """A pause begins; judge those there were."""
        self._count += 1
        if len(self._pauses) >= MIN_PAUSES and self._count % 2 == 0:
            self._judge_share()
        if self._count % EVERY == 0 and len(self._pauses) == WINDOW:
            self._judge_slowdown()
        self._ended_s = self._clock()

    def pause(self) -> None:
        """The pause that begins is not seen to its end."""
        self._ended_s = None
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None

    def close(self, *, is_whole: bool) -> None:
        """Take no more samples."""
        self.pause()

    def _judge_share(self) -> None:
        """Report that most of the time goes by before the step."""
        pause, call = median(self._pauses), median(self._steps)
        # The backward pass costs about twice the call; what else is in a step belongs to it too.
        share = pause / max(pause + 3 * call, 1e-9)
        if "share" in self._is_told or pause < MIN_PAUSE_S or share < MIN_SHARE:
            return
        if not self._find_place():
            return
        self._is_told.add("share")
        self.scene.report(
            "throughput",
            "data-bound",
            "the step waits for its batch: most of the time is spent before the forward pass",
            "read ahead with workers (num_workers, prefetch_factor), cache what is read, or move "
            "the work of this line out of the loop",
            phase="data",
            where=self._find_place(),
            evidence={"before_the_step_ms": 1e3 * pause, "share_of_the_time": round(share, 3)},
        )

    def _judge_slowdown(self) -> None:
        """Report pauses that have become much longer than they were."""
        now = median(list(self._pauses)[-WINDOW // 2 :])
        if self._first is None:
            self._first = now
            return
        if "slower" in self._is_told or now < MIN_SLOWDOWN * self._first or now < MIN_PAUSE_S:
            return
        if not self._find_place():
            return
        self._is_told.add("slower")
        self.scene.report(
            "throughput",
            "slower-over-time",
            "what is done before each step takes longer and longer",
            "look for a list that grows with each batch and is gone through again",
            phase="data",
            where=self._find_place(),
            evidence={"at_first_ms": 1e3 * self._first, "now_ms": 1e3 * now},
        )

    def _find_place(self) -> str:
        """Return the line where the program stood most of the pauses, "" where none was seen."""
        if not self._places:
            return ""
        (place, count), *_ = self._places.most_common(1)
        is_most = 2 * count >= sum(self._places.values())
        is_seen = count * SAMPLE_S >= MIN_SEEN * self._sampled_s
        return shorten(place) if is_most and is_seen else ""


class _Sampler:
    """Notes where a thread stands, every `SAMPLE_S`."""

    def __init__(self, thread_id: int) -> None:
        self._thread_id = thread_id
        self._done = threading.Event()
        self._places: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="tsx-samples", daemon=True)
        self._thread.start()

    def stop(self) -> Counter[str]:
        """Take no more; return how often each line was seen."""
        self._done.set()
        self._thread.join(timeout=1.0)
        return self._places

    def _run(self) -> None:
        for _ in range(MAX_SAMPLES):
            if self._done.wait(SAMPLE_S):
                return
            place = _find_place(sys._current_frames().get(self._thread_id))
            if place:
                self._places[place] += 1


def _find_place(frame: Any) -> str:
    """Return the innermost line of a stack that is the user's, and busy with nothing we know."""
    held: FrameType | None = frame
    while held is not None:
        path = held.f_code.co_filename
        # What tsx does is no wait for data, nor is a model that acts or is scored.
        if path.startswith(_OWN) or path == _MODULE:
            return ""
        if is_user_file(path):
            return f"{path}:{held.f_lineno}" if held.f_lineno else ""
        held = held.f_back
    return ""
