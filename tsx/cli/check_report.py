"""What `tsx registry check` shows: how far it is, and what it has found."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from tsx.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from registry.check import CheckReport

_SHOWN = 100  # faults; one broken run may have thousands of curves
_QUIET_S = 2.0  # a check that is over sooner needs no progress
_BACKUP = "tsx registry backup"  # what a fault asks for that a rebuild would make worse
_LINE_S = 10.0  # between two lines where nobody watches


class CheckProgress:
    """Shows a bar with the time that is left; on no terminal a line now and then."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._told = self._started
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> CheckProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, run: str, done: int, total: int) -> None:
        """Show that so many bytes of the journals have been compared."""
        now = time.monotonic()
        if now - self._started < _QUIET_S or not total:
            return
        if not output.is_terminal(sys.stderr):
            self._tell(now, done, total)
            return
        if self._bars is None:
            self._bars = output.make_bars()
            self._task = self._bars.add_task("checking", total=total)
            self._bars.start()
        assert self._task is not None
        self._bars.update(self._task, completed=done, description=f"checking {output.clean(run)}")

    def _tell(self, now: float, done: int, total: int) -> None:
        """Write a line, not too often."""
        from tsx.text import format_duration

        if now - self._told >= _LINE_S and done:
            self._told = now
            left_s = (now - self._started) * (total - done) / done
            output.talk(f"checked {done / total:.0%}, about {format_duration(left_s)} left")


def to_plain(report: CheckReport) -> dict[str, Any]:
    """Return a report as plain data for JSON."""
    from dataclasses import asdict

    return {
        "faults": [asdict(fault) for fault in report.faults],
        "runs": report.num_runs,
        "points": report.num_points,
        "elsewhere": list(report.elsewhere),
    }


def show_report(report: CheckReport, *, fast: bool) -> None:
    """Print every fault with the next command, or one line that all is well."""
    for fault in report.faults[:_SHOWN]:
        output.data(
            f"{fault.kind}: {'run ' + fault.run + ': ' if fault.run else ''}{fault.message}"
        )
    if len(report.faults) > _SHOWN:
        output.talk(f"{len(report.faults) - _SHOWN:,} more; --json has them all")
    if report.elsewhere:
        runs = ", ".join(report.elsewhere[:5])
        output.talk(f"{len(report.elsewhere)} runs of other hosts were not compared: {runs}")
    if not report.faults:
        points = "" if fast else f" and {report.num_points:,} points"
        output.data(f"{report.num_runs:,} runs{points} agree with their journals", style="good")
        return
    lost = [fault.run for fault in report.faults if fault.next_command == _BACKUP]
    commands = list(dict.fromkeys(fault.next_command for fault in report.faults))
    if lost and len(commands) > 1:
        output.warn(f"a rebuild would lose what {len(lost)} journals do not have: back up first")
        commands.sort(key=lambda command: command != _BACKUP)
    count = len(report.faults)
    output.talk(f"{count:,} fault{'s' if count != 1 else ''} in {report.num_runs:,} runs")
    output.talk(f"next: {'; '.join(commands)}")
