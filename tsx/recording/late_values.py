"""Values on an accelerator that are recorded without waiting for it.

On CUDA a value is copied to pinned host memory in stream order and read once an event says that
the copy has arrived. On other devices the copy stays there and is read, with one wait, about a
second later. What has not arrived when a process is killed is lost; `read(wait=True)` gets all.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

READ_AFTER_S = 1.0  # on devices that cannot say when a copy has arrived
MAX_WAITING = 1000  # copies; past it the oldest is waited for
WAIT_S = 5.0  # for another thread that is reading


class _Copy(NamedTuple):
    """A copy under way."""

    tensor: Tensor
    has_arrived: Callable[[], bool]
    wait: Callable[[], None]
    take: Callable[[Any], None]


class LateValues:
    """Copies of device values, in the order they were added. Safe from several threads.

    Attributes:
        waiting: copies that are not read yet; for reading only.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Drop all copies: a forked child must not read what is its parent's."""
        self.waiting: deque[_Copy] = deque()
        self._lock = threading.RLock()

    def add(self, tensor: Tensor, take: Callable[[Any], None]) -> None:
        """Hand the tensor's values to `take` once they are there, as numbers or nested lists.

        Args:
            tensor: nobody may change it any more (a result or a clone, not a parameter).
            take: called by a later `read`; what it raises is swallowed.
        """
        tensor = tensor.detach()
        if tensor.device.type == "cuda":
            self.waiting.append(_send(tensor, take))
        else:
            due = self._clock() + READ_AFTER_S
            self.waiting.append(_Copy(tensor, lambda: self._clock() >= due, _no_wait, take))
        if len(self.waiting) > MAX_WAITING:
            self.read(wait=True)

    def read(self, *, wait: bool = False) -> None:
        """Take what has arrived, oldest first; all of it with `wait`."""
        if not self._lock.acquire(timeout=WAIT_S if wait else 0.0):
            return
        try:
            while self.waiting:
                copy = self.waiting.popleft()
                if not (wait or copy.has_arrived()):
                    self.waiting.appendleft(copy)
                    return
                # A device that failed says so to the training itself.
                with contextlib.suppress(Exception):
                    copy.wait()
                    copy.take(copy.tensor.tolist())
        finally:
            self._lock.release()


def _send(tensor: Tensor, take: Callable[[Any], None]) -> _Copy:
    """Start the copy of a CUDA tensor to the host."""
    import torch

    with torch.cuda.device(tensor.device):
        arrival: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copy = tensor.to("cpu", non_blocking=True)  # into pinned memory
        arrival.record()
    return _Copy(copy, arrival.query, arrival.synchronize, take)


def _no_wait() -> None:
    """Reading the tensor waits by itself."""
