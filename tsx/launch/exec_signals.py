"""Signals while a foreign program runs: where they come from, and what else woke us.

The program shares our process group, as under a shell's `time`: a Ctrl-C in the terminal reaches it
without us, and what another process sends to us alone has to be passed on. The kernel says which
of the two it was; where it cannot be asked (macOS) a SIGINT is taken for the terminal's.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import NamedTuple

from tsx.launch.supervise import STOP_SIGNALS

# What else a program may wait for; it says nothing about its end.
MESSAGES = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_HAS_ORIGINS = hasattr(signal, "sigtimedwait")  # Linux
_FROM_KERNEL = 0x80  # si_code of a signal that the terminal sent


class Caught(NamedTuple):
    """A signal that reached us."""

    number: signal.Signals
    from_terminal: bool  # then the program has it already


class HeldSignals:
    """Holds signals back from Python's handlers and hands them out one by one.

    On Linux they are blocked and waited for, together with SIGCHLD, so that the end of the program
    ends a wait too. `mask` is what the program has to get instead of ours. Not thread-safe.
    """

    def __init__(self) -> None:
        # Under nohup a hangup is ignored already, and stays so.
        self._numbers = {
            number
            for number in (*STOP_SIGNALS, *MESSAGES)
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
        }
        self._caught: list[Caught] = []
        self._before: dict[signal.Signals, object] = {}
        self.mask: set[int] = set()

    def __enter__(self) -> HeldSignals:
        """Begin to hold signals back."""
        self.mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        if _HAS_ORIGINS:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers | {signal.SIGCHLD})
        else:
            for number in self._numbers:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Let signals through again; one that came too late for the program is dropped."""
        while self.wait(0.0) is not None:
            pass
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def wait(self, timeout_s: float) -> Caught | None:
        """Return the next signal; None after the timeout, or earlier when a child ended."""
        if _HAS_ORIGINS:
            found = signal.sigtimedwait(self._numbers | {signal.SIGCHLD}, timeout_s)
            if found is None or found.si_signo == signal.SIGCHLD:
                return None
            return Caught(signal.Signals(found.si_signo), found.si_code == _FROM_KERNEL)
        if not self._caught:
            time.sleep(timeout_s)
        return self._caught.pop(0) if self._caught else None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._caught.append(Caught(signal.Signals(number), number == signal.SIGINT))
