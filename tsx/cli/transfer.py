"""What a person sees of a download: plain lines now and then, a progress bar on a terminal.

All of it is talk, on stderr: stdout is left to what the command prints.
"""

from __future__ import annotations

import collections
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from tsx.cli import output
from tsx.text import format_bytes, format_duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from tsx.data.parts import Progress

LINE_EVERY_S = 5.0


class TransferView:
    """Prints a line every few seconds, and at the end what came or what is kept."""

    def __init__(self) -> None:
        self._notes: collections.deque[str] = collections.deque()
        self._open = False
        self._progress: Progress | None = None
        self._phase = ""
        self._began = self._last = time.monotonic()

    def __enter__(self) -> TransferView:
        self._open = True
        self._began = self._last = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        self._say_notes()
        progress = self._progress
        if progress is None or progress.phase != "fetching" or not progress.files_total:
            return
        if error is None:
            seconds = time.monotonic() - self._began
            came = progress.bytes_done - progress.bytes_before
            rate = f", {format_bytes(round(came / seconds))}/s" if seconds else ""
            output.talk(f"fetched {format_bytes(came)} in {format_duration(seconds)}{rate}")
        else:
            missing = progress.bytes_total - progress.bytes_done
            output.talk(
                f"kept: {progress.files_done} of {progress.files_total} files, "
                f"{format_bytes(progress.bytes_done)} of {format_bytes(progress.bytes_total)}; "
                f"{format_bytes(missing)} missing; the same command goes on from there",
                style="warning",
            )

    def note(self, text: str) -> None:
        """Say something; from any thread while the view is open."""
        if self._open:
            self._notes.append(text)
        else:
            output.talk(text, style="dim")

    def watch(self, progress: Progress) -> None:
        """Show how far it is."""
        self._progress = progress
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._began = self._last = time.monotonic()
        self._say_notes()
        self._show(progress)

    def _show(self, progress: Progress) -> None:
        """Print a line, if the last one is old enough."""
        now = time.monotonic()
        if now - self._last < LINE_EVERY_S or not progress.bytes_total:
            return
        self._last = now
        rate = (progress.bytes_done - progress.bytes_before) / (now - self._began)
        left = progress.bytes_total - progress.bytes_done
        eta = format_duration(left / rate) if rate > 0 else "?"
        share = progress.bytes_done / progress.bytes_total
        output.talk(
            f"{progress.phase} {share:.0%}: {format_bytes(progress.bytes_done)} of "
            f"{format_bytes(progress.bytes_total)}, {progress.files_done} of "
            f"{progress.files_total} files, {format_bytes(round(rate))}/s, eta {eta}"
        )
        output.flush()

    def _say_notes(self) -> None:
        while self._notes:
            output.talk(self._notes.popleft(), style="dim")


class LiveTransferView(TransferView):
    """TransferView with a bar, speed and remaining time in place of the lines; for terminals."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: Bars | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        super().__exit__(kind, error, traceback)

    def _show(self, progress: Progress) -> None:
        """Move the bar."""
        if not progress.bytes_total:
            return
        if self._bars is None:
            from rich.progress import DownloadColumn, TransferSpeedColumn

            self._bars = output.make_bars(DownloadColumn(), TransferSpeedColumn())
            self._task = self._bars.add_task("")
            self._bars.start()
        files = f"{progress.phase} {progress.files_done} of {progress.files_total} files"
        self._bars.update(
            self._task,
            total=progress.bytes_total,
            completed=progress.bytes_done,
            description=files,
        )


def make_view() -> TransferView:
    """Return the view that fits where stderr goes."""
    return LiveTransferView() if output.is_terminal(sys.stderr) else TransferView()
