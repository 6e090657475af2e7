"""What bare `tsx` shows: what is running, what ended last, and what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsx.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from registry.views import RunRow

MAX_ENDED = 5
RESUMABLE = {"interrupted", "killed", "oom", "failed"}


def show_overview() -> None:
    """Show the runs under way, the last few that ended, and the next commands."""
    from tsx.cli.reading import open_reader
    from tsx.run_table import KEYS

    with open_reader() as reader:
        running = reader.list_runs(status="running", keys=KEYS)
        latest = reader.list_runs(limit=MAX_ENDED + len(running), keys=KEYS)
    ended = [run for run in latest if run.status != "running"][:MAX_ENDED]
    _show_runs("running", running)
    _show_runs("ended last", ended)
    if not latest:
        output.data("No runs yet.")
    output.data("")
    for command, purpose in list_next(running, ended):
        output.data(f"  {command:<32} {purpose}")


def list_next(running: Sequence[RunRow], ended: Sequence[RunRow]) -> list[tuple[str, str]]:
    """Return the commands that make sense now, each with what it does; runs newest first."""
    commands = []
    if running:
        commands.append(("tsx dashboard", "watch it live"))
    if ended and ended[0].recipe and ended[0].status in RESUMABLE:
        commands.append((f"tsx resume {ended[0].id}", "go on from its last checkpoint"))
    if ended:
        commands.append((f"tsx show {ended[0].id}", "see everything recorded of it"))
    if len(ended) > 1:
        pair = f"{ended[1].id} {ended[0].id}"
        commands.append((f"tsx compare {pair}", "see what made a difference"))
    if not running:
        commands.append(("tsx run sanity", "train a tiny model: 2 minutes on two CPU cores"))
    return [*commands, ("tsx recipes", "see what can be run"), ("tsx --help", "see every command")]


def _show_runs(heading: str, runs: Sequence[RunRow]) -> None:
    """Show a heading and one line per run; nothing for no runs."""
    import time

    from tsx.cli.paint import find_width, is_for_person, show_heading, show_lines
    from tsx.run_table import make_lines

    if runs:
        show_heading(heading)
        show_lines(make_lines(runs, time.time(), find_width() if is_for_person() else None))
