"""How a program ends, for a run that nobody finished by hand.

Notices an exception that nobody caught (through `sys.excepthook`), `sys.exit`, `exit` and `quit`
(through wrappers, because nothing else knows the status in time), the end of the program
(`atexit`), and SIGTERM and SIGHUP where their handler is the default. Everything that was there
before is called, and put back. A forked child has none of it: its run removes the hooks, and a
child that gets SIGTERM while it waits must not wait for Python to notice.

Does not cover: `raise SystemExit(3)` outside a `with` block (looks like a normal end), `os._exit`
and SIGKILL (the run shows as killed).
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from registry.events import Status
from tsx.errors import Diverged, Exit
from tsx.launch.exit_reason import Ending, describe_error

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
QUITTERS = ("exit", "quit")  # of the interpreter; there are none with `python -S`


def explain_exception(error: BaseException) -> Ending:
    """Return how a run ends whose program is left by this exception."""
    if isinstance(error, KeyboardInterrupt):
        return Ending(Status.INTERRUPTED, "SIGINT", Exit.INTERRUPTED)
    if isinstance(error, SystemExit):
        return explain_exit_code(error.code)
    if isinstance(error, Diverged):
        return Ending(Status.DIVERGED, " ".join(str(error).split()), Exit.DIVERGED)
    status = Status.OOM if _is_out_of_memory(error) else Status.FAILED
    return Ending(status, describe_error(error), Exit.FAILED)


def explain_exit_code(code: Any) -> Ending:
    """Return how a run ends whose program calls `sys.exit(code)`."""
    if code is None or (isinstance(code, int) and code == 0):
        return Ending(Status.COMPLETED, "", Exit.OK)
    if isinstance(code, int):
        return Ending(Status.FAILED, f"sys.exit({int(code)})", int(code) & 0xFF)
    return Ending(Status.FAILED, " ".join(str(code)[:1000].split()), Exit.FAILED)


class ProgramEnd:
    """Calls `finish` with how the program ends, unless it is removed before.

    Args:
        finish: gets the ending.
        mark: returns something that changes as the program goes on: an exception or `sys.exit` that
            was caught after all is then forgotten.
    """

    def __init__(self, finish: Callable[[Ending], None], mark: Callable[[], object]) -> None:
        self._finish = finish
        self._mark = mark
        self._pid = os.getpid()
        self._last = explain_exit_code(0)  # what the program is about to end with
        self._last_mark: object = None
        self._installed = False

    def install(self) -> None:
        """Take the hooks; those of signals only where nobody else has."""
        self._installed = True
        atexit.register(self._on_exit)
        # Bound methods are made anew on each access; these are compared by identity.
        self._hook, self._exit = self._on_exception, self._on_sys_exit
        self._handler = self._on_signal
        self._old_hook, sys.excepthook = sys.excepthook, self._hook
        self._old_exit, sys.exit = sys.exit, self._exit
        self._quitters = {
            name: _Quitter(getattr(builtins, name), self._note_exit)
            for name in QUITTERS
            if hasattr(builtins, name)
        }
        for name, quitter in self._quitters.items():
            setattr(builtins, name, quitter)
        self._signals: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():
            self._signals = [n for n in SIGNALS if signal.getsignal(n) is signal.SIG_DFL]
        for number in self._signals:
            signal.signal(number, self._handler)

    def remove(self) -> None:
        """Put back what was there, where it is still ours."""
        if not self._installed:
            return
        self._installed = False
        atexit.unregister(self._on_exit)
        if sys.excepthook is self._hook:
            sys.excepthook = self._old_hook
        if sys.exit is self._exit:
            sys.exit = self._old_exit
        for name, quitter in self._quitters.items():
            if getattr(builtins, name, None) is quitter:
                setattr(builtins, name, quitter.old)
        self._restore_signals()

    def _on_exit(self) -> None:
        if os.getpid() == self._pid:
            goes_on = self._last_mark != self._mark()
            self._finish(explain_exit_code(0) if goes_on else self._last)

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if self._installed:
            with contextlib.suppress(Exception):
                self._last, self._last_mark = explain_exception(error), self._mark()
        self._old_hook(kind, error, trace)

    def _on_sys_exit(self, code: Any = None, /) -> NoReturn:
        self._note_exit(code)
        self._old_exit(code)

    def _note_exit(self, code: Any) -> None:
        if self._installed and threading.current_thread() is threading.main_thread():
            with contextlib.suppress(Exception):
                self._last, self._last_mark = explain_exit_code(code), self._mark()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Finish the run, then die of the signal as if nobody had looked."""
        self._restore_signals()
        if self._installed and os.getpid() == self._pid:
            name = signal.Signals(number).name
            self._finish(Ending(Status.INTERRUPTED, name, 128 + number))
        os.kill(os.getpid(), number)

    def _restore_signals(self) -> None:
        with contextlib.suppress(ValueError):  # not in the main thread: they stay, and pass through
            for number in self._signals:
                if signal.getsignal(number) is self._handler:
                    signal.signal(number, signal.SIG_DFL)


class _Quitter:
    """The interpreter's `exit` or `quit`, which notes its status first."""

    def __init__(self, old: Callable[..., Any], note: Callable[[Any], None]) -> None:
        self.old = old
        self._note = note

    def __repr__(self) -> str:
        return repr(self.old)

    def __call__(self, code: Any = None) -> None:
        self._note(code)
        self.old(code)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception is one of the many names of too little memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    from tsx.trainer.memory_errors import SIGNS

    return any(sign in str(error) for sign in SIGNS)
